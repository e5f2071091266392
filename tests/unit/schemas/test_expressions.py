import operator
from types import MappingProxyType
from typing import Any

import pytest

from schemas.errors import ContractError, ExpressionFailed, Problem, ReferenceBroken, TemplateInvalid
from schemas.expressions import MAX_LENGTH, MAX_LEVELS, compile_expression, read_expression
from schemas.scope import Iteration, Part, Reads, Scope, StepOutcome
from schemas.statuses import StepStatus
from schemas.stored_json import StoredJson

OUTPUT = {
    "score": 0.9,
    "tags": ["x", "y", 1, [True]],
    "text": "it's wet",
    "ok": True,
    "nothing": None,
    "one": 1,
    "object": {"key": [1, {"deep": 0}]},
    "large": "secret" * 1000,
}
SCOPE = Scope(
    workflow_input={"limit": 0.8},
    steps={
        "s": StepOutcome(StepStatus.COMPLETED, OUTPUT, None),
        "stored": StepOutcome(StepStatus.COMPLETED, StoredJson('{"n": [2]}'), None),
        "failed": StepOutcome(StepStatus.FAILED, None, MappingProxyType({"code": "timeout"})),
    },
)
BROKEN = "${s.output.missing}"


def holds(text: str, **values: Any) -> bool:
    scope = Scope(values, {}) if values else SCOPE
    return compile_expression(text).evaluate(scope)


def problems(text: str) -> list[Problem]:
    return list(read_expression(text).problems)


# What holds


@pytest.mark.parametrize(
    "text",
    [
        "${s.output.score} > 0.8 and 'x' in ${s.output.tags}",
        "${s.output.score} > ${workflow.input.limit}",
        "${s.output.ok}",
        "${s.status} == 'COMPLETED'",
        "${failed.error.code} == 'timeout'",
        "${elsewhere.status} == 'SKIPPED'",
        "${stored.output.n[0]} == 2",
        "${s.output.text} == 'it\\'s wet'",
    ],
)
def test_references_are_values(text: str) -> None:
    assert holds(text) is True


@pytest.mark.parametrize("text", ["'${s.output.score}' == \"${s.output.score}\"", "'${' != '${x}'"])
def test_a_reference_inside_quotes_is_text(text: str) -> None:
    assert holds(text)
    assert compile_expression(text).references == ()


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("0", 0),
        ("-5", -5),
        ("2.50", 2.5),
        ("-1e3", -1000.0),
        ("1E+2", 100),
        ("25e-1", 2.5),
        ("'text'", "text"),
        ('"text"', "text"),
        ("''", ""),
        ('"it\'s"', "it's"),
        ("'say \"it\"'", 'say "it"'),
        (r"'\\ \' \" \n \t'", "\\ ' \" \n \t"),
        (r'"\\ \' \" \n \t"', "\\ ' \" \n \t"),
        ("'${x} and ( &&'", "${x} and ( &&"),
        ("'ä\N{GRINNING FACE}\n'", "ä\N{GRINNING FACE}\n"),
        ("true", True),
        ("True", True),
        ("false", False),
        ("False", False),
        ("null", None),
        ("None", None),
        ("[]", []),
        ("[1, 'a', [null], 1 < 2 or false, ${workflow.input.x}]", [1, "a", [None], True, 1]),
    ],
)
def test_a_literal_is_its_value(literal: str, value: Any) -> None:
    assert holds(f"${{workflow.input.value}} == {literal}", value=value, x=1)
    assert not holds(f"${{workflow.input.value}} == {literal}", value=[value], x=1)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (0, -0.0, True),
        (2**53 + 1, float(2**53), False),
        (1, True, False),
        (False, 0, False),
        (True, True, True),
        (True, False, False),
        (None, None, True),
        (None, False, False),
        ("1", 1, False),
        ("a", "a", True),
        ("a", "A", False),
        ([1, 2], [1.0, 2], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 2], False),
        ([], {}, False),
        ((1,), [1], True),
        ([True], [1], False),
        ([[False]], [[0]], False),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True),
        ({"a": 1}, {"b": 1}, False),
        ({"a": None}, {}, False),
        ({"a": {"b": [1]}}, {"a": {"b": [True]}}, False),
        (MappingProxyType({"a": 1}), {"a": 1}, True),
    ],
)
def test_equality_is_that_of_json(left: Any, right: Any, equal: bool) -> None:
    for one, other in ((left, right), (right, left)):
        assert holds("${workflow.input.one} == ${workflow.input.other}", one=one, other=other) is equal
        assert holds("${workflow.input.one} != ${workflow.input.other}", one=one, other=other) is not equal
        assert holds("${workflow.input.one} in [0.5, ${workflow.input.other}]", one=one, other=other) is equal


def test_equality_of_what_is_nested_too_deep_for_recursion() -> None:
    one: Any = True
    other: Any = 1
    for _ in range(50_000):
        one, other = [one], [other]

    assert holds("${workflow.input.one} == ${workflow.input.one}", one=one)
    assert not holds("${workflow.input.one} == ${workflow.input.other}", one=one, other=other)


@pytest.mark.parametrize("symbol", ["<", ">", "<=", ">="])
@pytest.mark.parametrize(("left", "right"), [(1, 2), (2, 1), (1, 1.0), (-1.5, -1), ("a", "b"), ("b", "a"), ("a", "a")])
def test_numbers_and_strings_have_an_order(symbol: str, left: Any, right: Any) -> None:
    python = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}[symbol]

    assert holds(f"${{workflow.input.a}} {symbol} ${{workflow.input.b}}", a=left, b=right) is python(left, right)


@pytest.mark.parametrize(
    ("item", "whole", "inside"),
    [
        ("'x'", "${s.output.tags}", True),
        ("'z'", "${s.output.tags}", False),
        ("true", "${s.output.tags}", False),
        ("[true]", "${s.output.tags}", True),
        ("[1]", "${s.output.tags}", False),
        ("1.0", "${s.output.tags}", True),
        ("1", "[]", False),
        ("'wet'", "${s.output.text}", True),
        ("''", "''", True),
        ("'dry'", "${s.output.text}", False),
        ("'key'", "${s.output.object}", True),
        ("'deep'", "${s.output.object}", False),
    ],
)
def test_arrays_hold_elements_strings_hold_text_and_objects_hold_keys(item: str, whole: str, inside: bool) -> None:
    assert holds(f"{item} in {whole}") is inside
    assert holds(f"{item} not in {whole}") is not inside
    assert holds(f"{item} not  \n in {whole}") is not inside
    assert holds(f"{whole} contains {item}") is inside


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true or true and false", True),
        ("(true or true) and false", False),
        ("false and false or true", True),
        ("not false or true", True),
        ("not (false or true)", False),
        ("not true and false", False),
        ("not (true and false)", True),
        ("not 1 == 2", True),
        ("not not true", True),
        ("not not not true", False),
        ("not 1 in [2] and true", True),
        ("1 == 2 or 2 == 2", True),
        ("(1 == 1) == true", True),
        ("(1 < 2) == (2 < 3)", True),
        ("(((true)))", True),
        ("1<2 and(-1<0)", True),
        ("'a'in['a']", True),
        ("'x' in['x']", True),
        ("  \t\n true \n", True),
    ],
)
def test_operators_bind_by_their_precedence(text: str, value: bool) -> None:
    assert holds(text) is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"true or {BROKEN}", True),
        (f"false or true or {BROKEN}", True),
        (f"false and {BROKEN}", False),
        (f"true and false and {BROKEN}", False),
        ("true or 1", True),
        ("false and 'a' > 1", False),
    ],
)
def test_what_is_not_needed_is_not_evaluated(text: str, value: bool) -> None:
    assert holds(text) is value


# What fails


@pytest.mark.parametrize("text", [BROKEN, f"true and {BROKEN}", f"[{BROKEN}] == []", f"{BROKEN} == null"])
def test_a_reference_that_leads_nowhere_is_broken(text: str) -> None:
    with pytest.raises(ReferenceBroken) as caught:
        holds(text)

    assert caught.value.reference == BROKEN


@pytest.mark.parametrize(
    ("text", "part", "why"),
    [
        ('"abc" > 3', '"abc" > 3', "a string and a number cannot be compared"),
        (
            "true and ${s.output.text} > ${s.output.one}",
            "${s.output.text} > ${s.output.one}",
            "a string and a number cannot be compared; "
            '${s.output.text} is the string "it\'s wet"; ${s.output.one} is the number 1',
        ),
        ("true <= 1", "true <= 1", "true and a number cannot be compared"),
        ("1 < ${s.output.ok}", "1 < ${s.output.ok}", "a number and true cannot be compared"),
        ("false < true", "false < true", "false and true cannot be compared"),
        ("null >= null", "null >= null", "null and null cannot be compared"),
        ("not ( [1]<[ 2 ] )", "[1]<[ 2 ]", "an array and an array cannot be compared"),
        ("${s.output} > 1", "${s.output} > 1", "an object and a number cannot be compared"),
        ("(1 == 1) < 2", "(1 == 1) < 2", "true and a number cannot be compared"),
        ("1 in 'a1'", "1 in 'a1'", "a string holds strings, and never a number"),
        ("'a1' contains null", "'a1' contains null", "a string holds strings, and never null"),
        ("1 in ${s.output}", "1 in ${s.output}", "the keys of an object are strings, and never a number"),
        (
            "'a' not in ${s.output.score}",
            "'a' not in ${s.output.score}",
            "a number holds nothing; only an array, a string or an object does; ${s.output.score} is the number 0.9",
        ),
        (
            "${s.output.nothing} contains 1",
            "${s.output.nothing} contains 1",
            "null holds nothing; only an array, a string or an object does",
        ),
    ],
)
def test_operands_that_do_not_fit_are_shown(text: str, part: str, why: str) -> None:
    with pytest.raises(ExpressionFailed) as caught:
        holds(text)

    assert isinstance(caught.value, ContractError)
    assert (caught.value.part, str(caught.value)) == (part, f"{part}: {why}")


@pytest.mark.parametrize("text", ["{}", "({})", "{} or true", "false or {}", "{} and true", "true and {}", "not {}"])
@pytest.mark.parametrize(
    ("value", "what", "comparison"),
    [
        ("${s.output.score}", "the number 0.9", "> 0"),
        ("${s.output.text}", 'the string "it\'s wet"', "!= ''"),
        ("${s.output.tags}", "an array", "!= []"),
        ("${s.output}", "an object", "!= null"),
        ("null", "null", "!= null"),
        ("0", "the number 0", "> 0"),
        ("[]", "an array", "!= []"),
    ],
)
def test_a_condition_is_true_or_false_and_nothing_else(text: str, value: str, what: str, comparison: str) -> None:
    with pytest.raises(ExpressionFailed) as caught:
        holds(text.format(value))

    assert caught.value.part == value
    hint = f"write a comparison, such as {value} {comparison}"
    assert str(caught.value) == f"{value}: {what} is neither true nor false; {hint}"
    assert read_expression(f"{value} {comparison}").problems == ()


@pytest.mark.parametrize("text", ["${s.output.large} > 1", f"'{'a' * 5000}' > 1", f"[{'1, ' * 3000}1]"])
def test_a_failure_is_short_whatever_the_values_are(text: str) -> None:
    with pytest.raises(ExpressionFailed) as caught:
        holds(text)

    assert len(str(caught.value)) < 1000
    assert len(caught.value.part) <= 303


# What cannot be read


@pytest.mark.parametrize(
    ("text", "column", "found", "suggestion"),
    [
        ("", 1, "the end; what can stand here is ${...}", None),
        ("  ", 3, "the end; what can stand here is ${...}", None),
        ("1 ==", 5, "the end; what can stand here is ${...}", None),
        ("true and", 9, "the end; what can stand here is ${...}", None),
        ("not", 4, "the end; what can stand here is ${...}", None),
        ("== 1", 1, '"=="; what can stand here is ${...}', None),
        ("()", 2, '")"; what can stand here is ${...}', None),
        ("[1,]", 4, '"]"; what can stand here is ${...}', None),
        ("1 == $x", 6, '"$"; what can stand here is ${...}', None),
        ("1 == - 1", 6, '"-"; what can stand here is ${...}', None),
        ("1 == in", 6, '"in"; what can stand here is ${...}', None),
        ("1 2", 3, '"2"; what can stand here is an operator', None),
        ("1 == 1 'a'", 8, "\"'a'\"; what can stand here is an operator", None),
        ("1 + 1", 3, '"+"; what can stand here is an operator', None),
        ("1-2", 2, '"-2"; what can stand here is an operator', None),
        ("${s.status} ${s.status}", 13, '"${s.status}"; what can stand here is an operator', None),
        ("1 == 1)", 7, '")"; what can stand here is an operator', None),
        ("1, 2", 2, '","; what can stand here is an operator', None),
        ("'a' contain 'b'", 5, '"contain"; what can stand here is an operator', "contains"),
        ("1 equals 1", 3, '"equals"; what can stand here is an operator', None),
        ("(true", 6, "the end; what can stand here is an operator", None),
        ("[1, 2", 6, "the end; what can stand here is an operator", None),
        ("[1 2]", 4, '"2"; what can stand here is an operator', None),
        ("(1]", 3, '"]"; what can stand here is an operator', None),
        ("1 < 2 < 3", 7, '"<"; comparisons cannot be chained; join two of them with "and"', None),
        ("1 == 1 not in []", 8, '"not"; comparisons cannot be chained; join two of them with "and"', None),
        ("1 == not true", 6, '"not"; here it needs parentheses around it: (not ...)', None),
        ("'a' not contains 'b'", 5, '"not"; write "not in" here, or "not" before the whole comparison', None),
        ("1 == 1 not", 8, '"not"; write "not in" here, or "not" before the whole comparison', None),
        ("COMPLETED == 'a'", 1, '"COMPLETED"; a string is written in quotes', "'COMPLETED'"),
        ("${s.status} == done", 16, '"done"; a string is written in quotes', "'done'"),
        ("true and step-a", 10, '"step-a"; a string is written in quotes', "'step-a'"),
        ("s.output.tags[0] == 1", 1, '"s.output.tags[0]"; a string is written in quotes', "${s.output.tags[0]}"),
        ("1 == 01", 6, '"01"; a number is written as in JSON', None),
        ("1 == .5", 6, '".5"; a number is written as in JSON', None),
        ("1 == 5.", 6, '"5."; a number is written as in JSON', None),
        ("1 == -0x1F", 6, '"-0x1F"; a number is written as in JSON', None),
        ("1e400 > 1", 1, '"1e400"; a number must fit a double', None),
        ("'a' == 'b", 8, "a string that is not closed with '", None),
        ("\"a' == 1", 1, 'a string that is not closed with "', None),
        ("'a\\", 1, "a string that is not closed with '", None),
        (r"'x' == 'a\db'", 10, r'a backslash before "d"; the escapes are \\ \' \" \n \t', None),
        ("1 = 1", 3, '"="; write "=="', "=="),
        ("1 === 1", 3, '"==="; write "=="', "=="),
        ("1 <> 1", 3, '"<>"; write "!="', "!="),
        ("1 !== 1", 3, '"!=="; write "!="', "!="),
        ("1 => 1", 3, '"=>"; write ">="', ">="),
        ("1 =< 1", 3, '"=<"; write "<="', "<="),
        ("1 is 1", 3, '"is"; write "=="', "=="),
        ("1 IS 1", 3, '"IS"; write "=="', "=="),
        ("1 is  not null", 3, '"is not"; write "!="', "!="),
        ("true AND true", 6, '"AND"; write "and"', "and"),
        ("true && true", 6, '"&&"; write "and"', "and"),
        ("true & true", 6, '"&"; write "and"', "and"),
        ("true OR true", 6, '"OR"; write "or"', "or"),
        ("true || true", 6, '"||"; write "or"', "or"),
        ("true | true", 6, '"|"; write "or"', "or"),
        ("!true", 1, '"!"; write "not"', "not"),
        ("Not true", 1, '"Not"; write "not"', "not"),
        ("1 IN []", 3, '"IN"; write "in"', "in"),
        ("[] Contains 1", 4, '"Contains"; write "contains"', "contains"),
        ("TRUE", 1, '"TRUE"; write "true"', "true"),
        ("NULL == 1", 1, '"NULL"; write "null"', "null"),
        ("none == 1", 1, '"none"; write "null"', "null"),
    ],
)
def test_an_expression_that_cannot_be_read_is_refused_at_its_column(
    text: str, column: int, found: str, suggestion: str | None
) -> None:
    [problem] = read_expression(text, ("steps", "check", "if")).problems

    assert problem.message.startswith(f"column {column}: found {found}")
    assert (problem.place, problem.code, problem.suggestion) == ("steps.check.if", "malformed_expression", suggestion)


def test_a_bracket_that_is_not_closed_is_named() -> None:
    [of_parenthesis], [of_list] = problems("true or (true"), problems("1 in [1")

    assert of_parenthesis.message.endswith(' or ")" for the "(" in column 9')
    assert of_list.message.endswith(', a comma or "]" for the "[" in column 6')


def test_misspelt_operators_are_all_listed_and_read_as_what_was_meant() -> None:
    text = "!${s.output} && 1 = 1 || TRUE 5"

    assert [(problem.message[:9], problem.suggestion) for problem in problems(text)] == [
        ("column 1:", "not"),
        ("column 14", "and"),
        ("column 19", "=="),
        ("column 23", "or"),
        ("column 26", "true"),
        ("column 31", None),
    ]


def test_all_misread_references_are_listed_beside_the_first_error_of_syntax_in_the_order_of_the_text() -> None:
    expression = read_expression("${a.outptu} == 1 1 ) ( ${b} or ${c.output} '${d}' ${", ("if",))

    assert [(problem.place, problem.code, problem.suggestion) for problem in expression.problems] == [
        ("if", "malformed_reference", "${a.output}"),
        ("if", "malformed_expression", None),
        ("if", "malformed_reference", "${b.output}"),
        ("if", "malformed_reference", None),
    ]
    assert expression.reads == Reads(steps=frozenset({"c"}))


@pytest.mark.parametrize("text", ["${s.output > 3 and (", "(1 == '", "(${s.{x}} &&"])
def test_behind_what_is_not_closed_nothing_is_guessed(text: str) -> None:
    assert len(problems(text)) == 1


def test_an_expression_knows_which_steps_it_needs_and_where() -> None:
    expression = read_expression("${a.output.x[0]} in ${workflow.input} or ${b.status} == 'x'", ("steps", 1))

    assert expression.reads == Reads(steps=frozenset({"a", "b"}), workflow_input=True)
    assert [(placed.place, placed.reference.text) for placed in expression.references] == [
        (("steps", 1), "${a.output.x[0]}"),
        (("steps", 1), "${workflow.input}"),
        (("steps", 1), "${b.status}"),
    ]


def test_an_expression_may_ask_for_the_iteration_of_a_loop() -> None:
    expression = compile_expression("${loop.item.n} > ${loop.index} and not ${loop.is_last}")

    assert expression.reads == Reads(loop_parts=frozenset({Part.ITEM, Part.INDEX, Part.IS_LAST}))
    assert expression.evaluate(Scope({}, {}, Iteration(1, 3, {"n": 2}))) is True
    assert expression.evaluate(Scope({}, {}, Iteration(2, 3, {"n": 5}))) is False


def test_compiling_and_evaluating_refuse_what_has_problems() -> None:
    with pytest.raises(TemplateInvalid) as caught:
        compile_expression("1 = 1 and ${s}")
    assert [problem.code for problem in caught.value.problems] == ["malformed_expression", "malformed_reference"]

    with pytest.raises(TemplateInvalid):
        read_expression("true or").evaluate(SCOPE)


# How large it may be


def test_an_expression_may_have_so_many_characters_and_no_more() -> None:
    longest = "true".ljust(MAX_LENGTH)

    assert holds(longest)
    [problem] = problems(longest + " ")
    assert problem.code == "malformed_expression"
    assert problem.message == "column 10001: found 10001 characters; an expression has 10000 at most"


@pytest.mark.parametrize(
    ("opening", "closing", "column"),
    [("(", ")", 1), ("not ", "", 1), ("null != [", "]", 9), ("false or true and true == (", ")", 27)],
)
def test_an_expression_may_be_so_deep_and_no_deeper(opening: str, closing: str, column: int) -> None:
    assert holds(opening * MAX_LEVELS + "true" + closing * MAX_LEVELS)

    [problem] = problems(opening * (MAX_LEVELS + 1) + "true" + closing * (MAX_LEVELS + 1))
    assert problem.code == "malformed_expression"
    assert problem.message.startswith(f"column {len(opening) * MAX_LEVELS + column}: found ")
    assert "over 64 levels deep" in problem.message


@pytest.mark.parametrize("text", ["(" * MAX_LENGTH, "[" * MAX_LENGTH, "not " * (MAX_LENGTH // 4), "${" * 5000])
def test_what_is_far_too_deep_is_refused_without_recursion(text: str) -> None:
    assert problems(text)


@pytest.mark.parametrize(("word", "last", "value"), [("or", "1", True), ("and", "0", False)])
def test_a_chain_is_as_long_as_the_text_may_be(word: str, last: str, value: bool) -> None:
    link = "true" if word == "and" else "false"
    count = (MAX_LENGTH - 10) // (len(link) + len(word) + 2)

    assert holds(f" {word} ".join([link] * count + [f"{last}==1"])) is value
    assert holds(f"{'true' if word == 'or' else 'false'} {word} " + f" {word} ".join(["1"] * 1000)) is value


@pytest.mark.parametrize("text", ["${s.outptu} == 1", "${s.output == 1", "${} == 1"])
def test_a_broken_reference_is_not_said_to_be_a_literal_that_expressions_do_not_have(text: str) -> None:
    problems = read_expression(text, ("steps", "c")).problems
    assert [problem.code for problem in problems] == ["malformed_reference"]
    assert "$${" not in problems[0].message
