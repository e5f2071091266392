"""The statuses of runs and step executions, and of the reports that workers send."""

from enum import StrEnum


class RunStatus(StrEnum):
    """Where a run stands. A final status never changes."""

    PENDING = "PENDING"  # accepted, its first step not yet entered
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"  # final
    FAILED = "FAILED"  # final: a step failed and no `on_failure` handled it
    CANCELLED = "CANCELLED"  # final

    @property
    def is_final(self) -> bool:
        """Whether nothing can change any more."""
        return self in _FINAL_RUN


class StepStatus(StrEnum):
    """Where a step execution stands. A final status never changes."""

    PENDING = "PENDING"  # known, waiting for its turn (for instance at the gate of its block)
    QUEUED = "QUEUED"  # its task is with RabbitMQ, or about to be; or the limit of its agent holds it back
    RUNNING = "RUNNING"  # a worker reported that it started; for a block: it has open branches
    COMPLETED = "COMPLETED"  # final
    FAILED = "FAILED"  # final
    CANCELLED = "CANCELLED"  # final: the run was cancelled first
    SKIPPED = "SKIPPED"  # final: the run took another path

    @property
    def is_final(self) -> bool:
        """Whether nothing can change any more."""
        return self in _FINAL_STEP


class ReportStatus(StrEnum):
    """What an AgentResult says about its attempt."""

    STARTED = "STARTED"
    HEARTBEAT = "HEARTBEAT"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"

    @property
    def ends_attempt(self) -> bool:
        """Whether the attempt is over with this report."""
        return self in {ReportStatus.COMPLETED, ReportStatus.FAILED}


class ResultStatus(StrEnum):
    """How a RunResult says that a run ended."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"  # the request was refused; no run exists


class JoinPolicy(StrEnum):
    """How many branches of a block must complete."""

    ALL = "all"
    ANY = "any"  # one
    MAJORITY = "majority"  # more than half of them
    N_OF_M = "n_of_m"  # as many as `n_required` says


_FINAL_RUN = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED})
_FINAL_STEP = frozenset({StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.CANCELLED, StepStatus.SKIPPED})
