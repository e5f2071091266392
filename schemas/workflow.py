"""The workflow document, as its author writes it.

These models hold a document that has the right shape. Whether its graph makes sense is checked in
`schemas.validation`, which also turns every shape error into a problem with a place.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StringConstraints
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from schemas.messages import Code, Positive, Seconds, StepId, WorkflowId
from schemas.names import (
    AGENT_NAME_PATTERN,
    BRANCH_NAME_PATTERN,
    RESERVED_STEP_ID,
    STEP_ID_PATTERN,
    agent_name_problem,
    branch_name_problem,
    step_id_problem,
)
from schemas.statuses import JoinPolicy


def _checked(problem_of: Callable[[str], str | None]) -> AfterValidator:
    def check(name: str) -> str:
        problem = problem_of(name)
        if problem is not None:
            raise PydanticCustomError("bad_name", "{problem}", {"problem": problem})
        return name

    return AfterValidator(check)


# Where a name is given these say in words what is wrong with it. A field that refers to a step is a plain StepId: a
# name that no step has is reported as such.
NewStepId = Annotated[
    str,
    _checked(step_id_problem),
    Field(json_schema_extra={"pattern": STEP_ID_PATTERN, "not": {"const": RESERVED_STEP_ID}}),
]
BranchName = Annotated[str, _checked(branch_name_problem), Field(json_schema_extra={"pattern": BRANCH_NAME_PATTERN})]
WorkerName = Annotated[
    str,
    _checked(agent_name_problem),
    Field(json_schema_extra={"pattern": AGENT_NAME_PATTERN, "not": {"pattern": r"^amq\."}}),
]


def _collection(value: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        raise PydanticCustomError("collection_type", "neither an array nor a reference")
    return value


Version = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Collection = Annotated[Any, AfterValidator(_collection), Field(json_schema_extra={"type": ["string", "array"]})]


# A misspelt option must not be ignored.
_STRICT: Final = ConfigDict(extra="forbid")


_Attempts = Annotated[Positive, Field(le=1_000)]
_Factor = Annotated[float, Field(strict=True, ge=1, le=1_000)]
_Pause = Annotated[float, Field(strict=True, ge=0, le=365 * 86_400)]
_Milliseconds = Annotated[float, Field(strict=True, ge=0, le=365 * 86_400_000)]


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Retry:
    """When a failed attempt is followed by another, and how soon."""

    max_attempts: _Attempts = Field(3, description="All attempts together, the first one too.")
    initial_interval_seconds: _Pause = Field(1.0, description="Before the second attempt.")
    backoff: _Factor = Field(2.0, description="Each pause is so many times as long as the one before.")
    max_interval_seconds: _Pause = Field(60.0, description="No pause is longer.")
    jitter: StrictBool = Field(True, description="Shorten each pause by up to its half, by chance.")
    non_retryable: list[Code] = Field(
        default_factory=list, description="Error codes or exception types after which no other attempt is made."
    )


class BackoffType(StrEnum):
    """How the pauses between attempts grow."""

    EXPONENTIAL = "exponential_backoff"
    LINEAR = "linear_backoff"
    FIXED = "fixed_delay"
    IMMEDIATE = "immediate"


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class RetryStrategy:
    """The older form of `Retry`."""

    type: BackoffType = BackoffType.EXPONENTIAL
    max_retries: Annotated[int, Field(strict=True, ge=0, le=999)] = Field(3, description="Attempts after the first.")
    initial_delay_ms: _Milliseconds = 1_000
    max_delay_ms: _Milliseconds = 60_000
    backoff_multiplier: _Factor = Field(2.0, description="Of exponential_backoff.")
    jitter: StrictBool = False
    retry_on_errors: list[Code] = Field(
        default_factory=list, description="Only after these error codes or exception types; empty: after all."
    )


class OnDecided(StrEnum):
    """What becomes of the branches that still run when they cannot change the block's outcome any more."""

    WAIT = "wait"
    CANCEL = "cancel"


# What all blocks have in common. A base class would do, but two with slots do not go together.
_Count = Annotated[int, Field(strict=True, ge=1)]
_Policy = Annotated[JoinPolicy, Field(description="How many branches must complete.")]
_Required = Annotated[_Count | None, Field(description="Of the join policy `n_of_m`: how many.")]
_OnDecided = Annotated[
    OnDecided,
    Field(description="What becomes of branches that still run when they cannot change the outcome any more."),
]
_Limit = Annotated[
    _Count | None,
    Field(description="How many branches may run at once in the whole cluster; by default no limit."),
]


# Dataclasses with slots, for a block may have 100,000 branches: a model takes five times the memory of one of these.
@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class _Step:
    id: NewStepId = Field(description="Unique in the workflow; may be left out and then is the step's key.")
    description: str | None = None
    next_step: StepId | None = Field(default=None, description="Where the run goes on; null ends it here.")
    on_failure: StepId | None = Field(default=None, description="Where the run goes on when this step fails.")


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class _WorkingStep(_Step):
    timeout_seconds: Seconds | None = Field(
        None, description="How long one attempt may take; on a parallel step, the default for its branches."
    )
    queue_timeout_seconds: Seconds | None = Field(
        None, description="How long an attempt may wait for a worker; on a parallel step, the default for its branches."
    )
    heartbeat_timeout_seconds: Seconds | None = Field(
        None,
        description="How long a running attempt may show no sign of life; on a parallel step, the default for its "
        "branches.",
    )
    retry: Retry | None = Field(
        None, description="Try again after a failed attempt; on a parallel step, the default for its branches."
    )
    retry_strategy: RetryStrategy | None = Field(None, description="The older form of `retry`; give one of the two.")


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class AgentStep(_WorkingStep):
    """A step that one agent carries out."""

    type: Literal["agent"] = "agent"
    agent_name: WorkerName
    input_mapping: dict[str, Any] = Field(
        default_factory=dict, description="Any JSON; strings in it may hold references such as ${step-a.output.result}."
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class SubWorkflowStep(_Step):
    """A step that a run of another workflow carries out: its output is the step's."""

    type: Literal["sub_workflow"]
    workflow_id: WorkflowId = Field(description="Of a registered workflow.")
    version: Version | None = Field(None, description="Of that workflow; by default the newest when the step starts.")
    input_mapping: dict[str, Any] = Field(
        default_factory=dict, description="The input of that run: any JSON, in which strings may hold references."
    )
    timeout_seconds: Seconds | None = Field(None, description="How long one attempt, which is one run, may take.")
    retry: Retry | None = Field(None, description="Start another run after one that failed.")
    retry_strategy: RetryStrategy | None = Field(None, description="The older form of `retry`; give one of the two.")


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ParallelStep(_WorkingStep):
    """A block: its branches run concurrently, then their outputs are joined."""

    type: Literal["parallel"]
    parallel_steps: Annotated[list[StepId], Field(min_length=1)]
    max_parallelism: _Limit = None
    join_policy: _Policy = JoinPolicy.ALL
    n_required: _Required = None
    on_decided: _OnDecided = OnDecided.WAIT


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ForkBranch:
    """A branch of a `fork_join` step: steps that run one after the other."""

    steps: Annotated[list[StepId], Field(min_length=1)]
    timeout_seconds: Seconds | None = Field(
        None, description="How long the branch may take from the start of its first step; goes before that of all."
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ForkJoinConfig:
    """The branches of a `fork_join` step, by name, and how they are joined."""

    branches: Annotated[dict[BranchName, ForkBranch], Field(min_length=1)]
    max_parallelism: _Limit = None
    join_policy: _Policy = JoinPolicy.ALL
    n_required: _Required = None
    on_decided: _OnDecided = OnDecided.WAIT
    branch_timeout_seconds: Seconds | None = Field(None, description="The default for `timeout_seconds` of branches.")


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ForkJoinStep(_WorkingStep):
    """A block with named branches of one or more steps each."""

    type: Literal["fork_join"]
    fork_join_config: ForkJoinConfig


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Condition:
    """What a `conditional` step asks."""

    expression: Annotated[str, StringConstraints(min_length=1, max_length=10_000)] = Field(
        description="Such as ${s.output.score} > 0.8 and 'x' in ${s.output.tags}."
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ConditionalStep(_Step):
    """A choice between two paths. Where the one that is taken ends, the run goes on at `next_step`."""

    type: Literal["conditional"]
    condition: Condition
    if_true_step: StepId | None = Field(None, description="Where the run goes on when the condition holds.")
    if_false_step: StepId | None = Field(None, description="Where the run goes on when it does not.")


class ExecutionMode(StrEnum):
    """Whether the iterations of a loop run one after the other, or at the same time."""

    SEQUENTIAL = "sequential"
    PARALLEL = "parallel"


class OnError(StrEnum):
    """What a failed iteration means for the loop."""

    STOP = "stop"
    CONTINUE = "continue"
    COLLECT = "collect"


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class LoopConfig:
    """What a `loop` step goes through, and what it does with each item."""

    collection: Collection = Field(description="An array, or a reference to one, such as ${s.output.items}.")
    loop_body: Annotated[list[StepId], Field(min_length=1)] = Field(
        description="The steps of each iteration, one after the other; they may use ${loop.item}."
    )
    execution_mode: ExecutionMode = ExecutionMode.SEQUENTIAL
    max_parallelism: Annotated[
        _Count | None,
        Field(description="How many iterations may run at once in the whole cluster; by default no limit."),
    ] = None
    max_iterations: Annotated[
        _Count | None, Field(description="A longer collection fails the step; by default any length is right.")
    ] = None
    on_error: OnError = Field(
        OnError.STOP,
        description="After a failed iteration: `stop` starts no further one and fails the step, `collect` runs all and "
        "then fails it, `continue` runs all and completes it.",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class LoopStep(_WorkingStep):
    """A block that runs the same steps for each item of a collection."""

    type: Literal["loop"]
    loop_config: LoopConfig


Step = Annotated[
    AgentStep | SubWorkflowStep | ParallelStep | ForkJoinStep | LoopStep | ConditionalStep, Field(discriminator="type")
]


class Workflow(BaseModel):
    """A workflow document."""

    model_config = ConfigDict(**_STRICT, frozen=True)

    workflow_id: WorkflowId = Field(description="By default the name.")
    name: WorkflowId
    version: Version = "1.0"
    description: str | None = None
    timeout_seconds: Seconds | None = Field(None, description="How long a run may take, from its start.")
    start_step: StepId
    steps: Annotated[dict[NewStepId, Step], Field(min_length=1)]
