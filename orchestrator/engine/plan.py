"""The plan: a workflow compiled once into what the decisions need."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from math import inf
from typing import Final, NamedTuple, assert_never

from schemas.expressions import Expression, compile_expression
from schemas.graph import preceding
from schemas.paths import Crossing, ways
from schemas.references import Part, Template, compile_template
from schemas.statuses import JoinPolicy
from schemas.workflow import (
    AgentStep,
    BackoffType,
    ConditionalStep,
    ForkJoinConfig,
    ForkJoinStep,
    OnDecided,
    ParallelStep,
    Retry,
    RetryStrategy,
    Step,
    Workflow,
)


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
        if self == _NO_LIMITS:
            return default
        return TimeLimits(*(own if own is not None else other for own, other in zip(self, default, strict=True)))


_NO_LIMITS: Final = TimeLimits(None, None, None)


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One agent step.

    In a branch, `block_id` names the block, `position` the branch's place there, and `ordinal` the step's place in the
    branch; `next_step` is None for the last one.
    """

    id: str
    agent_name: str
    template: Template
    next_step: str | None
    on_failure: str | None
    limits: TimeLimits
    retry: RetryPolicy | None
    block_id: str | None
    branch_name: str | None
    branch_timeout: float | None  # seconds, from the start of the branch
    join_policy: JoinPolicy | None  # of the block
    position: int
    ordinal: int


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """One step that forks: the first steps of its branches, in definition order, and how they are joined.

    In a branch of another block, `block_id` names that, and the rest of its place is as an agent step's.
    """

    id: str
    branches: "tuple[AgentPlan | BlockPlan, ...]"
    max_parallelism: int | None
    join_policy: JoinPolicy
    needed: int  # so many branches must complete
    cancels_the_rest: bool  # when what they come to is decided
    shows_failed: bool  # as null in its output
    block_id: str | None
    branch_name: str | None
    branch_timeout: float | None
    position: int
    ordinal: int
    next_step: str | None
    on_failure: str | None

    @property
    def is_gated(self) -> bool:
        """Whether the limit can ever hold a branch back."""
        return self.max_parallelism is not None and self.max_parallelism < len(self.branches)

    @property
    def referenced_steps(self) -> frozenset[str]:
        """The steps that the first step of any branch reads from."""
        return frozenset().union(*(branch.template.steps for branch in self.branches if isinstance(branch, AgentPlan)))

    @property
    def referenced_blocks(self) -> frozenset[str]:
        """Those of them whose branches' errors they read."""
        return frozenset().union(*(branch.template.blocks for branch in self.branches if isinstance(branch, AgentPlan)))


@dataclass(frozen=True, slots=True)
class ConditionalPlan:
    """One step that chooses a path. `next_step` is where the run goes on where the path that is chosen is empty."""

    id: str
    expression: Expression
    if_true: str | None
    if_false: str | None
    skipped_if_true: str | None  # the step that then never runs, where it has no other way to run
    skipped_if_false: str | None
    next_step: str | None
    on_failure: str | None

    @property
    def referenced_blocks(self) -> frozenset[str]:
        """The blocks whose branches' errors the condition reads."""
        references = (placed.reference for placed in self.expression.references)
        return frozenset(one.step for one in references if one.part is Part.ERRORS and one.step is not None)


# What branches consist of.
BranchStep = AgentPlan | BlockPlan
StepPlan = AgentPlan | BlockPlan | ConditionalPlan


@dataclass(frozen=True, slots=True)
class Plan:
    """A workflow's graph, compiled and immutable; shared by all runs of one definition."""

    workflow_id: str
    workflow_version: str
    timeout_seconds: float | None  # of a run
    start: str
    steps: Mapping[str, StepPlan]


def compile_plan(workflow: Workflow) -> Plan:
    """Compile a valid *workflow*.

    Args:
        workflow: As `schemas.validation.parse_workflow` returned it; its graph is not checked again.
    """
    places = {
        step_id: place
        for step in workflow.steps.values()
        if isinstance(step, ParallelStep | ForkJoinStep)
        for step_id, place in _places(step)
    }
    steps: dict[str, StepPlan] = {}
    for step in _inner_first(workflow, places):
        place = places.get(step.id)
        match step:
            case AgentStep():
                steps[step.id] = _agent_plan(step, place)
            case ParallelStep():
                steps[step.id] = _block_plan(step, step, step.parallel_steps, steps, place)
            case ForkJoinStep(fork_join_config=config):
                firsts = [branch.steps[0] for branch in config.branches.values()]
                steps[step.id] = _block_plan(step, config, firsts, steps, place)
            case ConditionalStep():
                steps[step.id] = _conditional_plan(step)
            case _:
                assert_never(step)
    steps = _led_on(workflow.start_step, steps)
    return Plan(workflow.workflow_id, workflow.version, workflow.timeout_seconds, workflow.start_step, steps)


def _led_on(start: str, steps: Mapping[str, StepPlan]) -> dict[str, StepPlan]:
    """Return *steps*, in which those that end a path of a conditional lead to where the run goes on behind it."""
    if not any(isinstance(step, ConditionalPlan) for step in steps.values()):
        return dict(steps)
    nodes = {step_id: step for step_id, step in steps.items() if _block_of(step) is None}
    following = ways(start, {step_id: _crossing(step, steps) for step_id, step in nodes.items()}).following
    led = {step_id: replace(step, next_step=following.get(step_id)) for step_id, step in nodes.items()}
    return {**steps, **_with_skipped(led, steps)}


def _with_skipped(led: Mapping[str, StepPlan], steps: Mapping[str, StepPlan]) -> dict[str, StepPlan]:
    """Return the steps, in which conditionals know which step never runs once a path is chosen."""
    successors = {step_id: _leads_to(step, steps) for step_id, step in led.items()}
    choices = {step_id: step for step_id, step in led.items() if isinstance(step, ConditionalPlan)}
    pairs = [
        (way, other)
        for step in choices.values()
        for taken, other in ((step.if_true, step.if_false), (step.if_false, step.if_true))
        for way in (taken if taken is not None else step.next_step,)
        if way is not None and other is not None
    ]
    runs_all_the_same = preceding(pairs, successors)

    def skipped(step: ConditionalPlan, taken: str | None, other: str | None) -> str | None:
        way = taken if taken is not None else step.next_step
        return None if other == way or (way, other) in runs_all_the_same else other

    return {
        **led,
        **{
            step_id: replace(
                step,
                skipped_if_true=skipped(step, step.if_true, step.if_false),
                skipped_if_false=skipped(step, step.if_false, step.if_true),
            )
            for step_id, step in choices.items()
        },
    }


def _block_of(step: StepPlan) -> str | None:
    return step.block_id if not isinstance(step, ConditionalPlan) else None


def _crossing(step: StepPlan, steps: Mapping[str, StepPlan]) -> Crossing:
    choices = (step.if_true, step.if_false) if isinstance(step, ConditionalPlan) else ()
    return Crossing(step.next_step, _handlers(step, steps), tuple(one for one in choices if one is not None))


def _leads_to(step: StepPlan, steps: Mapping[str, StepPlan]) -> list[str]:
    crossing = _crossing(step, steps)
    following = [crossing.next_step] if crossing.next_step is not None else []
    return [*following, *crossing.handlers, *crossing.choices]


def _handlers(step: StepPlan, steps: Mapping[str, StepPlan]) -> tuple[str, ...]:
    handlers = [step.on_failure]
    if isinstance(step, BlockPlan):
        inner = (one for branch in step.branches for one in branch_from(steps, branch.id))
        handlers += [handler for one in inner for handler in _handlers(one, steps)]
    return tuple(dict.fromkeys(handler for handler in handlers if handler is not None))


def blocks_around(steps: Mapping[str, StepPlan], step_id: str) -> Iterator[str]:
    """Yield the block of whose branches it is a step, the block around that, and so on."""
    block_id = _block_of(steps[step_id])
    while block_id is not None:
        yield block_id
        block_id = _block_of(steps[block_id])


def _inner_first(workflow: Workflow, places: "Mapping[str, _Place]") -> list[Step]:
    """Return the steps, those of branches before their blocks."""

    def depth(step: Step) -> int:
        place, found = places.get(step.id), 0
        while place is not None:
            place, found = places.get(place.rules.block_id), found + 1
        return found

    return sorted(workflow.steps.values(), key=depth, reverse=True)


def branch_from(steps: Mapping[str, StepPlan], step_id: str) -> Iterator[BranchStep]:
    """Yield the steps of a branch from *step_id* on."""
    following: str | None = step_id
    while following is not None:
        step = steps[following]
        assert not isinstance(step, ConditionalPlan), "branches consist of agent steps and blocks"
        yield step
        following = step.next_step


class _Rules(NamedTuple):
    """What the branches of a block share, where they do not say it themselves."""

    block_id: str
    limits: TimeLimits
    retry: RetryPolicy | None
    join_policy: JoinPolicy


class _Place(NamedTuple):
    """Where in a block a step stands."""

    rules: _Rules
    branch_name: str
    branch_timeout: float | None
    position: int
    ordinal: int
    following: str | None


def _places(step: ParallelStep | ForkJoinStep) -> Iterator[tuple[str, _Place]]:
    if isinstance(step, ParallelStep):
        rules = _Rules(step.id, _limits(step), _retry_policy(step), step.join_policy)
        for position, branch_id in enumerate(step.parallel_steps):
            yield branch_id, _Place(rules, branch_id, None, position, 0, None)
        return
    config = step.fork_join_config
    rules = _Rules(step.id, _limits(step), _retry_policy(step), config.join_policy)
    for position, (name, branch) in enumerate(config.branches.items()):
        timeout = branch.timeout_seconds if branch.timeout_seconds is not None else config.branch_timeout_seconds
        for ordinal, (step_id, following) in enumerate(zip(branch.steps, [*branch.steps[1:], None], strict=True)):
            yield step_id, _Place(rules, name, timeout, position, ordinal, following)


def _agent_plan(step: AgentStep, place: _Place | None) -> AgentPlan:
    limits, retry = _limits(step), _retry_policy(step)
    if place is not None:
        limits = limits.or_else(place.rules.limits)
        retry = retry if retry is not None else place.rules.retry
    return AgentPlan(
        id=step.id,
        agent_name=step.agent_name,
        template=compile_template(step.input_mapping),
        next_step=place.following if place is not None else step.next_step,
        on_failure=step.on_failure,
        limits=limits,
        retry=retry,
        block_id=place.rules.block_id if place is not None else None,
        branch_name=place.branch_name if place is not None else None,
        branch_timeout=place.branch_timeout if place is not None else None,
        join_policy=place.rules.join_policy if place is not None else None,
        position=place.position if place is not None else 0,
        ordinal=place.ordinal if place is not None else 0,
    )


def _limits(step: AgentStep | ParallelStep | ForkJoinStep) -> TimeLimits:
    limits = TimeLimits(step.timeout_seconds, step.queue_timeout_seconds, step.heartbeat_timeout_seconds)
    return limits if limits != _NO_LIMITS else _NO_LIMITS  # one for all of the many steps without any


def _retry_policy(step: AgentStep | ParallelStep | ForkJoinStep) -> RetryPolicy | None:
    if step.retry is not None:
        return _policy(step.retry)
    return _older_policy(step.retry_strategy) if step.retry_strategy is not None else None


def _policy(retry: Retry) -> RetryPolicy:
    return RetryPolicy(
        max_attempts=retry.max_attempts,
        initial_seconds=retry.initial_interval_seconds,
        factor=retry.backoff,
        step_seconds=0,
        max_seconds=retry.max_interval_seconds,
        jitter=retry.jitter,
        never_after=frozenset(retry.non_retryable),
        only_after=frozenset(),
    )


def _older_policy(strategy: RetryStrategy) -> RetryPolicy:
    initial = strategy.initial_delay_ms / 1000
    return RetryPolicy(
        max_attempts=strategy.max_retries + 1,
        initial_seconds=0 if strategy.type is BackoffType.IMMEDIATE else initial,
        factor=strategy.backoff_multiplier if strategy.type is BackoffType.EXPONENTIAL else 1,
        step_seconds=initial if strategy.type is BackoffType.LINEAR else 0,
        max_seconds=strategy.max_delay_ms / 1000,
        jitter=strategy.jitter,
        never_after=frozenset(),
        only_after=frozenset(strategy.retry_on_errors),
    )


def _block_plan(
    step: ParallelStep | ForkJoinStep,
    join: ParallelStep | ForkJoinConfig,
    firsts: Sequence[str],
    known: Mapping[str, StepPlan],
    place: _Place | None,
) -> BlockPlan:
    branches = [known[step_id] for step_id in firsts]
    return BlockPlan(
        id=step.id,
        branches=tuple(branch for branch in branches if not isinstance(branch, ConditionalPlan)),
        max_parallelism=join.max_parallelism,
        join_policy=join.join_policy,
        needed=_needed(join.join_policy, join.n_required, len(firsts)),
        cancels_the_rest=join.on_decided is OnDecided.CANCEL,
        shows_failed=isinstance(step, ForkJoinStep),
        next_step=place.following if place is not None else step.next_step,
        on_failure=step.on_failure,
        block_id=place.rules.block_id if place is not None else None,
        branch_name=place.branch_name if place is not None else None,
        branch_timeout=place.branch_timeout if place is not None else None,
        position=place.position if place is not None else 0,
        ordinal=place.ordinal if place is not None else 0,
    )


def _conditional_plan(step: ConditionalStep) -> ConditionalPlan:
    return ConditionalPlan(
        id=step.id,
        expression=compile_expression(step.condition.expression),
        if_true=step.if_true_step,
        if_false=step.if_false_step,
        skipped_if_true=None,
        skipped_if_false=None,
        next_step=step.next_step,
        on_failure=step.on_failure,
    )


def _needed(policy: JoinPolicy, n_required: int | None, total: int) -> int:
    match policy:
        case JoinPolicy.ALL:
            return total
        case JoinPolicy.ANY:
            return 1
        case JoinPolicy.MAJORITY:
            return total // 2 + 1
        case JoinPolicy.N_OF_M:
            assert n_required is not None, "validation asks for it"
            return n_required
        case _:
            assert_never(policy)
