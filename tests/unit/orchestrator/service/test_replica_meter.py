"""What a replica counts of a commit."""

from messaging.monitoring.instruments import Count, Spread
from orchestrator.engine.decision import Verdict
from orchestrator.service.batch import Answer, Committed
from orchestrator.service.replica_meter import ReplicaMeter
from orchestrator.storage.writes import CancelledStep
from schemas.statuses import RunStatus, StepStatus
from tests.unit.orchestrator.engine.scene import after, block_row, branch_row, run_row, step_row


async def counted(batch: Committed) -> dict[str, Count | Spread]:
    meter = ReplicaMeter()
    await meter.committed(batch)
    return {one.description.name: one for one in meter.instruments(None) if isinstance(one, Count | Spread)}


def sums(spread: Count | Spread) -> dict[tuple[str, ...], tuple[int, float]]:
    assert isinstance(spread, Spread)
    return {labels: (sum(tally.counts), tally.sum) for labels, tally in spread.tallies.items()}


async def test_a_transaction_is_counted_with_its_inputs_and_its_time() -> None:
    found = await counted(Committed([Answer(Verdict.APPLIED, "")] * 7, seconds=0.25))
    assert sums(found["forkjoin_transaction_inputs"]) == {(): (1, 7)}
    assert sums(found["forkjoin_transaction_seconds"]) == {(): (1, 0.25)}


async def test_a_run_is_counted_from_its_acceptance_to_its_end() -> None:
    ended = [run_row(RunStatus.COMPLETED, finished_at=after(3)), run_row(RunStatus.FAILED, finished_at=after(1))]
    found = await counted(Committed([], ended_runs=ended))
    assert sums(found["forkjoin_run_seconds"]) == {("COMPLETED",): (1, 3), ("FAILED",): (1, 1)}


async def test_an_attempt_waits_runs_and_lasts() -> None:
    times = {"created_at": after(0), "queued_at": after(1), "started_at": after(4), "finished_at": after(10)}
    step = branch_row(status=StepStatus.COMPLETED, **times)
    found = await counted(Committed([], ended_steps=[step]))
    assert sums(found["forkjoin_queue_seconds"]) == {("echo",): (1, 3)}
    assert sums(found["forkjoin_running_seconds"]) == {("echo",): (1, 6)}
    assert sums(found["forkjoin_step_seconds"]) == {("echo",): (1, 10)}


async def test_an_attempt_that_is_followed_by_another_is_counted_without_ending_its_step() -> None:
    attempt = step_row(status=StepStatus.QUEUED, queued_at=after(0), started_at=after(1), finished_at=after(3))
    found = await counted(Committed([], ended_attempts=[attempt]))
    assert sums(found["forkjoin_running_seconds"]) == {("echo",): (1, 2)}
    assert found["forkjoin_attempts_repeated"].values == {("echo",): 1}
    assert found["forkjoin_steps_ended"].values == {}


async def test_an_attempt_of_a_sub_workflow_is_none_of_an_agent() -> None:
    attempt = step_row(agent_name=None, sub_workflow_id="child", status=StepStatus.QUEUED, queued_at=after(0))
    found = await counted(Committed([], ended_attempts=[attempt]))
    assert found["forkjoin_attempts_repeated"].values == {}


async def test_steps_and_branches_are_counted_apart_by_how_they_ended() -> None:
    ended = [
        branch_row("a", StepStatus.COMPLETED),
        branch_row("b", StepStatus.FAILED),
        block_row(StepStatus.FAILED),
        step_row(status=StepStatus.SKIPPED, agent_name=None),
    ]
    cancelled = [CancelledStep("c", "block", "c", 1), CancelledStep("d", None, None, 1)]
    found = await counted(Committed([], ended_steps=ended, cancelled_steps=cancelled))
    assert found["forkjoin_steps_ended"].values == {
        ("branch", "COMPLETED"): 1,
        ("branch", "FAILED"): 1,
        ("step", "FAILED"): 1,
        ("step", "SKIPPED"): 1,
        ("branch", "CANCELLED"): 1,
        ("step", "CANCELLED"): 1,
    }


async def test_clocks_that_differ_make_no_negative_time() -> None:
    step = branch_row(status=StepStatus.COMPLETED, queued_at=after(5), started_at=after(4), finished_at=after(6))
    found = await counted(Committed([], ended_steps=[step]))
    assert sums(found["forkjoin_queue_seconds"]) == {("echo",): (1, 0)}


async def test_an_attempt_that_no_worker_took_is_in_no_queue_time() -> None:
    step = branch_row(status=StepStatus.FAILED, created_at=after(0), queued_at=after(0), finished_at=after(60))
    found = await counted(Committed([], ended_steps=[step]))
    assert sums(found["forkjoin_queue_seconds"]) == {}
    assert sums(found["forkjoin_step_seconds"]) == {("echo",): (1, 60)}
