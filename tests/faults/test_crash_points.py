"""FAULTS rows 8 to 11, 19 and 47: a process dies at every named point in turn, or is told that what it did has failed.

The armed process is alone in its role, so that all messages pass it, until it dies. Then two normal ones take over.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from messaging.crash_points import CRASH_POINTS, CrashPoint
from tests.acceptance.cluster import PATIENCE, Cluster, Service, wait_until
from tests.acceptance.journal import occupancy, read_journal, without_repeats
from tests.faults.launcher import launch
from tests.faults.lies import LIED, LIES
from tests.faults.oracles import Expected, check, check_complete, fetch, record_history
from tests.faults.sweep import AGENTS, MOST_RUNS, Sweep, died, nap
from tests.services.postgres import Postgres
from tests.services.rabbitmq import RabbitMQ

RUNS, RESULTS, COMMANDS = "orchestrator.runs", "orchestrator.results", "orchestrator.commands"
INPUTS = ("TaskReported", "RunRequested", "BranchArrived", "CancelRequested")
MESSAGES = ("AgentTask", "GateTicket", "RunResult", "RunEvent", "RunCancelled")
REPORTS = ("result", "sign of life")

# What passes each point. A new point that has no line here fails the collection of this module. The first kind is for
# every run of the suite, the others are `slow`.
KINDS: dict[CrashPoint, tuple[str, ...]] = {
    "intake.taken": (RESULTS, RUNS, COMMANDS),
    "transaction.locked": INPUTS,
    "transaction.written": INPUTS,
    "transaction.committed": INPUTS,
    "intake.before_ack": (RESULTS, RUNS, COMMANDS),
    "intake.acked": (RESULTS, RUNS, COMMANDS),
    "outbox.before_publish": MESSAGES,
    "outbox.published": MESSAGES,
    "outbox.forgotten": ("",),
    "gate.opened": ("",),
    "gate.lease_taken": ("",),
    "gate.ticket_held": ("",),
    "gate.tickets_acked": ("",),
    "gate.queue_deleted": ("",),
    "dead_letters.stored": ("",),
    "worker.task_taken": ("nap", "fail"),
    "worker.agent_started": ("nap", "fail"),
    "worker.agent_ended": ("nap", "fail"),
    "worker.before_publish": REPORTS,
    "worker.published": REPORTS,
    "worker.acked": ("",),
}
# These take more to be passed; each has a test of its own below.
RARE = {"agent_gate.let_through", "timers.due_found", "reconciler.missing_found", "reconciler.sent_again"}
LATER_PASSAGES = (2, 5)


@dataclass(frozen=True)
class Case:
    """Where a process dies."""

    point: CrashPoint
    kind: str
    passage: int
    is_slow: bool

    @property
    def fault(self) -> str:
        """As the launcher takes it."""
        return f"{self.point}:{self.kind}" if self.kind else self.point

    def as_parameter(self) -> object:
        """Return it for pytest."""
        name = f"{self.fault.replace('orchestrator.', '')} {self.passage}"
        return pytest.param(self, id=name, marks=[pytest.mark.slow] if self.is_slow else [])


def cases(points: Callable[[CrashPoint], bool]) -> list[object]:
    """Return a case for each point, kind and passage."""
    found = []
    for point in filter(points, CRASH_POINTS):
        for kind in KINDS[point]:
            for passage in (1, *LATER_PASSAGES):
                is_slow = passage > 1 or kind != KINDS[point][0]
                found.append(Case(point, kind, passage, is_slow).as_parameter())
    return found


@pytest.fixture(scope="module")
def template(rabbitmq: RabbitMQ, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated database that records its history, to be copied."""
    url = postgres.new_database()
    Cluster(rabbitmq.url, url, tmp_path_factory.mktemp("template")).migrate()
    record_history(url)
    yield url
    postgres.drop_database(url)


@pytest.fixture
def sweep(postgres: Postgres, template: str, amqp_url: str, tmp_path: Path) -> Iterator[Sweep]:
    """A cluster in which nobody runs yet."""
    database_url = postgres.new_database(template)
    cluster = Cluster(amqp_url, database_url, tmp_path)
    sweep = Sweep(cluster)
    sweep.declare()
    yield sweep
    cluster.stop()
    postgres.drop_database(database_url)


def test_without_a_fault_all_is_as_expected_and_nothing_runs_twice(sweep: Sweep) -> None:
    sweep.replicas(2)
    sweep.workers(2)
    sweep.submit_everything()
    wait_until(sweep.all_sent, PATIENCE, lambda: "the run to cancel is not under way")
    assert_recovered(sweep, repeats=0)


@pytest.mark.parametrize("case", cases(lambda point: point not in RARE and not point.startswith("worker.")))
def test_the_death_of_a_replica_at_this_point_does_no_harm(sweep: Sweep, case: Case) -> None:
    if case.point == "gate.lease_taken":
        sweep.seconds = 0.6  # the gate must be there for as long as a lease round
    sweep.workers(2)
    [armed] = sweep.replicas(1, fault=case.fault, number=case.passage)
    submit_until_death(sweep, armed, everything=case.is_slow or is_about_others(case))
    sweep.let_time_pass()
    sweep.replicas(2)
    wait_until(sweep.all_sent, PATIENCE, lambda: "the run to cancel is not under way")
    assert_recovered(sweep, copies=1)


@pytest.mark.parametrize("case", cases(lambda point: point.startswith("worker.")))
def test_the_death_of_a_worker_at_this_point_does_no_harm(sweep: Sweep, case: Case) -> None:
    if case.kind == "sign of life":
        sweep.seconds = 0.2  # a shorter attempt sends none
    sweep.replicas(2)
    [armed] = sweep.workers(1, fault=case.fault, number=case.passage)
    submit_until_death(sweep, armed, everything=case.is_slow)
    sweep.workers(2)
    wait_until(sweep.all_sent, PATIENCE, lambda: "the run to cancel is not under way")
    assert_recovered(sweep)


def test_the_death_of_a_replica_that_has_found_an_overdue_attempt_does_no_harm(sweep: Sweep) -> None:
    [worker] = sweep.workers(1)
    [armed] = sweep.replicas(1, fault="timers.due_found", number=1)
    late = {"name": "late", "start_step": "late", "steps": {"late": nap(0, 2.0, timeout_seconds=30)}}
    run_id = sweep.submit(late, Expected(status="FAILED", steps={"late": "FAILED"}, executed=["late"]))
    wait_until(lambda: is_running(sweep, run_id), PATIENCE, lambda: "the attempt was not reported")
    worker.process.send_signal(signal.SIGSTOP)
    fetch(sweep.cluster, "UPDATE step_executions SET due_at = now()")
    wait_until(lambda: died(armed), PATIENCE, lambda: "the overdue attempt was not found")

    sweep.replicas(2)
    check_complete(sweep.cluster, [run_id])
    worker.process.send_signal(signal.SIGCONT)  # its result is late now
    [step] = fetch(sweep.cluster, "SELECT error FROM step_executions")
    assert json.loads(step["error"])["code"] == "timeout"
    assert_recovered(sweep)


@pytest.mark.parametrize("point", ["transaction.locked", "transaction.written", "transaction.committed"])
def test_the_death_of_a_replica_that_retries_a_run_does_no_harm(sweep: Sweep, point: CrashPoint) -> None:
    sweep.workers(2)
    [armed] = sweep.replicas(1, fault=f"{point}:RetryRequested", number=1)
    cancelled = sweep.submit_cancelled()
    wait_until(sweep.all_sent, PATIENCE, lambda: "the run to cancel is not under way")
    wait_until(lambda: is_over(sweep), PATIENCE, lambda: "the run is not cancelled")
    sweep.retry(cancelled)
    wait_until(lambda: died(armed), PATIENCE, lambda: "nobody retried the run")

    sweep.let_time_pass()
    sweep.replicas(2)
    assert_recovered(sweep)


@pytest.mark.parametrize("point", ["reconciler.missing_found", "reconciler.sent_again"])
def test_the_death_of_a_replica_that_sends_swallowed_tasks_again_does_no_harm(sweep: Sweep, point: CrashPoint) -> None:
    sweep.environment["FORKJOIN_SILENT_AFTER"] = "0.3"
    [armed] = sweep.replicas(1, fault=point, number=1)
    sweep.submit_two_blocks()
    sweep.purge("agent.nap", 2)
    wait_until(lambda: died(armed), PATIENCE, lambda: "the tasks were not missed")

    sweep.let_time_pass()
    sweep.replicas(2)
    sweep.workers(2)
    assert_recovered(sweep)


@pytest.mark.parametrize("passage", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_death_of_a_replica_that_has_let_tasks_of_a_limited_agent_through_does_no_harm(
    sweep: Sweep, passage: int
) -> None:
    done = sweep.cluster.forkjoin("agents", "limit", "nap", "--concurrency", "1")
    assert done.returncode == 0, done.stderr
    sweep.workers(2)
    [armed] = sweep.replicas(1, fault="agent_gate.let_through", number=passage)
    submit_until_death(sweep, armed, everything=False)
    sweep.let_time_pass()
    sweep.replicas(2)
    assert_recovered(sweep)
    assert occupancy(without_repeats(read_journal(sweep.cluster.journal))).highest == 1


@pytest.mark.parametrize("number", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("lie", LIES)
def test_a_replica_that_is_told_that_what_it_did_has_failed_does_no_harm(sweep: Sweep, lie: str, number: int) -> None:
    sweep.workers(2)
    [liar] = sweep.replicas(1, fault=lie, number=number)
    sweep.submit_two_blocks()
    sweep.submit_garbage()
    liar.wait_for(LIED)
    sweep.let_time_pass()
    assert_recovered(sweep)


@pytest.mark.parametrize("number", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("lie", ["lie.publish", "lie.ack"])
def test_a_worker_that_is_told_that_what_it_did_has_failed_does_no_harm(sweep: Sweep, lie: str, number: int) -> None:
    sweep.replicas(2)
    [liar] = sweep.workers(1, fault=lie, number=number)
    sweep.submit_two_blocks()
    liar.wait_for(LIED)
    assert_recovered(sweep)


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in KINDS if not point.startswith("worker.")])
def test_a_replica_takes_over_from_another_that_died_at_this_point(sweep: Sweep, point: CrashPoint) -> None:
    if point == "gate.lease_taken":
        sweep.seconds = 0.6
    sweep.workers(2)
    [armed] = sweep.replicas(1, fault=Case(point, KINDS[point][0], 1, True).fault, number=1)
    sweep.replicas(1)
    submit_until_death(sweep, armed, everything=True)
    death = time.monotonic()
    wait_until(sweep.all_sent, PATIENCE, lambda: "the run to cancel is not under way")
    check_complete(sweep.cluster, sweep.expected)
    print(f"{point}: every run had ended {time.monotonic() - death:.1f} s after the death")
    assert_recovered(sweep, copies=1)


def test_the_launcher_runs_the_plain_command_where_no_fault_is_named(sweep: Sweep) -> None:
    replica = sweep.cluster.launch("tests.faults.launcher", "none", "0", "serve")
    worker = sweep.cluster.launch(
        "tests.faults.launcher", "worker.agent_ended", "1", "worker", "tests.acceptance.journal_agents:agents"
    )
    sweep.submit_two_blocks()
    assert worker.end() == -signal.SIGKILL
    launch(sweep.cluster, "worker", "tests.acceptance.journal_agents:agents")
    assert_recovered(sweep)
    assert replica.process.returncode == 0


def submit_until_death(sweep: Sweep, armed: Service, *, everything: bool) -> None:
    """Submit one run after the other until the armed process has died; fail when it never passes its point."""
    submit = sweep.submit_everything if everything else sweep.submit_two_blocks
    for _ in range(MOST_RUNS):
        submit()

        def died_or_done() -> bool:
            sweep.poll()
            return died(armed) or is_over(sweep)

        wait_until(died_or_done, PATIENCE, lambda: f"neither died nor done:\n{armed.log.read_text()[-3000:]}")
        if died(armed):
            return
    raise AssertionError(f"the process never passed its point:\n{armed.log.read_text()[-3000:]}")


def assert_recovered(sweep: Sweep, repeats: int = 1, copies: int = 0) -> None:
    """Check all oracles, and that each client was told the same, whatever number of times."""
    check(sweep.cluster, sweep.expected, repeats=repeats, dead_letters=sweep.dead_letters, copies=copies, agents=AGENTS)
    replies = sweep.replies()
    assert {run: len(said) for run, said in replies.items() if run in sweep.expected} == dict.fromkeys(
        sweep.expected, 1
    ), f"what the clients were told: {replies}"


def is_about_others(case: Case) -> bool:
    """Whether two blocks alone do not pass the point."""
    return case.kind in {COMMANDS, "CancelRequested"} or case.point == "dead_letters.stored"


def is_over(sweep: Sweep) -> bool:
    """Whether all runs have ended, with everything that follows."""
    [row] = fetch(
        sweep.cluster,
        "SELECT count(*) FILTER (WHERE status IN ('COMPLETED', 'FAILED', 'CANCELLED')) AS ended, "
        "(SELECT count(*) FROM gates) + (SELECT count(*) FROM outbox) AS rows FROM runs",
    )
    return row["ended"] == len(sweep.expected) and row["rows"] == 0


def is_running(sweep: Sweep, run_id: str) -> bool:
    """Whether a worker has reported the run's attempt."""
    query = "SELECT 1 FROM step_executions WHERE run_id::text = $1 AND status = 'RUNNING' AND due_at IS NOT NULL"
    return bool(fetch(sweep.cluster, query, run_id))
