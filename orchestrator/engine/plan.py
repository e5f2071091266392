"""The plan: what decisions need of a workflow, compiled once (`orchestrator.engine.compilation`) for all its runs.

Steps are told apart by their ids, executions of steps by theirs (`orchestrator.engine.executions`); a plan leads from
one to the other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Final, NamedTuple

from orchestrator.engine.executions import execution_id, iterations_of, step_of
from schemas.expressions import Expression
from schemas.references import Template
from schemas.scope import NOTHING_READ, Reads
from schemas.statuses import JoinPolicy


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed attempt is followed by another; both forms of the document come to this."""

    max_attempts: int  # the first one too
    initial_seconds: float
    factor: float  # each pause is so many times as long as the one before
    step_seconds: float  # and so much longer
    max_seconds: float
    jitter: bool
    never_after: frozenset[str]  # codes or types of errors
    only_after: frozenset[str]  # empty: after all others

    def pause(self, attempts: int, *, jitter: float) -> timedelta:
        """Return the pause after the attempt that failed now.

        Args:
            attempts: How many have counted so far, from 1.
            jitter: In [0, 1): the share of half the pause that it is shortened by, where the policy wants jitter.
        """
        try:
            grown = self.initial_seconds * self.factor ** (attempts - 1) + self.step_seconds * (attempts - 1)
        except OverflowError:
            grown = inf
        return timedelta(seconds=min(grown, self.max_seconds) * (1 - jitter / 2 if self.jitter else 1))


class TimeLimits(NamedTuple):
    """How long, in seconds, each attempt of a step may take, wait for a worker, and be silent; None: for ever."""

    attempt: float | None
    queue: float | None
    heartbeat: float | None

    def or_else(self, default: "TimeLimits") -> "TimeLimits":
        """Return these, and where there is none that of *default*."""
        if self == NO_LIMITS:
            return default
        return TimeLimits(*(own if own is not None else other for own, other in zip(self, default, strict=True)))


NO_LIMITS: Final = TimeLimits(None, None, None)


class Place(NamedTuple):
    """Where a step of a branch stands."""

    block_id: str
    iterates: bool  # in the body of a loop: the iteration gives the branch its name and position
    branch_name: str
    position: int  # of the branch in its block
    ordinal: int  # of the step in its branch; whatever runs later has a higher one
    branch_timeout: float | None  # seconds, from the start of the branch
    join_policy: JoinPolicy | None  # of the block


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """What all steps have. In a branch, `next_step` is the step of that branch which follows, None behind the last."""

    id: str
    place: Place | None  # None: in no branch
    loops: int  # how many loops lie around it
    next_step: str | None
    on_failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempted(_Planned):
    """What steps have that somebody carries out, in one attempt or more."""

    template: Template
    limits: TimeLimits
    retry: RetryPolicy | None

    @property
    def reads(self) -> Reads:
        """What its input takes from elsewhere."""
        return self.template.reads


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan(_Attempted):
    """One agent step."""

    agent_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubWorkflowPlan(_Attempted):
    """One step that a run of another workflow carries out."""

    workflow_id: str
    version: str | None  # None: the newest


AttemptPlan = AgentPlan | SubWorkflowPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan(_Planned):
    """One step that forks: the first steps of its branches, in definition order, and how they are joined."""

    branches: "tuple[StepPlan, ...]"
    max_parallelism: int | None
    join_policy: JoinPolicy
    needed: int  # so many branches must complete
    cancels_the_rest: bool  # when what they come to is decided
    shows_failed: bool  # as null in its output

    @property
    def reads(self) -> Reads:
        """What the inputs take that are made when it forks."""
        return NOTHING_READ.and_of(branch.reads for branch in self.branches if isinstance(branch, AttemptPlan))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopPlan(_Planned):
    """One step that forks into a branch for each item of a collection; all go through the same body."""

    body: "StepPlan"  # its first step
    collection: Template
    max_parallelism: int | None
    max_iterations: int | None
    is_sequential: bool  # an iteration keeps its slot while it waits for its next attempt: no other overtakes it
    stops: bool  # after a failed iteration no other one starts
    tolerates: bool  # failed iterations do not fail it
    keeps_items: bool  # for steps that are entered later than its first ones

    @property
    def reads(self) -> Reads:
        """What its collection takes from elsewhere, and the inputs that are made when it forks."""
        if not isinstance(self.body, AttemptPlan):
            return self.collection.reads
        return self.collection.reads.and_of([self.body.reads._replace(loop_parts=frozenset())])


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionalPlan(_Planned):
    """One step that chooses a path. `next_step` is where it goes on where the path that is chosen is empty."""

    expression: Expression
    if_true: str | None
    if_false: str | None
    skipped_if_true: str | None  # the step that then never runs, where it has no other way to run
    skipped_if_false: str | None

    @property
    def reads(self) -> Reads:
        """What its condition takes from elsewhere."""
        return self.expression.reads


ForkPlan = BlockPlan | LoopPlan
StepPlan = AttemptPlan | BlockPlan | LoopPlan | ConditionalPlan


@dataclass(frozen=True, slots=True)
class Plan:
    """A workflow's graph, compiled and immutable; shared by all runs of one definition."""

    workflow_id: str
    workflow_version: str
    timeout_seconds: float | None  # of a run
    start: str
    steps: Mapping[str, StepPlan]
    lanes: Mapping[str, tuple[str, ...]]  # the steps of branches, by the first one, where there are others

    def step(self, execution: str) -> StepPlan:
        """Return the step that an execution is of."""
        return self.steps.get(execution) or self.steps[step_of(execution)]

    def beside(self, execution: str, step_id: str) -> str:
        """Return the id of that execution of a step which shares all loops around the step with *execution*."""
        loops = self.steps[step_id].loops
        return execution_id(step_id, iterations_of(execution)[:loops]) if loops else step_id

    def around(self, execution: str) -> str | None:
        """Return the execution of the block or loop that *execution* lies in."""
        place = self.step(execution).place
        return self.beside(execution, place.block_id) if place is not None else None

    def all_around(self, execution: str) -> Iterator[str]:
        """Yield the execution of the block that it lies in, that of the block around that, and so on."""
        at = self.around(execution)
        while at is not None:
            yield at
            at = self.around(at)

    def lane(self, execution: str) -> tuple[str, ...]:
        """Return the executions that make up the branch of which *execution* is the first."""
        step_ids = self.lanes.get(step_of(execution))
        return tuple(self.beside(execution, step_id) for step_id in step_ids) if step_ids else (execution,)

    def loop_around(self, execution: str) -> str | None:
        """Return the execution of the innermost loop that *execution* lies in."""
        return next((one for one in self.all_around(execution) if isinstance(self.step(one), LoopPlan)), None)
