"""The oracles of FAULTS.md, from Postgres, the broker and the journal: what must be true after any fault.

`record_history` before the services start, then runs and faults, then `check`. In between nothing is needed: a trigger
in the test's database writes every change of a status down, in the order of the transactions.

A cluster that `check` has looked at is stopped: only then is what a service still held ready again, and countable.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import asyncpg
import pika
import pika.exceptions

from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.acceptance.journal import read_journal

RUN_FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
STEP_FINAL = RUN_FINAL | {"SKIPPED"}
UNFINISHED = frozenset({"QUEUED", "RUNNING"})
WORK_QUEUES = ("orchestrator.runs", "orchestrator.results", "orchestrator.commands", "orchestrator.dead-letters")

_HISTORY = """
    CREATE TABLE IF NOT EXISTS test_history (
        seq bigserial PRIMARY KEY, tx bigint NOT NULL DEFAULT txid_current(), run_id uuid NOT NULL,
        step_id text, parent_step_id text, before text, after text NOT NULL
    );
    CREATE OR REPLACE FUNCTION test_note_run() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO test_history (run_id, before, after)
            VALUES (NEW.id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.status END, NEW.status);
        RETURN NULL;
    END $$;
    CREATE OR REPLACE FUNCTION test_note_step() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO test_history (run_id, step_id, parent_step_id, before, after) VALUES (NEW.run_id, NEW.step_id,
            NEW.parent_step_id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.status END, NEW.status);
        RETURN NULL;
    END $$;
    CREATE OR REPLACE TRIGGER test_runs AFTER INSERT OR UPDATE ON runs
        FOR EACH ROW EXECUTE FUNCTION test_note_run();
    CREATE OR REPLACE TRIGGER test_steps AFTER INSERT OR UPDATE ON step_executions
        FOR EACH ROW EXECUTE FUNCTION test_note_step();
"""


@dataclass(frozen=True)
class Expected:
    """What a run comes to without any fault.

    Attributes:
        status: Of the run.
        output: Of the run.
        steps: The status of each step execution; None where that depends on chance, as of a run that is cancelled.
        limits: `max_parallelism` of each limited block.
        executed: The steps whose agent writes the journal: each is executed at least once.
    """

    status: str
    output: Any = None
    steps: Mapping[str, str] | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    executed: Sequence[str] = ()


def record_history(database_url: str) -> None:
    """Have a migrated database write down every change of a status from now on."""
    asyncio.run(_execute(database_url, _HISTORY))


def check(
    cluster: Cluster,
    runs: Mapping[str, Expected],
    *,
    repeats: int = 0,
    dead_letters: Sequence[str] = (),
    copies: int = 0,
    agents: Sequence[str] = (),
    seconds: float = PATIENCE,
) -> None:
    """Check O1 to O5 and O7. Stops all services of the cluster.

    Args:
        cluster: Whose database records its history.
        runs: Every run that was accepted, by id.
        repeats: How many more executions of a branch the faults allow.
        dead_letters: The predicted codes, in any order; no two of them of the same body.
        copies: How many of those may be there twice: in hand between the letter and its ack when a replica died.
        agents: Those whose queues must be empty.
        seconds: Within which all runs are to end, and all to be quiet.
    """
    check_complete(cluster, runs, seconds=seconds)
    for run_id, expected in runs.items():
        check_outcome(cluster, run_id, expected)
        check_limits(cluster, run_id, expected.limits)
    check_quiet(cluster, agents, dead_letters=dead_letters, copies=copies, repeats=repeats, seconds=seconds)
    for run_id, expected in runs.items():
        check_repeats(cluster, run_id, expected, repeats)
    check_finality(cluster)


def check_complete(cluster: Cluster, run_ids: Sequence[str] | Mapping[str, Any], *, seconds: float = PATIENCE) -> None:
    """O1: these runs exist and end."""
    wanted = set(run_ids)

    def unfinished() -> dict[str, str]:
        rows = fetch(cluster, "SELECT id::text AS id, status FROM runs WHERE id::text = ANY($1)", sorted(wanted))
        found = {row["id"]: row["status"] for row in rows}
        return {run: found.get(run, "never created") for run in wanted if found.get(run) not in RUN_FINAL}

    wait_until(lambda: not unfinished(), seconds, lambda: f"O1: not ended: {unfinished()}\n{_open_steps(cluster)}")


def check_outcome(cluster: Cluster, run_id: str, expected: Expected) -> None:
    """O2: the run ended as without faults, and its rows agree with each other."""
    [run] = fetch(cluster, "SELECT * FROM runs WHERE id::text = $1", run_id)
    rows = fetch(cluster, "SELECT * FROM step_executions WHERE run_id::text = $1", run_id)
    statuses = {row["step_id"]: row["status"] for row in rows}
    assert STEP_FINAL.issuperset(statuses.values()), f"O1: run {run_id} has ended, and its steps have not: {statuses}"
    assert expected.steps is None or statuses == expected.steps, f"O2: steps of {run_id}"
    assert run["status"] == expected.status, f"O2: {run['status']}: {run['error']}"
    # As text: the order of the definition counts too.
    assert json.dumps(_loaded(run["output"])) == json.dumps(expected.output), "O2: not the output without faults"
    assert run["finished_at"] is not None
    assert all(row["finished_at"] is not None for row in rows), "O2: a final step has no time of its end"
    for block in rows:
        if block["branches_total"] is not None and block["status"] != "CANCELLED":
            _check_counters(block, [row for row in rows if row["parent_step_id"] == block["step_id"]])


def check_repeats(cluster: Cluster, run_id: str, expected: Expected, repeats: int) -> None:
    """O3: no step was executed more often than the faults allow; call it when the workers have ended."""
    journal = read_journal(cluster.journal) if cluster.journal.exists() else []
    counts = Counter(execution.step_id for execution in journal if execution.run_id == run_id)
    too_often = {step: count for step, count in counts.items() if count > 1 + repeats}
    assert not too_often, f"O3: executed more than {1 + repeats} times: {too_often}"
    never = [step for step in expected.executed if not counts[step]]
    assert not never, f"O3: completed without an execution: {never}"


def check_limits(cluster: Cluster, run_id: str, limits: Mapping[str, int]) -> None:
    """O4: after no transaction were more branches of a block under way than its limit."""
    for block, limit in limits.items():
        most = max((len(under_way) for under_way in _under_way(cluster, run_id, block)), default=0)
        assert most <= limit, f"O4: {most} branches of {block} were dispatched and unfinished, its limit is {limit}"


def check_quiet(
    cluster: Cluster,
    agents: Sequence[str] = (),
    *,
    dead_letters: Sequence[str] = (),
    copies: int = 0,
    repeats: int = 0,
    seconds: float = PATIENCE,
) -> None:
    """O5: nothing is left in outbox, gates and queues, and the dead letters are those that were predicted.

    Stops all services of the cluster, so that what they held is ready again. Where the faults allow repeats, a worker
    that is told to stop may give a repeated task back unlooked at; then its step must be over.
    """
    wait_until(lambda: not any(_rows(cluster).values()), seconds, lambda: f"O5: rows are left: {_rows(cluster)}")
    wanted = sorted(dead_letters)

    def as_predicted() -> bool:
        found = _letters(cluster)
        different = set(found) if copies else found
        return sorted(code for code, _ in different) == wanted and len(found) - len(wanted) <= copies

    wait_until(as_predicted, seconds, lambda: f"O5: the dead letters are {_letters(cluster)}, not {wanted}")
    stop(cluster, seconds=seconds)
    queues = [f"agent.{agent}" for agent in agents]
    if repeats:
        _take_repeated_tasks(cluster, queues)
    left = _messages(cluster, [*WORK_QUEUES, *queues])
    assert not any(left.values()), f"O5: messages are left, ready or unacked: {left}"
    assert not any(_rows(cluster).values()), f"O5: stopping left rows: {_rows(cluster)}"
    gates = fetch(cluster, "SELECT run_id, step_id FROM step_executions WHERE max_parallelism IS NOT NULL")
    names = [f"orchestrator.gate.{gate['run_id']}.{gate['step_id']}" for gate in gates]
    there = [name for name, depth in _messages(cluster, names).items() if depth is not None]
    assert not there, f"O5: gate queues are left: {there}"


def check_finality(cluster: Cluster) -> None:
    """O7: no final status of a run or step ever changed."""
    changed = [
        (row["run_id"], row["step_id"], row["before"], row["after"])
        for row in fetch(cluster, "SELECT * FROM test_history WHERE before IS DISTINCT FROM after ORDER BY seq")
        if row["before"] in STEP_FINAL
    ]
    assert not changed, f"O7: a final status changed: {changed}"


def stop(cluster: Cluster, *, seconds: float = PATIENCE) -> None:
    """End all services with SIGTERM, each with 0: the workers, and when their last results are applied the others."""
    running = [service for service in cluster.services if service.process.poll() is None]
    workers = [
        service for service in running if any(line.get("action") == "worker_ready" for line in service.actions())
    ]
    codes = [worker.stop() for worker in workers]

    def results() -> int | None:
        return _messages(cluster, ["orchestrator.results"])["orchestrator.results"]

    wait_until(lambda: not results(), seconds, lambda: f"O5: {results()} results are not applied")
    codes += [service.stop() for service in running if service not in workers]
    assert not any(codes), f"exit codes {codes}"


def fetch(cluster: Cluster, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """Run one statement on a connection of its own."""

    async def once() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(cluster.database_url, timeout=10)
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close(timeout=10)

    return asyncio.run(once())


def _check_counters(block: Any, branches: Sequence[Any]) -> None:
    failed = sum(branch["status"] == "FAILED" for branch in branches)
    counters = (block["branches_total"], block["branches_open"], block["branches_failed"])
    assert counters == (len(branches), 0, failed), f"O2: {block['step_id']} counts {counters}"
    assert not block["branches_dispatched"], f"O2: {block['branches_dispatched']} slots of an ended block are taken"


def _under_way(cluster: Cluster, run_id: str, block: str) -> Iterator[frozenset[str]]:
    """Yield the branches that were dispatched and unfinished after each transaction."""
    history = fetch(
        cluster,
        "SELECT tx, step_id, after FROM test_history WHERE run_id::text = $1 AND parent_step_id = $2 ORDER BY seq",
        run_id,
        block,
    )
    under_way: set[str] = set()
    for _, changes in groupby(history, key=lambda row: row["tx"]):
        for row in changes:
            (under_way.add if row["after"] in UNFINISHED else under_way.discard)(row["step_id"])
        yield frozenset(under_way)


def _rows(cluster: Cluster) -> dict[str, int]:
    [row] = fetch(cluster, "SELECT (SELECT count(*) FROM outbox) AS outbox, (SELECT count(*) FROM gates) AS gates")
    return dict(row)


def _take_repeated_tasks(cluster: Cluster, queues: Sequence[str]) -> None:
    """Remove tasks from the agents' queues that are about steps that have ended."""
    over = {
        (str(row["run_id"]), row["step_id"])
        for row in fetch(cluster, "SELECT run_id, step_id, status FROM step_executions")
        if row["status"] in STEP_FINAL
    }
    with pika.BlockingConnection(pika.URLParameters(cluster.amqp_url)) as connection:
        for queue in queues:
            channel = connection.channel()
            while (got := channel.basic_get(queue))[0] is not None:
                task = json.loads(got[2])
                assert (task["run_id"], task["step_id"]) in over, f"O5: {queue} holds a task of an open step: {task}"
                channel.basic_ack(got[0].delivery_tag)


def _letters(cluster: Cluster) -> list[tuple[str, bytes]]:
    return [(row["code"], row["body"]) for row in fetch(cluster, "SELECT code, body FROM dead_letters")]


def _messages(cluster: Cluster, queues: Sequence[str]) -> dict[str, int | None]:
    """Return what is ready in each queue; None where there is none."""
    with pika.BlockingConnection(pika.URLParameters(cluster.amqp_url)) as connection:
        return {name: _depth(connection, name) for name in queues}


def _depth(connection: pika.BlockingConnection, queue: str) -> int | None:
    channel = connection.channel()
    try:
        return int(channel.queue_declare(queue, passive=True).method.message_count)
    except pika.exceptions.ChannelClosedByBroker as closed:
        if closed.reply_code != 404:
            raise
        return None


def _open_steps(cluster: Cluster) -> str:
    rows = fetch(cluster, "SELECT * FROM step_executions WHERE finished_at IS NULL")
    outbox = fetch(cluster, "SELECT type, routing_key, due_at FROM outbox")
    logs = "\n".join(f"{service.log.name}: {service.log.read_text()[-2000:]}" for service in cluster.services)
    steps = [(row["step_id"], row["status"], row["attempt"]) for row in rows]
    return f"open steps: {steps}\noutbox: {outbox}\n{logs}"


def _loaded(text: str | None) -> Any:
    return None if text is None else json.loads(text)


async def _execute(database_url: str, statements: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()
