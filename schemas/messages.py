"""The messages between clients, orchestrator and workers: JSON over AMQP 0-9-1.

Each message is a frozen model; its AMQP ``type`` property is the class name. Unknown fields are ignored, unknown
versions are refused (see `schemas.codec`). A field with the default None is left out of the body when it is None.
"""

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticKnownError

from schemas.names import AGENT_NAME_PATTERN, EXECUTION_ID_PATTERN, STEP_ID_PATTERN, WORKFLOW_ID_PATTERN
from schemas.statuses import ReportStatus, ResultStatus, StepStatus

_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d")


def _written_as_time(value: object) -> object:
    # Pydantic would take numbers, and strings of digits, for seconds since 1970.
    if (isinstance(value, str) and _RFC_3339.match(value)) or isinstance(value, datetime):
        return value
    raise PydanticKnownError("datetime_type")


Positive = Annotated[int, Field(strict=True, ge=1)]
Seconds = Annotated[float, Field(strict=True, gt=0, le=365 * 86_400)]
StepId = Annotated[str, StringConstraints(pattern=STEP_ID_PATTERN)]
ExecutionId = Annotated[str, StringConstraints(pattern=EXECUTION_ID_PATTERN)]
AgentName = Annotated[str, StringConstraints(pattern=AGENT_NAME_PATTERN)]
WorkflowId = Annotated[str, StringConstraints(pattern=WORKFLOW_ID_PATTERN)]
Code = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Time = Annotated[AwareDatetime, BeforeValidator(_written_as_time)]
Label = Annotated[str, StringConstraints(max_length=500)]


class Message(BaseModel):
    """What all messages share."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    VERSION: ClassVar[int] = 1
    version: Literal[1] = 1


class ErrorInfo(BaseModel):
    """Why a step or a run failed, as rows and RunResults hold it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    code: Code = Field(description="Stable; programs may compare it.")
    message: str = Field(description="For people.")
    details: dict[str, Any] | None = None


class AgentError(BaseModel):
    """Why an attempt failed, as the worker saw it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Code = Field(description="The exception's type, or one of the worker's own codes such as `timeout`.")
    message: str
    retryable: StrictBool | None = Field(None, description="False: another attempt cannot help.")
    retry_after_seconds: Seconds | None = Field(
        None, description="Try again after so long, as when a service throttles; this one does not count as an attempt."
    )
    details: dict[str, Any] | None = None


class RunRequest(Message):
    """Ask for a run. The same `run_id` with the same body again is the same run."""

    run_id: UUID | None = Field(None, description="Chosen by clients that want to repeat a request safely.")
    workflow: dict[str, Any] | None = Field(None, description="The workflow document itself.")
    workflow_id: WorkflowId | None = Field(None, description="Or the id of a registered workflow.")
    workflow_version: str | None = Field(None, description="Of the registered workflow; by default the newest.")
    input: Any = None
    labels: dict[str, Label] | None = None
    parent_run_id: UUID | None = Field(
        None,
        description="Set by orchestrators, where a step of that run starts this one: its `run_id` is then the task id "
        "of the step's attempt. Refused where no such attempt is open.",
    )

    @model_validator(mode="after")
    def _names_one_workflow(self) -> Self:
        if (self.workflow is None) == (self.workflow_id is None):
            raise ValueError("give either `workflow` (the document) or `workflow_id` (a registered one)")
        if self.workflow_version is not None and self.workflow_id is None:
            raise ValueError("`workflow_version` goes with `workflow_id`")
        if self.parent_run_id is not None and self.run_id is None:
            raise ValueError("`parent_run_id` goes with `run_id`")
        return self


class RunResult(Message):
    """How a run ended, sent to the `reply_to` of whoever asked for it."""

    run_id: UUID | None
    status: ResultStatus
    output: Any
    error: ErrorInfo | None


class AgentTask(Message):
    """One attempt of one step, for a worker."""

    task_id: UUID = Field(description="Random for each attempt. The result must echo it.")
    run_id: UUID
    step_id: ExecutionId = Field(description="In the body of a loop with the number of the iteration: `x[3]`.")
    parent_step_id: ExecutionId | None = None
    branch_name: str | None = None
    agent_name: AgentName
    attempt: Positive
    input: Any
    timeout_seconds: Seconds | None = None
    heartbeat_timeout_seconds: Seconds | None = Field(
        None, description="An attempt that is silent for so long counts as lost; send signs of life thrice as often."
    )


class AgentResult(Message):
    """What a worker reports about an attempt: that it started, lives, completed or failed."""

    task_id: UUID
    run_id: UUID
    status: ReportStatus
    output: Any = None
    error: AgentError | None = None
    worker_id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    started_at: Time | None = None
    finished_at: Time | None = None
    consumer_timeout: Seconds | None = Field(
        None, description="Of the broker, where the attempt ran for longer and so was delivered again meanwhile."
    )

    @model_validator(mode="after")
    def _failure_has_an_error(self) -> Self:
        if (self.status is ReportStatus.FAILED) != (self.error is not None):
            raise ValueError("`error` is there if and only if `status` is FAILED")
        return self


class CancelRun(Message):
    """Ask that a run stop. Without effect on a run that has ended."""

    run_id: UUID
    reason: Annotated[str, StringConstraints(max_length=2000)] | None = None


class RetryRun(Message):
    """Ask for a run that does again what another one, which has ended, did not complete, and takes over the rest.

    The same `new_run_id` again is the same run.
    """

    run_id: UUID = Field(description="Of the run that failed or was cancelled; it stays as it is.")
    new_run_id: UUID | None = Field(None, description="Chosen by clients that want to repeat a request safely.")


class RunCancelled(Message):
    """Tell all workers that a run was cancelled. What they still do for it has no effect."""

    run_id: UUID


class BranchesCancelled(Message):
    """Tell all workers that a block goes on without its open branches. What they still do for those has no effect."""

    run_id: UUID
    block_id: ExecutionId


class StepEvent(BaseModel):
    """One status change of one step execution; `step_id` None is the run itself."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    step_id: str | None
    parent_step_id: str | None = None
    branch_name: str | None = None
    status: StepStatus
    attempt: Annotated[int, Field(strict=True, ge=0)]
    at: Time
    error: ErrorInfo | None = None


class RunEvent(Message):
    """Status changes of one run that one transaction made, in their order."""

    run_id: UUID
    events: list[StepEvent]


MESSAGES: tuple[type[Message], ...] = (
    RunRequest,
    RunResult,
    AgentTask,
    AgentResult,
    CancelRun,
    RetryRun,
    RunCancelled,
    BranchesCancelled,
    RunEvent,
)
