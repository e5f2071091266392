"""The plan: a workflow compiled once into what the decisions need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from schemas.references import Template, compile_template
from schemas.workflow import AgentStep, ParallelStep, Workflow


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One agent step. `block_id` names the block whose branch it is, `position` its place there."""

    id: str
    agent_name: str
    template: Template
    next_step: str | None
    on_failure: str | None
    timeout_seconds: float | None
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
    start: str
    steps: Mapping[str, StepPlan]


def compile_plan(workflow: Workflow) -> Plan:
    """Compile a valid *workflow*.

    Args:
        workflow: As `schemas.validation.parse_workflow` returned it; its graph is not checked again.
    """
    places = {
        branch_id: (step.id, position, step.timeout_seconds)
        for step in workflow.steps.values()
        if isinstance(step, ParallelStep)
        for position, branch_id in enumerate(step.parallel_steps)
    }
    agents = {
        step.id: _agent_plan(step, *places.get(step.id, (None, 0, None)))
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
    return Plan(workflow.workflow_id, workflow.version, workflow.start_step, steps)


def _agent_plan(step: AgentStep, block_id: str | None, position: int, default_timeout: float | None) -> AgentPlan:
    return AgentPlan(
        id=step.id,
        agent_name=step.agent_name,
        template=compile_template(step.input_mapping),
        next_step=step.next_step,
        on_failure=step.on_failure,
        timeout_seconds=step.timeout_seconds if step.timeout_seconds is not None else default_timeout,
        block_id=block_id,
        position=position,
    )


def _block_plan(step: ParallelStep, agents: Mapping[str, AgentPlan]) -> BlockPlan:
    return BlockPlan(
        id=step.id,
        branches=tuple(agents[branch_id] for branch_id in step.parallel_steps),
        max_parallelism=step.max_parallelism,
        next_step=step.next_step,
        on_failure=step.on_failure,
    )
