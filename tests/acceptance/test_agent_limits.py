"""`forkjoin agents limit` on the real thing: two orchestrators, three workers, RabbitMQ and Postgres."""

import json
from pathlib import Path
from typing import Any

from tests.acceptance.alone import block_of, nap
from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.acceptance.journal import occupancy, read_journal
from tests.acceptance.test_agents import listed, rows, submit

BRANCHES = 60
NAP = {"agent_name": "nap", "input_mapping": {"n": 0, "seconds": 0.05}}


def limit(cluster: Cluster, *options: str) -> Any:
    return cluster.forkjoin("agents", "limit", *options)


def limited(cluster: Cluster, *options: str) -> None:
    done = limit(cluster, "nap", *options)
    assert done.returncode == 0, done.stderr


def document(directory: Path, workflow: dict[str, Any]) -> str:
    path = directory / "workflow.json"
    path.write_text(json.dumps(workflow))
    return str(path)


def started(cluster: Cluster) -> int:
    return len(read_journal(cluster.journal)) if cluster.journal.exists() else 0


def test_no_more_attempts_of_an_agent_run_at_once_than_its_limit_says_and_a_change_holds_at_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    limited(cluster, "--concurrency", "3")
    for _ in range(2):
        cluster.start_orchestrator()
    for _ in range(3):
        cluster.start_worker("--concurrency", "100")
    submit(cluster, tmp_path, block_of(*[NAP] * BRANCHES))
    wait_until(lambda: started(cluster) >= 30, PATIENCE, lambda: "no attempt was made")
    before = len(read_journal(cluster.journal))
    limited(cluster, "--concurrency", "8")
    submit(cluster, tmp_path, block_of(*[nap(0.3)] * BRANCHES))  # a busy machine takes its time between two starts
    wait_until(lambda: started(cluster) == 2 * BRANCHES, PATIENCE, lambda: f"{started(cluster)} attempts have ended")

    executions = read_journal(cluster.journal)
    assert occupancy(executions[:before]).highest == 3
    assert occupancy(executions).highest == 8


def test_who_waits_for_the_limit_is_shown(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_orchestrator()
    cluster.start_worker()
    limited(cluster, "--concurrency", "1", "--rate", "600/m")
    done = cluster.forkjoin("submit", document(tmp_path, block_of(*[nap() for _ in range(3)])))
    run_id = done.stdout.strip()
    wait_until(
        lambda: listed(cluster).get("nap", {}).items() >= {"running": 1, "waiting": 2, "queued": 0}.items(),
        PATIENCE,
        lambda: str(listed(cluster)),
    )

    assert listed(cluster)["nap"]["limit"] == {"max_concurrency": 1, "rate_per_second": 10.0}
    tries = iter(lambda: cluster.forkjoin("agents", "list"), None)  # a busy broker may not answer within the time
    shown = next(done for done in tries if "queues are" not in done.stderr)
    header, line = rows(shown.stdout)
    assert header == [
        "agent", "queue", "ready", "consumers", "limit", "waiting", "QUEUED", "RUNNING", "PENDING", "workers"
    ]  # fmt: skip
    assert line[:-1] == ["nap", "agent.nap", "0", "1", "1 at once, 10/s", "2", "0", "1", "0"]
    tree = cluster.forkjoin("runs", "show", run_id).stdout
    assert tree.count('waits for a slot of its agent "nap" (1 at once, 10/s), since ') == 2
    steps = json.loads(cluster.forkjoin("runs", "show", run_id, "--json").stdout)["steps"]
    waiting = [step["waiting_for"] for step in steps if (step["waiting_for"] or {}).get("kind") == "agent_slot"]
    assert len(waiting) == 2
    expected = {"agent_name": "nap", "max_concurrency": 1, "rate_per_second": 10.0}
    assert all(one.items() >= expected.items() for one in waiting)


def test_the_command_changes_what_it_names_and_says_what_the_limit_is(cluster: Cluster) -> None:
    told = []
    for options, written in [
        (("--concurrency", "5"), "research: 5 at once"),
        (("--rate", "100/h"), "research: 5 at once, 100/h"),
        (("--concurrency", "none"), "research: 100/h"),
        (("--rate", "none"), "research: no limit"),
    ]:
        done = limit(cluster, "research", *options)
        assert (done.returncode, done.stdout.strip()) == (0, written)
        told.append(done.stderr.strip())
    assert told == ['forkjoin: no attempt of "research" is open, and no recent run had any', "", "", ""]
    done = limit(cluster, "research", "--concurrency", "2", "--rate", "0.5/s", "--json")
    assert json.loads(done.stdout) == {"agent_name": "research", "max_concurrency": 2, "rate_per_second": 0.5}
    assert listed(cluster)["research"]["limit"] == {"max_concurrency": 2, "rate_per_second": 0.5}
