"""Workflows to plans: what can be known beforehand is found out once, so that decisions only look it up."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final, NamedTuple, assert_never

from orchestrator.engine.plan import (
    NO_LIMITS,
    AgentPlan,
    AttemptPlan,
    BlockPlan,
    ConditionalPlan,
    LoopPlan,
    Place,
    Plan,
    RetryPolicy,
    StepPlan,
    SubWorkflowPlan,
    TimeLimits,
)
from schemas.expressions import compile_expression
from schemas.graph import components, preceding
from schemas.paths import Crossing, ways
from schemas.references import Part, compile_template
from schemas.statuses import JoinPolicy
from schemas.workflow import (
    AgentStep,
    BackoffType,
    ConditionalStep,
    ExecutionMode,
    ForkJoinConfig,
    ForkJoinStep,
    LoopStep,
    OnDecided,
    OnError,
    ParallelStep,
    Retry,
    RetryStrategy,
    Step,
    SubWorkflowStep,
    Workflow,
)

_Block = ParallelStep | ForkJoinStep | LoopStep


def compile_plan(workflow: Workflow) -> Plan:
    """Compile a valid *workflow*.

    Args:
        workflow: As `schemas.validation.parse_workflow` returned it; its graph is not checked again.
    """
    steps, lanes = _Compiler(workflow).compiled()
    return Plan(workflow.workflow_id, workflow.version, workflow.timeout_seconds, workflow.start_step, steps, lanes)


class _Rules(NamedTuple):
    """What the branches of a block share, where they do not say it themselves."""

    limits: TimeLimits
    retry: RetryPolicy | None


class _Lane(NamedTuple):
    """A branch as the document has it. Most consist of one step, which leads nowhere."""

    name: str
    first: str
    timeout: float | None
    crossings: Mapping[str, Crossing]  # by step, those of conditional paths among them; none where there is one step

    @property
    def steps(self) -> Iterable[str]:
        return self.crossings or (self.first,)

    @property
    def has_choices(self) -> bool:
        return any(crossing.choices for crossing in self.crossings.values())


class _Compiler:
    """Compiles the steps of one workflow, those within blocks before the blocks."""

    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow
        self._lanes = {
            step.id: list(_lanes(workflow, step)) for step in workflow.steps.values() if isinstance(step, _Block)
        }
        self._places: dict[str, Place] = {}
        self._rules: dict[str, _Rules] = {}  # by block
        for block_id, lanes in self._lanes.items():
            block = workflow.steps[block_id]
            assert isinstance(block, _Block)
            self._rules[block_id] = _Rules(_limits(block), _retry_policy(block))
            for position, lane in enumerate(lanes):
                self._find_places(block, position, lane)
        self._around = {block_id: tuple(self._outwards(block_id)) for block_id in self._lanes}
        self._item_readers: dict[str, set[str]] = {}  # by loop
        self._compiled: dict[str, StepPlan] = {}

    def compiled(self) -> tuple[dict[str, StepPlan], dict[str, tuple[str, ...]]]:
        """Return the steps by id, and the steps of branches that have more than one by the first of them."""
        ordered = sorted(self._workflow.steps, key=lambda step_id: len(self._blocks(step_id)), reverse=True)
        for step_id in ordered:
            self._compiled[step_id] = self._step(self._workflow.steps[step_id])
            self._note_item_reader(step_id)
        top = [step for step_id, step in self._compiled.items() if step_id not in self._places]
        if any(isinstance(step, ConditionalPlan) for step in top):
            self._wire(self._workflow.start_step, {step.id: _crossing(step, self._handlers(step)) for step in top})
        return {step_id: self._compiled[step_id] for step_id in self._workflow.steps}, self._long_lanes()

    def _find_places(self, block: _Block, position: int, lane: _Lane) -> None:
        policy = _join_policy(block)
        for ordinal, step_id in enumerate(_in_order(lane)):
            self._places[step_id] = Place(
                block.id, isinstance(block, LoopStep), lane.name, position, ordinal, lane.timeout, policy
            )

    def _long_lanes(self) -> dict[str, tuple[str, ...]]:
        return {
            lane.first: tuple(sorted(lane.crossings, key=lambda step_id: self._places[step_id].ordinal))
            for lanes in self._lanes.values()
            for lane in lanes
            if len(lane.crossings) > 1
        }

    def _blocks(self, step_id: str) -> tuple[str, ...]:
        """Return the block of whose branches it is a step, the block around that, and so on."""
        place = self._places.get(step_id)
        return self._around[place.block_id] if place is not None else ()

    def _outwards(self, block_id: str) -> Iterator[str]:
        yield block_id
        place = self._places.get(block_id)
        while place is not None:
            yield place.block_id
            place = self._places.get(place.block_id)

    def _loops(self, step_id: str) -> list[str]:
        """Return the loops around a step, the innermost first."""
        return [block_id for block_id in self._blocks(step_id) if isinstance(self._workflow.steps[block_id], LoopStep)]

    # Steps

    def _step(self, step: Step) -> StepPlan:
        match step:
            case AgentStep():
                return AgentPlan(**self._attempts(step, _limits(step)), agent_name=step.agent_name)
            case SubWorkflowStep():
                limits = TimeLimits(step.timeout_seconds, None, None)
                return SubWorkflowPlan(
                    **self._attempts(step, limits), workflow_id=step.workflow_id, version=step.version
                )
            case ParallelStep():
                return self._block_plan(step, step)
            case ForkJoinStep():
                return self._block_plan(step, step.fork_join_config)
            case LoopStep():
                return self._loop_plan(step)
            case ConditionalStep():
                return self._conditional_plan(step)
            case _:
                assert_never(step)

    def _attempts(self, step: AgentStep | SubWorkflowStep, limits: TimeLimits) -> dict[str, Any]:
        """Return what steps have that somebody carries out."""
        retry = _retry_policy(step)
        place = self._places.get(step.id)
        if place is not None:
            rules = self._rules[place.block_id]
            limits, retry = limits.or_else(rules.limits), retry if retry is not None else rules.retry
        template = compile_template(step.input_mapping)
        return {**self._common(step), "template": template, "limits": limits, "retry": retry}

    def _block_plan(self, step: ParallelStep | ForkJoinStep, join: ParallelStep | ForkJoinConfig) -> BlockPlan:
        branches = self._branches(step)
        return BlockPlan(
            **self._common(step),
            branches=branches,
            max_parallelism=join.max_parallelism,
            join_policy=join.join_policy,
            needed=_needed(join.join_policy, join.n_required, len(branches)),
            cancels_the_rest=join.on_decided is OnDecided.CANCEL,
            shows_failed=isinstance(step, ForkJoinStep),
        )

    def _loop_plan(self, step: LoopStep) -> LoopPlan:
        config = step.loop_config
        (body,) = self._branches(step)
        is_sequential = config.execution_mode is ExecutionMode.SEQUENTIAL
        at_fork = {body.id} if isinstance(body, AttemptPlan) else set()
        return LoopPlan(
            **self._common(step),
            body=body,
            collection=compile_template(config.collection),
            max_parallelism=1 if is_sequential else config.max_parallelism,
            max_iterations=config.max_iterations,
            is_sequential=is_sequential,
            stops=config.on_error is OnError.STOP,
            tolerates=config.on_error is OnError.CONTINUE,
            keeps_items=bool(self._item_readers.get(step.id, set()) - at_fork),
        )

    def _conditional_plan(self, step: ConditionalStep) -> ConditionalPlan:
        return ConditionalPlan(
            **self._common(step),
            expression=compile_expression(step.condition.expression),
            if_true=step.if_true_step,
            if_false=step.if_false_step,
            skipped_if_true=None,
            skipped_if_false=None,
        )

    def _common(self, step: Step) -> dict[str, Any]:
        place = self._places.get(step.id)
        following = step.next_step
        if place is not None:
            lane = self._lanes[place.block_id][place.position]
            following = lane.crossings.get(step.id, _LEADS_NOWHERE).next_step
        return {
            "id": step.id,
            "place": place,
            "loops": len(self._loops(step.id)),
            "next_step": following,
            "on_failure": step.on_failure,
        }

    def _branches(self, step: _Block) -> tuple[StepPlan, ...]:
        """Return the first steps of a block's branches, in which paths lead on behind their conditionals."""
        lanes = self._lanes[step.id]
        for lane in lanes:
            if lane.has_choices:
                self._wire(lane.first, lane.crossings)
        return tuple(self._compiled[lane.first] for lane in lanes)

    def _note_item_reader(self, step_id: str) -> None:
        if Part.ITEM not in self._compiled[step_id].reads.loop_parts:
            return
        self._item_readers.setdefault(self._loops(step_id)[0], set()).add(step_id)

    # Where the run goes on

    def _handlers(self, step: StepPlan) -> tuple[str, ...]:
        found = [step.on_failure]
        for lane in self._lanes.get(step.id, ()):
            for inner in lane.steps:
                found += self._handlers(self._compiled[inner])
        return tuple(dict.fromkeys(handler for handler in found if handler is not None))

    def _wire(self, start: str, crossings: Mapping[str, Crossing]) -> None:
        """Lead the steps that end a path of a conditional to what comes behind it, and find what each choice skips."""
        following = ways(start, crossings).following
        led = {step_id: replace(self._compiled[step_id], next_step=following.get(step_id)) for step_id in crossings}
        successors = {step_id: _leads_to(step.next_step, crossings[step_id]) for step_id, step in led.items()}
        choices = [step for step in led.values() if isinstance(step, ConditionalPlan)]
        pairs = [
            (way, other)
            for step in choices
            for taken, other in ((step.if_true, step.if_false), (step.if_false, step.if_true))
            for way in (taken if taken is not None else step.next_step,)
            if way is not None and other is not None
        ]
        runs_all_the_same = preceding(pairs, successors)

        def skipped(step: ConditionalPlan, taken: str | None, other: str | None) -> str | None:
            way = taken if taken is not None else step.next_step
            return None if other == way or (way, other) in runs_all_the_same else other

        for step in choices:
            led[step.id] = replace(
                step,
                skipped_if_true=skipped(step, step.if_true, step.if_false),
                skipped_if_false=skipped(step, step.if_false, step.if_true),
            )
        self._compiled |= led


# Branches


def _lanes(workflow: Workflow, step: _Block) -> Iterator[_Lane]:
    match step:
        case ParallelStep():
            for step_id in step.parallel_steps:
                yield _Lane(step_id, step_id, None, _crossings(workflow, [step_id]))
        case ForkJoinStep(fork_join_config=config):
            for name, branch in config.branches.items():
                own, default = branch.timeout_seconds, config.branch_timeout_seconds
                timeout = own if own is not None else default
                yield _Lane(name, branch.steps[0], timeout, _crossings(workflow, branch.steps))
        case LoopStep(loop_config=config):
            yield _Lane("", config.loop_body[0], None, _crossings(workflow, config.loop_body))
        case _:
            assert_never(step)


_LEADS_NOWHERE: Final = Crossing(None, ())
_ALONE: Final[Mapping[str, Crossing]] = {}  # one for all of the many branches of one step


def _crossings(workflow: Workflow, listed: Sequence[str]) -> Mapping[str, Crossing]:
    """Return how the steps of a branch lead to each other, those on the paths of its conditionals too."""
    steps = workflow.steps
    if len(listed) == 1 and not isinstance(steps[listed[0]], ConditionalStep):
        return _ALONE
    following = dict(pairwise(listed))
    found: dict[str, Crossing] = {}
    ahead = list(listed)
    while ahead:
        step = steps[ahead.pop()]
        if step.id in found:
            continue
        choices = (step.if_true_step, step.if_false_step) if isinstance(step, ConditionalStep) else ()
        paths = tuple(choice for choice in choices if choice is not None)
        next_step = following.get(step.id) or (step.next_step if step.id not in listed else None)
        found[step.id] = Crossing(next_step, (), paths)
        ahead += [*paths, *([next_step] if next_step is not None else [])]
    return found


def _in_order(lane: _Lane) -> list[str]:
    """Return the steps of a branch, each before those that may run after it."""
    if not lane.crossings:
        return [lane.first]
    following = ways(lane.first, lane.crossings).following
    successors = {step_id: _leads_to(following.get(step_id), crossing) for step_id, crossing in lane.crossings.items()}
    return [step_id for component in components(successors) for step_id in component]


def _leads_to(next_step: str | None, crossing: Crossing) -> list[str]:
    return [*([next_step] if next_step is not None else ()), *crossing.handlers, *crossing.choices]


def _crossing(step: StepPlan, handlers: tuple[str, ...]) -> Crossing:
    choices = (step.if_true, step.if_false) if isinstance(step, ConditionalPlan) else ()
    return Crossing(step.next_step, handlers, tuple(one for one in choices if one is not None))


def _join_policy(block: _Block) -> JoinPolicy | None:
    match block:
        case ParallelStep():
            return block.join_policy
        case ForkJoinStep():
            return block.fork_join_config.join_policy
        case LoopStep():
            return None
        case _:
            assert_never(block)


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


# Limits and retries


def _limits(step: AgentStep | _Block) -> TimeLimits:
    limits = TimeLimits(step.timeout_seconds, step.queue_timeout_seconds, step.heartbeat_timeout_seconds)
    return limits if limits != NO_LIMITS else NO_LIMITS  # one for all of the many steps without any


def _retry_policy(step: AgentStep | SubWorkflowStep | _Block) -> RetryPolicy | None:
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
