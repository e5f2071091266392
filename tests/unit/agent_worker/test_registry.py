import functools
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict

from agent_worker import AgentContext, AgentRegistry
from agent_worker.errors import AgentInvalid


class Topic(BaseModel):
    topic: str


@pytest.fixture
def agents() -> AgentRegistry:
    return AgentRegistry()


def register(agents: AgentRegistry, function: Any) -> Any:
    return agents.agent("research")(function)


def problem_with(agents: AgentRegistry, function: Any) -> str:
    with pytest.raises(AgentInvalid) as refused:
        register(agents, function)
    assert agents.names == ()
    return str(refused.value)


def test_a_registered_function_is_returned_unchanged_and_found_by_its_name(agents: AgentRegistry) -> None:
    def research(input: dict[str, Any]) -> dict[str, Any]:
        return input

    assert register(agents, research) is research
    assert agents.names == ("research",)
    agent = agents.get("research")
    assert agent is not None
    assert agent.function is research
    assert not agent.is_async
    assert agents.get("other") is None


def test_async_functions_and_callable_objects_are_told_apart_from_sync_ones(agents: AgentRegistry) -> None:
    async def asynchronous(input): ...

    class Asynchronous:
        async def __call__(self, input): ...

    agents.agent("a")(asynchronous)
    agents.agent("b")(Asynchronous())
    agents.agent("c")(functools.partial(asynchronous))
    agents.agent("d")(lambda input: None)
    assert [agents.get(name).is_async for name in agents.names] == [True, True, True, False]  # type: ignore[union-attr]


def test_a_name_is_taken_once_and_the_error_says_by_whom(agents: AgentRegistry) -> None:
    def first(input): ...

    register(agents, first)
    with pytest.raises(AgentInvalid, match=r'"research" is registered already, by .*first'):
        agents.agent("research")


@pytest.mark.parametrize("name", ["", "two words", "a#b", "../x", "amq.x", ".x", "x" * 101])
def test_a_name_that_cannot_be_a_routing_key_is_refused(agents: AgentRegistry, name: str) -> None:
    with pytest.raises(AgentInvalid, match="cannot name an agent: an agent name"):
        agents.agent(name)


def test_the_decorator_without_its_name_says_how_to_write_it(agents: AgentRegistry) -> None:
    with pytest.raises(AgentInvalid, match=r'write `@agents.agent\("research"\)`'):

        @agents.agent  # type: ignore[arg-type]
        def research(input): ...


def test_a_function_without_an_input_is_refused(agents: AgentRegistry) -> None:
    def nothing(): ...
    def only_context(context: AgentContext): ...
    def spread(*args, **kwargs): ...

    for function in (nothing, only_context, spread):
        assert "there is no parameter for the input" in problem_with(agents, function)


def test_a_parameter_that_nothing_would_fill_is_named(agents: AgentRegistry) -> None:
    def two(topic, depth): ...

    problem = problem_with(agents, two)
    assert "nothing would fill the parameter `depth`" in problem
    assert "one dict or one pydantic model" in problem
    assert "test_registry" in problem


def test_a_parameter_with_a_default_is_left_alone(agents: AgentRegistry) -> None:
    def with_default(input, retries: int = 3): ...

    register(agents, with_default)
    assert agents.names == ("research",)


def test_two_contexts_are_refused(agents: AgentRegistry) -> None:
    def two(input, a: AgentContext, b: AgentContext): ...

    assert "`a` and `b` are both annotated AgentContext" in problem_with(agents, two)


def test_classes_generators_and_other_things_are_refused(agents: AgentRegistry) -> None:
    def generator(input):
        yield 1

    async def async_generator(input):
        yield 1

    assert "is not a function" in problem_with(agents, Topic)
    assert "is not a function" in problem_with(agents, 5)
    assert "a generator cannot be an agent" in problem_with(agents, generator)
    assert "a generator cannot be an agent" in problem_with(agents, async_generator)


def test_an_input_type_that_pydantic_cannot_read_is_refused(agents: AgentRegistry) -> None:
    class Opaque: ...

    def opaque(input: Opaque): ...

    problem = problem_with(agents, opaque)
    assert "the input cannot be read into `input:" in problem
    assert "annotate it with dict, Any or a pydantic model" in problem


def test_an_annotation_that_cannot_be_resolved_is_refused(agents: AgentRegistry) -> None:
    def lost(input: "Nowhere"): ...  # type: ignore[name-defined] # noqa: F821

    problem = problem_with(agents, lost)
    assert "'Nowhere', cannot be resolved (name 'Nowhere' is not defined)" in problem
    assert "not under TYPE_CHECKING" in problem


def test_an_annotation_as_text_is_resolved_even_from_an_enclosing_function(agents: AgentRegistry) -> None:
    class Local(BaseModel):
        topic: str

    def at_module_level(input: "Topic", context: "AgentContext"):
        return input

    def enclosed(input: "Local"):
        return Local

    agents.agent("a")(at_module_level)
    agents.agent("b")(enclosed)
    first, second = agents.get("a"), agents.get("b")
    assert first is not None
    assert second is not None
    assert first.signature.read_input is not None
    assert second.signature.read_input is not None
    assert first.signature.read_input({"topic": "x"}) == Topic(topic="x")
    assert second.signature.read_input({"topic": "x"}) == Local(topic="x")
    assert first.signature.context_name == "context"


def test_a_return_annotation_that_cannot_be_resolved_does_no_harm(agents: AgentRegistry) -> None:
    def fine(input) -> "Nowhere": ...  # type: ignore[name-defined] # noqa: F821

    register(agents, fine)
    assert agents.names == ("research",)


def test_arguments_reach_their_parameters_wherever_they_stand(agents: AgentRegistry) -> None:
    context = AgentContext(agent_name="research", run_id=None, step_id="s")  # type: ignore[arg-type]

    def last(input, context: AgentContext):
        return input, context

    def first(context: AgentContext, input):
        return input, context

    def optional(input, between: int = 1, ctx: AgentContext | None = None):
        return input, ctx

    def annotated(*, c: Annotated[AgentContext, "mine"], i):
        return i, c

    def positional(context: AgentContext, input, /):
        return input, context

    for number, function in enumerate([last, first, optional, annotated, positional]):
        agents.agent(f"agent-{number}")(function)
        agent = agents.get(f"agent-{number}")
        assert agent is not None
        args, kwargs = agent.signature.arguments("the input", context)
        assert function(*args, **kwargs) == ("the input", context), function.__name__


def test_a_strict_model_reads_json_as_json(agents: AgentRegistry) -> None:
    from datetime import date

    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        day: date

    def strict(input: Strict): ...

    register(agents, strict)
    agent = agents.get("research")
    assert agent is not None
    assert agent.signature.read_input is not None
    assert agent.signature.read_input({"day": "2026-01-31"}).day == date(2026, 1, 31)
