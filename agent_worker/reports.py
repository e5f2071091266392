"""What a worker says about an attempt, as encoded AgentResults."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from agent_worker.execution import Outcome
from agent_worker.failures import worker_error
from schemas.codec import dump_checked, plain_fields
from schemas.messages import AgentError, AgentResult, AgentTask
from schemas.statuses import ReportStatus
from schemas.worker_codes import WorkerErrorCode

REPORT_TYPE: Final = AgentResult.__name__

_NOBODYS: Final = UUID(int=0)

_Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReportWriter:
    """Writes the reports of one worker, none of them longer than *max_bytes* by its doing."""

    worker_id: str
    max_bytes: int

    def __post_init__(self) -> None:
        """Make sure once that reports with this worker id are taken.

        Raises:
            ValidationError: It is empty or longer than 200 characters.
        """
        AgentResult(task_id=_NOBODYS, run_id=_NOBODYS, status=ReportStatus.STARTED, worker_id=self.worker_id)

    def sign_of_life(self, task: AgentTask, status: ReportStatus, started_at: datetime) -> bytes:
        """Return a STARTED or HEARTBEAT report."""
        return self._encoded(task, status, {}, {"started_at": started_at.isoformat()})

    def final(
        self, task: AgentTask, outcome: Outcome, started_at: datetime | None, consumer_timeout: float | None = None
    ) -> bytes:
        """Return the report that ends the attempt now; one that cannot be sent becomes a failure that says why.

        Args:
            task: What was worked on.
            outcome: What came of it.
            started_at: None: it never ran.
            consumer_timeout: The broker's, in seconds, where the attempt took longer: the orchestrator's log tells.
        """
        ends = _ends(started_at, consumer_timeout)
        try:
            body = self._outcome(task, outcome, ends)
        except (TypeError, ValueError, RecursionError) as error:
            return self._failed(task, _unwritable(error), ends)
        if len(body) <= self.max_bytes:
            return body
        if outcome.error is None:
            return self._failed(task, _too_large(len(body), self.max_bytes), ends)
        return self._failed(task, _without_details(outcome.error, len(body)), ends)

    def refused_by_broker(self, task: AgentTask, size: int, started_at: datetime | None) -> bytes:
        """Return the report instead of one of *size* bytes that the broker does not take."""
        ends = _ends(started_at)
        return self._failed(task, _too_large(size, None), ends)

    def _outcome(self, task: AgentTask, outcome: Outcome, ends: _Fields) -> bytes:
        if outcome.error is not None:
            return self._failed(task, outcome.error, ends)
        # Readers take an absent output for null.
        output = {} if outcome.output is None else {"output": outcome.output}
        return self._encoded(task, ReportStatus.COMPLETED, output, ends)

    def _failed(self, task: AgentTask, error: AgentError, ends: _Fields) -> bytes:
        return self._encoded(task, ReportStatus.FAILED, {"error": plain_fields(error)}, ends)

    def _encoded(self, task: AgentTask, status: ReportStatus, what: _Fields, ends: _Fields) -> bytes:
        # As `encode(AgentResult(...))` would write it; to validate our own values would cost several times more.
        return dump_checked(
            {
                "version": AgentResult.VERSION,
                "task_id": task.task_id,
                "run_id": task.run_id,
                "status": status.value,
                **what,
                "worker_id": self.worker_id,
                **ends,
            }
        )


def _ends(started_at: datetime | None, consumer_timeout: float | None = None) -> _Fields:
    """Return when the attempt started, if it did, that it ends now, and which timeout it outlived."""
    ends: _Fields = {} if started_at is None else {"started_at": started_at.isoformat()}
    ends["finished_at"] = datetime.now(UTC).isoformat()
    if consumer_timeout is not None:
        ends["consumer_timeout"] = consumer_timeout
    return ends


def _too_large(size: int, limit: int | None) -> AgentError:
    allowed = f"the worker sends at most {limit:,}" if limit is not None else "the broker takes no message that large"
    message = f"the result is {size:,} bytes long; {allowed}. Store the data elsewhere and return a reference to it"
    return worker_error(WorkerErrorCode.PAYLOAD_TOO_LARGE, message, retryable=False)


def _without_details(error: AgentError, size: int) -> AgentError:
    return error.model_copy(update={"details": {"details_dropped": f"with them the report had {size:,} bytes"}})


def _unwritable(error: Exception) -> AgentError:
    return worker_error(WorkerErrorCode.INVALID_RESULT, f"what the agent returned cannot be sent as JSON: {error}")
