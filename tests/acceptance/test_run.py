"""`forkjoin run`: workflows from start to end in one process, and what is kept of them."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.alone import Alone, block_of, echo, fail, nap
from tests.acceptance.cluster import PATIENCE, ROOT
from tests.acceptance.journal import occupancy, read_journal
from tests.property.cases import lanes

INPUTS = {
    "parallel_workflow_example": ["--input", "@examples/parallel_workflow_input.json"],
    "failure_handling": ["--input", "@examples/failure_handling_input.json"],
    "many_branches": [],
    "retries": [],
    "fork_join": [],
    "conditional": [],
    "nested_blocks": [],
    "time_limits": [],
    "loop": [],
    "sub_workflow": ["--with", "examples/document_analysis.json"],
    "document_analysis": ["--input", '{"path": "documents/queues.txt"}'],
}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    """The runs of all tests that kill nothing are kept in one place."""
    alone = Alone(tmp_path_factory.mktemp("examples"))
    yield alone
    alone.stop()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    alone = Alone(tmp_path)
    yield alone
    alone.stop()


@pytest.mark.parametrize("name", INPUTS)
def test_each_example_gives_its_output_shows_its_progress_and_is_kept(example: Alone, name: str) -> None:
    done = example.forkjoin("run", f"examples/{name}.json", *INPUTS[name], FORKJOIN_AGENTS="examples.agents:agents")

    assert done.returncode == 0, done.stderr
    assert "result" in done.stdout
    first, *progress = done.stderr.splitlines()
    run_id = first.removeprefix("run ")
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3}  [A-Z]+ +\S", line) for line in progress)
    assert (progress[0].split()[1:], progress[-1].split()[1:]) == (["RUNNING", "run"], ["COMPLETED", "run"])

    shown = example.forkjoin("runs", "show", run_id).stdout
    assert all(step in shown for step in ["COMPLETED", *unbranched(name)])


def test_the_agents_of_kept_runs_are_listed_and_their_queues_ended_with_the_runs(example: Alone) -> None:
    done = example.forkjoin("run", "examples/retries.json", FORKJOIN_AGENTS="examples.agents:agents")
    assert done.returncode == 0, done.stderr

    listed = example.forkjoin("agents", "list")

    assert listed.returncode == 0
    assert ["look-up", "0", "0", "0"] in [line.split() for line in listed.stdout.splitlines()]
    assert listed.stderr == "forkjoin: queues are not shown: those of `forkjoin run` end with it\n"


def test_the_limit_of_an_agent_is_kept_and_holds(alone: Alone) -> None:
    assert alone.forkjoin("run", alone.write(block_of(nap(0)))).returncode == 0
    done = alone.forkjoin("agents", "limit", "nap", "--concurrency", "2")
    assert (done.returncode, done.stdout) == (0, "nap: 2 at once\n")

    assert alone.forkjoin("run", alone.write(block_of(*[nap(0.1)] * 8))).returncode == 0

    assert occupancy(read_journal(alone.directory / "journal")).highest == 2


def test_the_attempts_of_a_step_are_shown_with_their_errors(example: Alone) -> None:
    done = example.forkjoin("run", "examples/retries.json", FORKJOIN_AGENTS="examples.agents:agents")
    run_id = done.stderr.splitlines()[0].removeprefix("run ")

    shown = example.forkjoin("runs", "show", run_id).stdout
    described = json.loads(example.forkjoin("runs", "show", run_id, "--json").stdout)

    assert (
        shown.count("429 Too Many Requests [agent_error]") == shown.count("503 Service Unavailable [agent_error]") == 2
    )
    steps = {step["step_id"]: step for step in described["steps"]}
    assert [(one["attempt"], one["error"]["code"]) for one in steps["first"]["earlier_attempts"]] == [
        (1, "agent_error"),
        (2, "agent_error"),
    ]
    assert (steps["first"]["attempt"], steps["first"]["status"]) == (3, "COMPLETED")


def test_runs_of_sub_workflows_are_kept_with_the_run_that_they_belong_to(example: Alone) -> None:
    command = ["run", "examples/sub_workflow.json", "--with", "examples/document_analysis.json", "--json"]
    done = example.forkjoin(*command, FORKJOIN_AGENTS="examples.agents:agents")
    run_id = json.loads(done.stdout)["run_id"]

    described = json.loads(example.forkjoin("runs", "show", run_id, "--json").stdout)
    steps = {step["step_id"]: step for step in described["steps"]}
    below = {name: steps[name]["child"] for name in ("first", "second", "third")}
    shown = example.forkjoin("runs", "show", below["third"]["run_id"]).stdout
    listed = [example.forkjoin("runs", "list", *option, "--json").stdout for option in ([], ["--children"])]

    assert [child["status"] for child in below.values()] == ["COMPLETED", "COMPLETED", "FAILED"]
    assert f"carries out step third of run {run_id}" in shown
    own, everything = ({run["run_id"]: run["parent_run_id"] for run in json.loads(runs)} for runs in listed)
    assert run_id in own
    assert not any(child["run_id"] in own for child in below.values())
    assert [everything[child["run_id"]] for child in below.values()] == [run_id] * 3


def test_a_run_that_ends_before_those_below_it_leaves_none_of_them_open(example: Alone) -> None:
    names = ["top", "upper", "middle", "lower", "naps"]
    documents = [
        {"name": name, "start_step": "s", "steps": {"s": {"type": "sub_workflow", "workflow_id": below}}}
        for name, below in pairwise(names)
    ]
    documents = [documents[0] | {"timeout_seconds": 2}, *documents[1:], block_of(nap(60)) | {"workflow_id": "naps"}]
    files = [example.write(document, f"{name}.json") for name, document in zip(names, documents, strict=True)]

    done = example.forkjoin("run", files[0], *(part for file in files[1:] for part in ("--with", file)))

    assert done.returncode == 1, done.stderr
    listed = json.loads(example.forkjoin("runs", "list", "--children", "--limit", "5", "--json").stdout)
    statuses = {run["workflow_id"]: run["status"] for run in listed}
    assert statuses == {"top": "FAILED"} | dict.fromkeys(names[1:], "CANCELLED")


def unbranched(name: str) -> set[str]:
    """Return the steps that are nobody's branches and that the run passes."""
    steps: dict[str, Any] = json.loads((ROOT / f"examples/{name}.json").read_text())["steps"]
    branches = {branch for step in steps.values() for lane in lanes(step).values() for branch in lane}
    choices = [steps[branch] for branch in branches if "condition" in steps[branch]]
    branches |= {str(choice.get(path)) for choice in choices for path in ("if_true_step", "if_false_step")}
    return set(steps) - branches - {"full-report"}


def test_a_run_is_kept_for_people_and_for_programs(example: Alone) -> None:
    done = example.forkjoin("run", example.write(block_of(echo(a=1), echo(a=2))), "--label", "team=blue", "--json")
    result = json.loads(done.stdout)
    run_id = result["run_id"]

    listed = example.forkjoin("runs", "list", "--label", "team=blue").stdout
    described = json.loads(example.forkjoin("runs", "show", run_id, "--json").stdout)

    assert (done.returncode, result["status"], result["error"]) == (0, "COMPLETED", None)
    assert re.search(rf"^{run_id}  test +COMPLETED .*  team=blue *$", listed, re.MULTILINE), listed
    assert described["labels"] == {"team": "blue"}
    assert described["output"] == result["output"] == {"b0": {"a": 1}, "b1": {"a": 2}}
    assert {step["step_id"]: step["status"] for step in described["steps"]} == dict.fromkeys(
        ("block", "b0", "b1"), "COMPLETED"
    )


def test_a_run_that_fails_ends_with_1_and_names_each_failed_step(example: Alone) -> None:
    workflow = example.write(block_of(fail("no paper"), echo(a=1), fail("no [ink]")))

    done = example.forkjoin("run", workflow)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-2:] == ["  b0: no paper [agent_error]", "  b2: no [ink] [agent_error]"]
    run_id = done.stderr.split()[1]
    assert "no [ink] [agent_error]" in example.forkjoin("runs", "show", run_id).stdout


def test_a_run_that_fails_tells_programs_why(example: Alone) -> None:
    done = example.forkjoin("run", example.write(block_of(fail("no paper"), echo(a=1), fail("no ink"))), "--json")

    result = json.loads(done.stdout)
    assert (done.returncode, result["status"], result["error"]["code"]) == (1, "FAILED", "step_failed")
    assert [step["step_id"] for step in result["error"]["details"]["failed_steps"]] == ["b0", "b2"]


def test_a_failed_block_hands_the_outputs_of_the_others_to_its_handler(example: Alone) -> None:
    document = block_of(fail("no paper"), echo(a=1), on_failure="handler")
    document["steps"]["handler"] = echo(
        all="${block.output}", why="${b0.error.message}", fine="${b1.error.message}", text="$${b0.output}"
    )

    done = example.forkjoin("run", example.write(document))

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "all": {"b1": {"a": 1}}, "why": "no paper", "fine": None, "text": "${b0.output}"
    }  # fmt: skip


def test_a_run_that_failed_is_retried_where_it_is_kept(alone: Alone) -> None:
    paper = alone.directory / "paper"
    read = {"agent_name": "read", "input_mapping": {"path": str(paper)}}
    failed = alone.forkjoin("run", alone.write(block_of(echo(a=1), read)), "--json")
    run_id = json.loads(failed.stdout)["run_id"]
    assert failed.returncode == 1
    paper.write_text("found")

    done = alone.forkjoin("runs", "retry", run_id)

    assert (done.returncode, json.loads(done.stdout)) == (0, {"b0": {"a": 1}, "b1": {"text": "found"}}), done.stderr
    again = alone.forkjoin("runs", "retry", done.stderr.splitlines()[0].removeprefix("run "))
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.endswith("is COMPLETED: there is nothing to retry [run_completed]\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_run_and_the_command_ends_though_its_agents_would_go_on(
    alone: Alone, number: signal.Signals
) -> None:
    command = alone.start_run(alone.write(block_of(nap(), nap())))

    command.process.send_signal(number)
    code = command.process.wait(PATIENCE / 2)  # the worker's own patience with what runs is 30 seconds

    assert code == 1
    assert command.log.read_text().endswith(f"run {command.run_id} CANCELLED: interrupted [cancelled]\n")
    kept = json.loads(alone.forkjoin("runs", "show", command.run_id, "--json").stdout)
    assert (kept["status"], kept["error"]["message"]) == ("CANCELLED", "interrupted")
    assert {step["status"] for step in kept["steps"]} == {"CANCELLED"}


def test_a_run_whose_process_was_killed_is_cancelled_by_the_next_one(alone: Alone) -> None:
    command = alone.start_run(alone.write(block_of(nap(), nap())))
    command.process.kill()
    command.process.wait()

    done = alone.forkjoin("run", alone.write(block_of(echo(a=1))))

    assert (done.returncode, json.loads(done.stdout)) == (0, {"b0": {"a": 1}}), done.stderr
    kept = json.loads(alone.forkjoin("runs", "show", command.run_id, "--json").stdout)
    assert kept["status"] == "CANCELLED"
    assert kept["error"]["message"] == "the process that ran it ended before it was finished"


def test_two_runs_at_once_in_one_data_directory_are_one_too_many(alone: Alone) -> None:
    first = alone.start_run(alone.write(block_of(nap())))
    try:
        second = alone.forkjoin("run", alone.write(block_of(echo(a=1))))
        listed = alone.forkjoin("runs", "list")
    finally:
        first.process.terminate()
        first.process.wait(PATIENCE)

    assert (second.returncode, second.stdout) == (2, "")
    assert "another `forkjoin run` is using this data directory: wait for it, or give another one" in second.stderr
    assert f"{first.run_id}  test      RUNNING" in listed.stdout, "looking at it is allowed meanwhile"


@pytest.mark.parametrize(("level", "lines"), [(None, False), ("info", True)])
def test_the_log_is_silent_unless_it_was_asked_for(example: Alone, level: str | None, lines: bool) -> None:
    more = {} if level is None else {"FORKJOIN_LOG_LEVEL": level, "FORKJOIN_LOG_FORMAT": "json"}

    done = example.forkjoin("run", example.write(block_of(echo(a=1))), **more)

    assert done.returncode == 0, done.stderr
    assert ("orchestrator_ready" in done.stderr) is lines


def test_on_a_terminal_progress_is_a_picture_that_ends_with_the_whole_run(example: Alone) -> None:
    workflow = example.write(block_of(*(echo(n=n) for n in range(30)), max_parallelism=5))

    code, shown = in_terminal(example, "run", workflow)

    assert code == 0
    last = shown[shown.rindex("block ") :]
    assert re.match(r"block +COMPLETED +\S+ 30/30", last), last
    assert re.search(r"^run +COMPLETED +\d+\.\d s", last, re.MULTILINE)
    assert '"b29": {' in last, "the output follows"


def in_terminal(alone: Alone, *arguments: str) -> tuple[int, str]:
    """Run a command on a terminal of 100 columns; return its exit code and what the terminal got, without colours."""
    ours, theirs = pty.openpty()
    environment = {**alone.environment, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    command = [sys.executable, "-m", "orchestrator", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while piece := read_terminal(ours):
        shown += piece
    os.close(ours)
    text = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown.decode())
    return process.wait(PATIENCE), text.replace("\r\n", "\n")


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # how Linux says that nobody holds the other end any more
        return b""
