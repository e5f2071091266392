"""What a worker says about an attempt, as encoded AgentResults."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from agent_worker.execution import Outcome
from agent_worker.failures import worker_error
from schemas.codec import encode
from schemas.messages import AgentError, AgentResult, AgentTask
from schemas.statuses import ReportStatus
from schemas.worker_codes import WorkerErrorCode

REPORT_TYPE: Final = AgentResult.__name__

_Ends = dict[str, datetime | float | None]


@dataclass(frozen=True, slots=True)
class ReportWriter:
    """Writes the reports of one worker, none of them longer than *max_bytes* by its doing."""

    worker_id: str
    max_bytes: int

    def sign_of_life(self, task: AgentTask, status: ReportStatus, started_at: datetime) -> bytes:
        """Return a STARTED or HEARTBEAT report."""
        return self._encoded(task, status, started_at=started_at)

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

    def _outcome(self, task: AgentTask, outcome: Outcome, ends: _Ends) -> bytes:
        if outcome.error is not None:
            return self._failed(task, outcome.error, ends)
        return self._encoded(task, ReportStatus.COMPLETED, output=outcome.output, **ends)

    def _failed(self, task: AgentTask, error: AgentError, ends: _Ends) -> bytes:
        return self._encoded(task, ReportStatus.FAILED, error=error, **ends)

    def _encoded(self, task: AgentTask, status: ReportStatus, **fields: Any) -> bytes:
        result = AgentResult(
            task_id=task.task_id, run_id=task.run_id, status=status, worker_id=self.worker_id, **fields
        )
        return encode(result)


def _ends(started_at: datetime | None, consumer_timeout: float | None = None) -> _Ends:
    """Return when the attempt started, if it did, that it ends now, and which timeout it outlived."""
    return {"started_at": started_at, "finished_at": datetime.now(UTC), "consumer_timeout": consumer_timeout}


def _too_large(size: int, limit: int | None) -> AgentError:
    allowed = f"the worker sends at most {limit:,}" if limit is not None else "the broker takes no message that large"
    message = f"the result is {size:,} bytes long; {allowed}. Store the data elsewhere and return a reference to it"
    return worker_error(WorkerErrorCode.PAYLOAD_TOO_LARGE, message, retryable=False)


def _without_details(error: AgentError, size: int) -> AgentError:
    return error.model_copy(update={"details": {"details_dropped": f"with them the report had {size:,} bytes"}})


def _unwritable(error: Exception) -> AgentError:
    return worker_error(WorkerErrorCode.INVALID_RESULT, f"what the agent returned cannot be sent as JSON: {error}")
