"""FAULTS rows 32 to 36: what the broker refuses, returns or gives up, and what becomes of it."""

import json
import time
from urllib.parse import urlsplit

import pytest

from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.faults import wire
from tests.faults.oracles import Expected, check, fetch, record_history
from tests.faults.recovery import Recovery
from tests.faults.scene import assert_quiet, block, end_of, executions, logged, logs, start_worker, submit
from tests.services.rabbitmq import RabbitMQ

ONE = {"name": "by-hand", "start_step": "one", "steps": {"one": {"agent_name": "by-hand"}}}
DONE = {"": "COMPLETED", "one": "COMPLETED"}
RETURNED = 2  # deliveries after which the broker gives a message up, in these tests

# A bug of ours: a result of this worker cannot be applied, whenever it comes.
CURSE = """
    CREATE FUNCTION cursed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.worker_id = 'cursed' THEN RAISE EXCEPTION 'this result is cursed'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER cursed BEFORE UPDATE ON step_executions FOR EACH ROW EXECUTE FUNCTION cursed();
"""


@pytest.mark.parametrize(
    ("queue", "command"),
    [
        ("orchestrator.results", ("orchestrator", "serve")),
        ("agent.echo", ("agent_worker", "tests.acceptance.journal_agents:agents")),
    ],
)
def test_a_queue_with_other_arguments_ends_the_start_with_its_name(
    cluster: Cluster, queue: str, command: tuple[str, ...]
) -> None:
    with wire.channel(cluster) as channel:
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "classic"})
    service = cluster.launch(*command)
    assert service.end() == 1
    log = service.log.read_text()
    assert "Traceback" not in log
    parts = (queue, "x-queue-type", "quorum", "classic")
    assert [line for line in log.splitlines() if all(part in line for part in parts)], log


def test_a_task_that_no_worker_ever_offered_to_do_fails_its_branch_after_the_wait_and_is_seen_meanwhile(
    cluster: Cluster, recovery: Recovery
) -> None:
    orchestrator = cluster.start_orchestrator(FORKJOIN_UNKNOWN_AGENT_AFTER="600")
    worker = start_worker(cluster)
    workflow = block("mortal", {name: {} for name in ("a", "b", "c")}, max_parallelism=1)
    workflow["steps"]["b"]["agent_name"] = "nobody"
    recovery.injected()
    run_id = submit(cluster, workflow)
    wait_until(lambda: logged([orchestrator], "task_unroutable") != [], PATIENCE, lambda: logs(cluster))
    shown = cluster.forkjoin("runs", "show", run_id)
    assert 'none has ever declared agent "nobody"' in " ".join(shown.stdout.split())
    # The wait is over: the first return was longer ago. A real wait would be too short for some machine's `runs show`.
    fetch(cluster, "UPDATE outbox SET returned_at = returned_at - interval '600 seconds' WHERE returned_at IS NOT NULL")

    ended = end_of(cluster, run_id)
    recovery.note(("block ended", time.monotonic()))
    assert ended.statuses() == {"block": "FAILED", "a": "COMPLETED", "b": "FAILED", "c": "COMPLETED"}
    assert ended.error("b")["code"] == "unknown_agent"
    assert executions(cluster) == {"a": 1, "c": 1}
    assert worker.stop() == 0
    assert_quiet(cluster, "mortal")


@pytest.mark.slow
def test_a_result_that_the_broker_gave_up_is_a_dead_letter_whose_replay_has_the_original_effect_once(
    cluster: Cluster, rabbitmq: RabbitMQ
) -> None:
    if rabbitmq.management is None:
        pytest.skip("needs RabbitMQ's management API, to set a policy")
    record_history(cluster.database_url)
    first = cluster.start_orchestrator()
    run_id, task_id = queued(cluster)
    assert first.stop() == 0
    vhost = urlsplit(cluster.amqp_url).path.removeprefix("/")
    definition = {"delivery-limit": RETURNED, "dead-letter-exchange": "orchestrator.dead-letters"}
    policy = {"pattern": r"^orchestrator\.results$", "definition": definition, "apply-to": "queues"}
    rabbitmq.management.call("PUT", f"/policies/{vhost}/forkjoin", policy)
    wire.publish(cluster, wire.RESULTS, "AgentResult", [wire.result(run_id, task_id, "done")])
    wait_until(lambda: given_up(cluster), PATIENCE, lambda: "the broker did not give the message up")

    cluster.start_orchestrator()
    assert dead_letter(cluster) == ("broker_delivery_limit", "orchestrator.results", run_id)
    others_complete(cluster)
    replay(cluster)
    check(cluster, {run_id: Expected("COMPLETED", "done", {"one": "COMPLETED"})}, agents=("by-hand", "echo"))


def given_up(cluster: Cluster) -> bool:
    wire.take_and_drop(cluster, "orchestrator.results")
    return wire.depth(cluster, "orchestrator.dead-letters") == 1


def test_a_result_that_our_code_always_fails_on_is_tried_once_and_its_replay_counts_when_the_bug_is_gone(
    cluster: Cluster,
) -> None:
    record_history(cluster.database_url)
    orchestrator = cluster.start_orchestrator()
    run_id, task_id = queued(cluster)
    for statement in CURSE.split(";\n    CREATE TRIGGER"):
        fetch(cluster, statement if "FUNCTION cursed() RETURNS" in statement else "CREATE TRIGGER" + statement)
    wire.publish(cluster, wire.RESULTS, "AgentResult", [wire.result(run_id, task_id, "done", worker_id="cursed")])
    assert dead_letter(cluster) == ("internal_error", "orchestrator.results", run_id)
    others_complete(cluster)
    assert len(logged([orchestrator], "input_failed")) == 1, "one delivery, no loop"

    fetch(cluster, "DROP TRIGGER cursed ON step_executions")
    replay(cluster)
    check(cluster, {run_id: Expected("COMPLETED", "done", {"one": "COMPLETED"})}, agents=("by-hand", "echo"))


def queued(cluster: Cluster) -> tuple[str, str]:
    """Submit a run of one step that no worker does; return its id and that of its task, which is with nobody."""
    wire.declare_agent(cluster, "by-hand")
    run_id = submit(cluster, ONE)
    wait_until(lambda: wire.depth(cluster, "agent.by-hand") == 1, PATIENCE, lambda: logs(cluster))
    with wire.channel(cluster) as channel:
        channel.basic_get("agent.by-hand", auto_ack=True)
    (row,) = fetch(cluster, "SELECT task_id::text FROM step_executions WHERE run_id::text = $1", run_id)
    return run_id, row["task_id"]


def dead_letter(cluster: Cluster) -> tuple[str, str, str]:
    """Wait for the only dead letter; return its code, where it came from, and its run."""
    statement = "SELECT code, queue, run_id::text, body FROM dead_letters"
    wait_until(lambda: fetch(cluster, statement) != [], PATIENCE, lambda: logs(cluster))
    (row,) = fetch(cluster, statement)
    assert json.loads(row["body"])["run_id"] == row["run_id"]
    return row["code"], row["queue"], row["run_id"]


def others_complete(cluster: Cluster) -> None:
    """Check O8: an unrelated run completes."""
    cluster.start_worker()
    workflow = {"name": "other", "start_step": "one", "steps": {"one": {"agent_name": "echo"}}}
    assert end_of(cluster, submit(cluster, workflow)).status == "COMPLETED"


def replay(cluster: Cluster) -> None:
    """Replay all dead letters by the command."""
    done = cluster.forkjoin("dead-letters", "replay", "--all", "--yes")
    assert done.returncode == 0, done.stderr
