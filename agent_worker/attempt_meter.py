"""What a worker counts of its attempts."""

from datetime import UTC, datetime

from agent_worker.attempts import Attempt
from agent_worker.execution import Outcome
from agent_worker.failures import RETRY_LATER
from messaging.monitoring.instruments import Count, Instrument, Spread


class AttemptMeter:
    """The attempts of one worker, by agent."""

    def __init__(self) -> None:
        self._ended = Count(
            "forkjoin_worker_attempts",
            "Attempts that ended here: completed, failed, postponed (RetryLater) or cancelled with their run.",
            "agent",
            "outcome",
        )
        self._seconds = Spread("forkjoin_worker_attempt_seconds", "How long agents ran.", "agent")

    def ended(self, attempt: Attempt, outcome: Outcome | None) -> None:
        """Note an attempt that ended; without an outcome it was cancelled."""
        agent = attempt.task.agent_name
        self._ended.add(1, agent, _kind(outcome))
        if attempt.started_at is not None:
            self._seconds.observe((datetime.now(UTC) - attempt.started_at).total_seconds(), agent)

    def instruments(self) -> list[Instrument]:
        """Return all of it."""
        return [self._ended, self._seconds]


def _kind(outcome: Outcome | None) -> str:
    if outcome is None:
        return "cancelled"
    if outcome.error is None:
        return "completed"
    return "postponed" if outcome.error.type == RETRY_LATER else "failed"
