"""`forkjoin submit` and `forkjoin runs` against an orchestrator and a worker."""

import json
import re
from pathlib import Path
from uuid import uuid4

from tests.acceptance.alone import block_of, echo, fail, nap
from tests.acceptance.cluster import PATIENCE, ROOT, Cluster, wait_until
from tests.acceptance.journal import read_journal


def written(directory: Path, document: dict[str, object]) -> str:
    path = directory / "workflow.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_where_no_orchestrator_has_ever_run_nothing_is_submitted(bare: Cluster, tmp_path: Path) -> None:
    done = bare.forkjoin("submit", written(tmp_path, block_of(echo(a=1))))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "forkjoin: no orchestrator has ever run on this broker: start one with `forkjoin serve`"
    )
    assert "Traceback" not in done.stderr


def test_waiting_shows_the_progress_and_prints_the_output(standing: Cluster, tmp_path: Path) -> None:
    done = standing.forkjoin("submit", written(tmp_path, block_of(echo(a=1), echo(a=2))), "--wait")

    assert (done.returncode, json.loads(done.stdout)) == (0, {"b0": {"a": 1}, "b1": {"a": 2}}), done.stderr
    assert "COMPLETED  block / b1" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("COMPLETED  run")


def test_waiting_for_a_run_that_fails_ends_with_1_and_names_the_failed_steps(standing: Cluster, tmp_path: Path) -> None:
    done = standing.forkjoin("submit", written(tmp_path, block_of(fail("no paper"), echo(a=1))), "--wait")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "  b0: no paper [agent_error]"


def test_the_same_id_and_content_again_is_the_same_run(standing: Cluster, tmp_path: Path) -> None:
    run_id = str(uuid4())
    workflow = written(tmp_path, block_of(nap(0.01)))
    first = standing.forkjoin("submit", workflow, "--run-id", run_id, "--wait", "--json")
    again = standing.forkjoin("submit", workflow, "--run-id", run_id, "--wait", "--json")

    assert (first.returncode, again.returncode) == (0, 0), again.stderr
    assert json.loads(first.stdout) == json.loads(again.stdout)
    assert [execution.run_id for execution in read_journal(standing.journal)].count(run_id) == 1


def test_the_same_id_with_other_content_is_refused(standing: Cluster, tmp_path: Path) -> None:
    run_id = str(uuid4())
    workflow = written(tmp_path, block_of(echo(a=1)))
    standing.forkjoin("submit", workflow, "--run-id", run_id, "--wait")

    other = standing.forkjoin("submit", workflow, "--run-id", run_id, "--input", '{"other": true}', "--wait")

    assert (other.returncode, other.stdout) == (2, "")
    assert f"run {run_id} REJECTED: there is a run with this run_id and another body" in other.stderr
    assert other.stderr.rstrip().endswith("[run_id_conflict]")


def test_a_run_is_watched_to_its_end_and_once_more_afterwards(standing: Cluster, tmp_path: Path) -> None:
    run_id = standing.forkjoin("submit", written(tmp_path, block_of(nap(1), fail("no ink")))).stdout.strip()

    watched = standing.forkjoin("runs", "watch", run_id)
    afterwards = standing.forkjoin("runs", "watch", run_id)

    for done in (watched, afterwards):
        assert (done.returncode, done.stdout) == (1, "")
        assert "COMPLETED  block / b0" in done.stderr
        assert "FAILED     block / b1  agent_error: no ink" in done.stderr
        assert done.stderr.splitlines()[-1] == f"run {run_id} FAILED"


def test_watching_a_run_that_completes_ends_with_0(standing: Cluster, tmp_path: Path) -> None:
    run_id = standing.forkjoin("submit", written(tmp_path, block_of(echo(a=1)))).stdout.strip()
    assert standing.forkjoin("runs", "watch", run_id).returncode == 0


def test_a_run_is_cancelled_with_a_reason_though_its_agent_would_go_on(standing: Cluster, tmp_path: Path) -> None:
    run_id = standing.forkjoin("submit", written(tmp_path, block_of(nap(60))), "--label", "a=b").stdout.strip()
    wait_until(lambda: status(standing, run_id) == "RUNNING", PATIENCE, lambda: "it does not start")

    cancelled = standing.forkjoin("runs", "cancel", run_id, "--reason", "not needed")
    watched = standing.forkjoin("runs", "watch", run_id)

    assert cancelled.returncode == 0, cancelled.stderr
    assert watched.returncode == 1
    assert watched.stderr.splitlines()[-1] == f"run {run_id} CANCELLED"
    kept = json.loads(standing.forkjoin("runs", "show", run_id, "--json").stdout)
    assert (kept["error"], kept["labels"]) == ({"code": "cancelled", "message": "not needed"}, {"a": "b"})
    assert {step["status"] for step in kept["steps"]} == {"CANCELLED"}
    assert run_id in standing.forkjoin("runs", "list", "--status", "cancelled").stdout


def status(cluster: Cluster, run_id: str) -> str | None:
    done = cluster.forkjoin("runs", "show", run_id, "--json")
    return json.loads(done.stdout)["status"] if done.returncode == 0 else None


def test_a_run_that_is_not_there_is_a_mistake(standing: Cluster) -> None:
    nobody = str(uuid4())
    for command in ("show", "watch"):
        done = standing.forkjoin("runs", command, nobody)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"forkjoin: there is no run {nobody}: `forkjoin runs list` shows those that exist" in done.stderr


def test_a_registered_workflow_is_listed_for_people_and_for_programs(standing: Cluster) -> None:
    document = str(ROOT / "examples/failure_handling.json")
    assert standing.forkjoin("workflows", "register", document).stdout == "registered failure-handling version 1.0\n"

    assert "failure-handling" in standing.forkjoin("workflows", "list").stdout
    listed = json.loads(standing.forkjoin("workflows", "list", "--json").stdout)
    assert ("failure-handling", "1.0") in [(each["workflow_id"], each["version"]) for each in listed]


def registered(cluster: Cluster, directory: Path, version: str, **more: object) -> dict[str, object]:
    """Register a workflow called "greet", whose output is its version."""
    document = {"version": version, **block_of(echo(v=version)), **more, "name": "greet"}
    done = cluster.forkjoin("workflows", "register", written(directory, document))
    assert done.returncode == 0, done.stderr
    return document


def test_the_document_of_a_registered_workflow_is_shown_as_it_was_given(standing: Cluster, tmp_path: Path) -> None:
    older = registered(standing, tmp_path, "1.0", description="größer")
    newer = registered(standing, tmp_path, "2.0")

    newest = standing.forkjoin("workflows", "show", "greet")
    named = standing.forkjoin("workflows", "show", "greet", "--version", "1.0")
    described = json.loads(standing.forkjoin("workflows", "show", "greet", "--json").stdout)

    assert newest.stdout == json.dumps(newer, indent=2) + "\n"
    assert re.fullmatch(r"greet version 2\.0, registered \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", newest.stderr)
    assert named.stdout == json.dumps(older, indent=2, ensure_ascii=False) + "\n"
    assert described.pop("registered_at")
    assert described == {"workflow_id": "greet", "version": "2.0", "document": newer}


def test_a_workflow_that_is_not_registered_is_a_mistake_however_it_is_asked_for(
    standing: Cluster, tmp_path: Path
) -> None:
    registered(standing, tmp_path, "1.0")
    right = 'no workflow "gret" is registered (did you mean "greet"?); there are '

    shown = standing.forkjoin("workflows", "show", "gret")
    run = standing.forkjoin("submit", "--workflow", "gret", "--wait")
    told = standing.forkjoin("submit", "--workflow", "greet", "--version", "7", "--wait", "--json")

    assert (shown.returncode, shown.stdout) == (run.returncode, run.stdout) == (2, "")
    assert shown.stderr.startswith(f"forkjoin: {right}")
    assert f" REJECTED: {right}" in run.stderr
    assert run.stderr.rstrip().endswith("[unknown_workflow]")
    result = json.loads(told.stdout)
    assert (told.returncode, result["status"], result["error"]["code"]) == (2, "REJECTED", "unknown_workflow")
    assert 'no workflow "greet" version "7" is registered; there are versions ' in result["error"]["message"]


def test_a_registered_workflow_runs_by_its_id_and_its_runs_are_found_by_labels(
    standing: Cluster, tmp_path: Path
) -> None:
    registered(standing, tmp_path, "1.0")
    registered(standing, tmp_path, "2.0")
    submit = ("submit", "--workflow", "greet", "--input", "1", "--wait")
    blue = str(uuid4())

    newest = standing.forkjoin(*submit, "--run-id", blue, "--label", "team=blue", "--label", "env=a=b")
    again = standing.forkjoin(*submit, "--run-id", blue, "--label", "env=a=b", "--label", "team=blue")
    named = standing.forkjoin(*submit, "--version", "1.0", "--label", "team=blue", "--json")
    red = standing.forkjoin("submit", "--workflow", "greet", "--label", "team=red").stdout.strip()

    for done in (newest, again):
        assert (done.returncode, json.loads(done.stdout)) == (0, {"b0": {"v": "2.0"}}), done.stderr
    result = json.loads(named.stdout)
    assert result["output"] == {"b0": {"v": "1.0"}}
    wait_until(lambda: status(standing, red) == "COMPLETED", PATIENCE, lambda: "it does not end")
    assert listed(standing, "--label", "team=blue") == [result["run_id"], blue]
    assert listed(standing, "--label", "team=blue", "--label", "env=a=b", "--status", "completed") == [blue]
    assert listed(standing, "--workflow", "greet") == [red, result["run_id"], blue]

    shown = standing.forkjoin("runs", "list", "--label", "team=red").stdout
    assert re.search(rf"^{red} .* team=red *$", shown, re.MULTILINE), shown
    [described] = json.loads(standing.forkjoin("runs", "list", "--label", "team=red", "--json").stdout)
    assert described["labels"] == {"team": "red"}


def listed(cluster: Cluster, *options: str) -> list[str]:
    """Return the ids of the runs that `runs list` shows, the newest first."""
    done = cluster.forkjoin("runs", "list", *options, "--json")
    assert done.returncode == 0, done.stderr
    return [run["run_id"] for run in json.loads(done.stdout)]
