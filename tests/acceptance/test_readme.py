"""What the READMEs say is so: commands, queries, scripts, tables, links."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from agent_worker.settings import WorkerSettings
from messaging.settings import PREFIX, ServiceSettings
from orchestrator.engine import codes
from orchestrator.settings import Settings
from schemas.validation import validate_workflow
from schemas.worker_codes import WorkerErrorCode
from tests.acceptance.cluster import PATIENCE, ROOT, Cluster, wait_until
from tests.acceptance.readme import Readme, run_as_written
from tests.property.cases import lanes

README = Readme("README.md")
WITH_COMMANDS = ["README.md", "examples/README.md", "agent_worker/README.md", "deploy/rabbitmq/README.md"]


def test_the_commands_and_queries_of_the_readme_work(cluster: Cluster, tmp_path: Path) -> None:
    shown = run_as_written(README, cluster, tmp_path)

    assert '"primes": 78498' in shown
    assert "# About fork and join" in shown, "the report that the pika script waited for"
    assert "registered parallel-example version 1.0" in shown
    assert '"workflow_id": "parallel-example"' in shown, "the document that was registered"
    assert "team=search" in shown
    assert re.search(r"^primes +agent\.primes +\d+ +3 ", shown, re.MULTILINE), "an agent with its queue and consumers"
    for query in README.blocks("sql"):
        rows = asyncio.run(fetch(cluster.database_url, query))
        assert rows or query.startswith("DELETE"), f"no rows from:\n{query}"


def test_the_query_for_branches_gives_them_in_the_order_of_the_definition(cluster: Cluster) -> None:
    cluster.start_orchestrator()
    cluster.start_worker(registry="examples.agents:agents")
    example, given = "examples/parallel_workflow_example.json", "@examples/parallel_workflow_input.json"
    done = cluster.forkjoin("submit", example, "--input", given, "--wait")
    assert done.returncode == 0, done.stderr

    branches, joined = (asyncio.run(fetch(cluster.database_url, query)) for query in README.blocks("sql")[1:3])

    assert [(row["parent_step_id"], row["branch_name"], row["join_policy"], row["status"]) for row in branches] == [
        ("parallel-block-1", name, "all", "COMPLETED") for name in ("step-a", "step-b", "step-c")
    ]
    [row] = joined
    assert list(json.loads(row["joined"])) == ["step-a", "step-b", "step-c"]
    assert json.loads(row["joined"])["step-a"] == json.loads(row["step_a"])


@pytest.mark.parametrize("path", WITH_COMMANDS[1:])
def test_the_commands_of_the_other_readmes_work(cluster: Cluster, tmp_path: Path, path: str) -> None:
    shown = run_as_written(Readme(path), cluster, tmp_path)

    if path == "examples/README.md":
        assert "2 of 3 documents were read" in shown
        assert '"primes": 78498' in shown
        assert "there is no document documents/sequel.txt" in shown


def test_no_readme_with_commands_is_forgotten() -> None:
    found = [path.relative_to(ROOT) for path in ROOT.rglob("README.md") if ".venv" not in path.parts]
    assert {str(path) for path in found if Readme(str(path)).blocks("sh")} == set(WITH_COMMANDS)


def test_the_script_for_pika_is_the_one_in_the_examples() -> None:
    quoted = re.search(r"<!-- (\S+) -->\n```python\n(.*?)```", README.text, re.DOTALL)
    assert quoted is not None
    assert quoted[2] == (ROOT / quoted[1]).read_text(encoding="utf-8")


def test_the_workflow_of_the_readme_runs_with_the_agents_of_the_readme(cluster: Cluster, tmp_path: Path) -> None:
    [document] = [block for block in map(json.loads, README.blocks("json")) if "steps" in block]
    assert validate_workflow(document) == []
    (tmp_path / "workflow.json").write_text(json.dumps(document))
    (tmp_path / "agents.py").write_text(README.files()["my_agents.py"])

    done = cluster.forkjoin(
        "run", str(tmp_path / "workflow.json"), "--input", '{"topic": "joins"}', "--data-dir", str(tmp_path / "data")
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"text": "About joins: all about joins"}


def test_the_steps_that_the_readme_shows_are_valid() -> None:
    shown = [block for block in map(json.loads, README.blocks("json")) if "steps" not in block]
    assert [step["type"] for step in shown] == ["fork_join", "loop", "conditional", "sub_workflow"]
    for step in shown:
        edges = [step.get(name) for name in ("next_step", "if_true_step", "if_false_step")]
        others = [*edges, *(inner for lane in lanes(step).values() for inner in lane)]
        agents = {name: {"agent_name": "x"} for name in others if name is not None}
        steps = {"s": {"agent_name": "x", "next_step": "it"}, "it": step, **agents}
        assert validate_workflow({"name": "shown", "start_step": "s", "steps": steps}) == []


def test_the_script_that_follows_events_sees_a_run_from_its_start_to_its_end(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_orchestrator()
    cluster.start_worker(registry="examples.agents:agents")
    script, output = tmp_path / "follow_events.py", tmp_path / "events"
    script.write_text(README.files()[script.name])
    with output.open("wb") as target:
        following = subprocess.Popen([sys.executable, str(script)], env=cluster.environment, stdout=target)
    try:
        wait_until(lambda: "listening" in output.read_text(), PATIENCE, lambda: "it does not listen")
        submitted = cluster.forkjoin("submit", "examples/parallel_workflow_example.json", "--input", "{}")
        run_id = submitted.stdout.strip()
        wait_until(lambda: ended(output.read_text(), run_id), PATIENCE, output.read_text)
    finally:
        following.kill()
        following.wait()

    lines = [line.split() for line in output.read_text().splitlines() if line.startswith(run_id)]
    assert (lines[0][2:], lines[-1][2:]) == (["run", "RUNNING"], ["run", "FAILED"])
    assert ["step-a", "FAILED"] in [line[2:] for line in lines]


def ended(shown: str, run_id: str) -> bool:
    return any(line.startswith(run_id) and line.endswith("run FAILED") for line in shown.splitlines())


def test_every_setting_stands_in_the_readme_with_its_default_and_its_readers() -> None:
    rows = re.findall(r"^\| `(FORKJOIN_\w+)` \| ([OW ]+?) \| (.*?) \| (.+) \|$", README.text, re.MULTILINE)
    documented = {name: (readers, default.strip("` "), what) for name, readers, default, what in rows}
    expected: dict[str, tuple[str, str, str]] = {}
    for reader, settings in (("O", Settings), ("W", WorkerSettings)):
        for name, (default, what) in described(settings).items():
            others = f"{expected[name][0]} " if name in expected else ""
            expected[name] = (others + reader, default, what)
    assert documented == expected


def described(settings: type[ServiceSettings]) -> dict[str, tuple[str, str]]:
    return {
        f"{PREFIX}{name.upper()}": (default_text(field), field.description or "")
        for name, field in settings.model_fields.items()
    }


def default_text(field: Any) -> str:
    if field.default_factory is not None:
        return "host, pid and a random part"
    value = field.default.get_secret_value() if hasattr(field.default, "get_secret_value") else field.default
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)


STEP_CODES = {
    codes.AGENT_ERROR, codes.BRANCHES_FAILED, codes.REFERENCE_BROKEN, codes.TIMEOUT, codes.QUEUE_TIMEOUT,
    codes.HEARTBEAT_TIMEOUT, codes.UNKNOWN_AGENT, codes.SUB_WORKFLOW_FAILED, codes.SUB_WORKFLOW_CANCELLED,
    codes.SUB_WORKFLOW_CYCLE, codes.SUB_WORKFLOW_TOO_DEEP, *WorkerErrorCode,
}  # fmt: skip
RUN_CODES = {codes.STEP_FAILED, codes.CANCELLED, codes.RUN_TIMEOUT}
REJECTIONS = {
    "malformed_message", "unsupported_version", "invalid_workflow", "unknown_workflow", codes.RUN_ID_CONFLICT,
    codes.UNKNOWN_RUN, codes.RUN_GOES_ON, codes.RUN_COMPLETED, codes.NOT_AWAITED, "internal_error",
}  # fmt: skip


@pytest.mark.parametrize(
    ("title", "expected"),
    [("Code of a step", STEP_CODES), ("Code of a run", RUN_CODES), ("Code of a REJECTED request", REJECTIONS)],
)
def test_every_error_code_stands_in_the_readme(title: str, expected: set[str]) -> None:
    table = README.text.split(f"| {title} |", 1)[1].split("\n\n", 1)[0]
    named = {code for row in table.splitlines()[2:] for code in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == expected


def test_make_run_is_the_command_that_the_readme_says() -> None:
    [first, *_] = README.blocks("sh")
    assert first.splitlines()[0] in expanded("run")


@pytest.mark.parametrize("command", ["ruff check", "mypy", "lint-imports", 'pytest -m "not slow"'])
def test_make_test_checks_style_types_and_layers_and_runs_the_tests(command: str) -> None:
    assert command in expanded("test")


def expanded(target: str) -> str:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "path", sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.md") if ".venv" not in path.parts)
)
def test_every_link_within_the_repository_leads_somewhere(path: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", Readme(path).text)
    assert [link for link in links if not ((ROOT / path).parent / link).exists()] == []


async def fetch(url: str, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(query))
    finally:
        await connection.close()
