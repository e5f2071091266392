"""The plan: a workflow compiled once into what the decisions need."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Final, NamedTuple, assert_never

from schemas.references import Template, compile_template
from schemas.workflow import AgentStep, BackoffType, ParallelStep, Retry, RetryStrategy, Workflow


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
    """One agent step. `block_id` names the block whose branch it is, `position` its place there."""

    id: str
    agent_name: str
    template: Template
    next_step: str | None
    on_failure: str | None
    limits: TimeLimits
    retry: RetryPolicy | None
    block_id: str | None
    position: int


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """One parallel step with its branches in definition order."""

    id: str
    branches: tuple[AgentPlan, ...]
    max_parallelism: int | None
    next_step: str | None
    on_failure: str | None

    @property
    def is_gated(self) -> bool:
        """Whether the limit can ever hold a branch back."""
        return self.max_parallelism is not None and self.max_parallelism < len(self.branches)

    @property
    def referenced_steps(self) -> frozenset[str]:
        """The steps that any branch reads from."""
        return frozenset().union(*(branch.template.steps for branch in self.branches))


StepPlan = AgentPlan | BlockPlan


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
        branch_id: _Place(rules, position)
        for step in workflow.steps.values()
        if isinstance(step, ParallelStep)
        for rules in [_Rules(step.id, _limits(step), _retry_policy(step))]
        for position, branch_id in enumerate(step.parallel_steps)
    }
    agents = {
        step.id: _agent_plan(step, places.get(step.id))
        for step in workflow.steps.values()
        if isinstance(step, AgentStep)
    }
    steps: dict[str, StepPlan] = {}
    for step in workflow.steps.values():
        match step:
            case AgentStep():
                steps[step.id] = agents[step.id]
            case ParallelStep():
                steps[step.id] = _block_plan(step, agents)
            case _:
                assert_never(step)
    return Plan(workflow.workflow_id, workflow.version, workflow.timeout_seconds, workflow.start_step, steps)


class _Rules(NamedTuple):
    """What the branches of a block share, where they do not say it themselves."""

    block_id: str
    limits: TimeLimits
    retry: RetryPolicy | None


class _Place(NamedTuple):
    rules: _Rules
    position: int


def _agent_plan(step: AgentStep, place: _Place | None) -> AgentPlan:
    limits, retry = _limits(step), _retry_policy(step)
    if place is not None:
        limits = limits.or_else(place.rules.limits)
        retry = retry if retry is not None else place.rules.retry
    return AgentPlan(
        id=step.id,
        agent_name=step.agent_name,
        template=compile_template(step.input_mapping),
        next_step=step.next_step,
        on_failure=step.on_failure,
        limits=limits,
        retry=retry,
        block_id=place.rules.block_id if place is not None else None,
        position=place.position if place is not None else 0,
    )


def _limits(step: AgentStep | ParallelStep) -> TimeLimits:
    limits = TimeLimits(step.timeout_seconds, step.queue_timeout_seconds, step.heartbeat_timeout_seconds)
    return limits if limits != _NO_LIMITS else _NO_LIMITS  # one for all of the many steps without any


def _retry_policy(step: AgentStep | ParallelStep) -> RetryPolicy | None:
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


def _block_plan(step: ParallelStep, agents: Mapping[str, AgentPlan]) -> BlockPlan:
    return BlockPlan(
        id=step.id,
        branches=tuple(agents[branch_id] for branch_id in step.parallel_steps),
        max_parallelism=step.max_parallelism,
        next_step=step.next_step,
        on_failure=step.on_failure,
    )
