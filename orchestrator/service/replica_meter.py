"""What a replica counts of its transactions, and of what it has in hand."""

from datetime import datetime

from messaging.monitoring.instruments import SIZES, Count, Description, Gauge, Instrument, Spread
from orchestrator.engine.records import StepExecution
from orchestrator.service.batch import Committed
from orchestrator.service.replica import Replica
from schemas.statuses import StepStatus

_GATES_HELD = Description("forkjoin_gates_held", "Gates that this replica works on.")
_UNSENT = Description("forkjoin_messages_in_hand", "Committed messages that this replica has yet to send.")
_INPUTS = Description("forkjoin_inputs_in_hand", "Deliveries that this replica has taken and not applied.")


class ReplicaMeter:
    """The numbers of one replica; it follows the commits (`Driver.follow`)."""

    def __init__(self) -> None:
        self._batches = Spread(
            "forkjoin_transaction_inputs", "Inputs that were applied in one transaction.", bounds=SIZES
        )
        self._transactions = Spread("forkjoin_transaction_seconds", "From the beginning of a transaction to its end.")
        self._runs = Spread("forkjoin_run_seconds", "From a run's acceptance to its end.", "status")
        self._steps = Count(
            "forkjoin_steps_ended", "Steps that ended; those within blocks are branches.", "kind", "status"
        )
        self._attempts = Count(
            "forkjoin_attempts_repeated", "Attempts that ended and are followed by another.", "agent"
        )
        self._queued = Spread("forkjoin_queue_seconds", "From an attempt's task to its start at a worker.", "agent")
        self._running = Spread("forkjoin_running_seconds", "From an attempt's start at a worker to its end.", "agent")
        self._lasted = Spread(
            "forkjoin_step_seconds",
            "From the creation of an agent step to its end, waits and retries included.",
            "agent",
        )

    async def committed(self, batch: Committed) -> None:
        """Count what a transaction did; called after its commit."""
        self._batches.observe(len(batch.answers))
        self._transactions.observe(batch.seconds)
        for run in batch.ended_runs:
            self._runs.observe(_between(run.started_at, run.finished_at), run.status.value)
        for step in batch.ended_steps:
            self._steps.add(1, _kind(step.parent_step_id), step.status.value)
            if step.agent_name is not None:
                self._lasted.observe(_between(step.created_at, step.finished_at), step.agent_name)
                self._note_attempt(step, step.agent_name)
        for cancelled in batch.cancelled_steps:
            self._steps.add(1, _kind(cancelled.parent_step_id), StepStatus.CANCELLED.value)
        for attempt in batch.ended_attempts:
            if attempt.agent_name is not None:  # else it is one of a sub-workflow
                self._attempts.add(1, attempt.agent_name)
                self._note_attempt(attempt, attempt.agent_name)

    def instruments(self, replica: Replica | None) -> list[Instrument]:
        """Return all of it, with what *replica* has in hand."""
        counted: list[Instrument] = [
            self._batches,
            self._transactions,
            self._runs,
            self._steps,
            self._attempts,
            self._queued,
            self._running,
            self._lasted,
        ]
        return counted if replica is None else counted + _in_hand(replica)

    def _note_attempt(self, step: StepExecution, agent_name: str) -> None:
        # An attempt that no worker reported has no start, and waited until it was given up.
        if step.queued_at is not None and step.started_at is not None:
            self._queued.observe(_between(step.queued_at, step.started_at), agent_name)
            self._running.observe(_between(step.started_at, step.finished_at), agent_name)


def _in_hand(replica: Replica) -> list[Instrument]:
    verdicts = Count("forkjoin_inputs", "What became of what reached the runs.", "verdict", "code")
    for (verdict, code), number in replica.driver.verdicts.items():
        verdicts.add(number, verdict.value, code)
    return [
        verdicts,
        Gauge(_GATES_HELD, {(): replica.gatekeeper.held}),
        Gauge(_UNSENT, {(): replica.relay.waiting}),
        Gauge(_INPUTS, {(): sum(intake.in_hand for intake in replica.intakes)}),
    ]


def _kind(parent_step_id: str | None) -> str:
    return "step" if parent_step_id is None else "branch"


def _between(start: datetime | None, end: datetime | None) -> float:
    """Return the seconds between two times; clocks differ, so an end may seem to come first."""
    return 0.0 if start is None or end is None else max((end - start).total_seconds(), 0.0)
