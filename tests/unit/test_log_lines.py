"""What every line of the log has: a constant sentence, and a slug by which programs know it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agent_worker", "messaging", "orchestrator", "schemas")
SEVERITIES = {"debug", "info", "warning", "error", "exception", "critical"}


def log_calls() -> dict[str, ast.Call]:
    found = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("log"), attr=severity)) if severity in SEVERITIES:
                    found[f"{path.relative_to(ROOT)}:{node.lineno}"] = node
    return found


CALLS = log_calls()


def slug_of(call: ast.Call) -> str | None:
    slugs = [keyword.value for keyword in call.keywords if keyword.arg == "action"]
    return slugs[0].value if len(slugs) == 1 and isinstance(slugs[0], ast.Constant) else None


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_each_line_is_a_constant_sentence_with_a_slug(call: ast.Call) -> None:
    [sentence] = call.args
    assert isinstance(sentence, ast.Constant), "what changes belongs into fields"
    assert sentence.value[:1].isupper()
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", slug_of(call) or ""), "action=… is missing, or is no slug"


def test_all_lines_are_looked_at_here() -> None:
    assert len(CALLS) > 70
    nobody = [
        path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "getLogger(__" in path.read_text()
    ]
    assert nobody == [], "they log past structlog"
