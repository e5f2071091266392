"""`forkjoin runs retry` against an orchestrator and a worker."""

import json
from pathlib import Path
from uuid import uuid4

from tests.acceptance.alone import block_of, echo, fail, nap
from tests.acceptance.cluster import Cluster
from tests.acceptance.journal import read_journal


def written(directory: Path, document: dict[str, object]) -> str:
    path = directory / "workflow.json"
    path.write_text(json.dumps(document))
    return str(path)


def failed(cluster: Cluster, directory: Path) -> str:
    """Let a run fail that would complete from now on, and return its id: of its two branches one has completed."""
    paper = directory / "paper"
    read = {"agent_name": "read", "input_mapping": {"path": str(paper)}}
    workflow = written(directory, block_of(nap(0.01), read))
    done = cluster.forkjoin("submit", workflow, "--label", "team=search", "--wait", "--json")
    assert done.returncode == 1, done.stderr
    paper.write_text("found")
    return str(json.loads(done.stdout)["run_id"])


def test_a_failed_run_is_retried_and_only_what_was_not_completed_runs_again(standing: Cluster, tmp_path: Path) -> None:
    old = failed(standing, tmp_path)
    done = standing.forkjoin("runs", "retry", old, "--wait", "--json")

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["status"], list(told["output"])) == ("COMPLETED", ["b0", "b1"])
    assert told["output"]["b1"] == {"text": "found"}
    assert done.stderr.splitlines()[0] == f"run {told['run_id']}"
    assert "COMPLETED  block / b1" in done.stderr
    executed = [execution.step_id for execution in read_journal(standing.journal) if execution.run_id == told["run_id"]]
    assert executed == ["b1"]


def test_both_runs_are_shown_with_each_other(standing: Cluster, tmp_path: Path) -> None:
    old = failed(standing, tmp_path)
    new = standing.forkjoin("runs", "retry", old).stdout.strip()
    assert standing.forkjoin("runs", "watch", new).returncode == 0

    assert f"retry of {old}\n" in standing.forkjoin("runs", "show", new).stdout
    shown = standing.forkjoin("runs", "show", old).stdout
    assert f"retried as {new}\n" in shown
    assert "FAILED" in shown.splitlines()[0]
    listed = json.loads(standing.forkjoin("runs", "list", "--json", "--label", "team=search").stdout)
    related = {run["run_id"]: (run["retry_of"], run["retried_as"], run["labels"]) for run in listed}
    assert related[old] == (None, [new], {"team": "search"})
    assert related[new] == (old, [], {"team": "search"})


def test_the_same_id_for_the_new_run_again_is_the_same_run(standing: Cluster, tmp_path: Path) -> None:
    old, new = failed(standing, tmp_path), str(uuid4())
    first, again = (standing.forkjoin("runs", "retry", old, "--run-id", new, "--json") for _ in range(2))
    assert json.loads(first.stdout) == json.loads(again.stdout) == {"run_id": new}

    waited = standing.forkjoin("runs", "retry", old, "--run-id", new, "--wait")
    assert waited.returncode == 0, waited.stderr
    assert [execution.run_id for execution in read_journal(standing.journal)].count(new) == 1


def test_a_run_that_fails_again_ends_with_1_and_names_the_failed_steps(standing: Cluster, tmp_path: Path) -> None:
    submitted = standing.forkjoin(
        "submit", written(tmp_path, block_of(fail("no paper"), echo(a=1))), "--wait", "--json"
    )
    done = standing.forkjoin("runs", "retry", json.loads(submitted.stdout)["run_id"], "--wait")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "  b0: no paper [agent_error]"


def test_what_cannot_be_retried_is_refused(standing: Cluster, tmp_path: Path) -> None:
    completed = standing.forkjoin("submit", written(tmp_path, block_of(echo(a=1))), "--wait", "--json")
    run_id = json.loads(completed.stdout)["run_id"]
    done = standing.forkjoin("runs", "retry", run_id, "--wait")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.rstrip().endswith(f"run {run_id} is COMPLETED: there is nothing to retry [run_completed]")
    nobody = standing.forkjoin("runs", "retry", str(uuid4()), "--wait", "--json")
    assert (nobody.returncode, json.loads(nobody.stdout)["error"]["code"]) == (2, "unknown_run")


def test_where_no_orchestrator_has_ever_run_nothing_is_retried(bare: Cluster) -> None:
    done = bare.forkjoin("runs", "retry", str(uuid4()))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "forkjoin: no orchestrator has ever run on this broker: start one with `forkjoin serve`"
    )
