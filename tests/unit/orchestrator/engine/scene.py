"""Small workflows, rows and states to decide about, in which ids and times are numbers that a failure can show."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

from orchestrator.engine.block import new_block
from orchestrator.engine.compilation import compile_plan
from orchestrator.engine.decide import decide
from orchestrator.engine.decision import Decision
from orchestrator.engine.inputs import Input, RunRequested
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import AgentPlan, BlockPlan, ConditionalPlan, LoopPlan, Plan
from orchestrator.engine.records import Branches, ReplyAddress, Run, StepExecution
from orchestrator.engine.state import RunState, RunValues, Wanted
from schemas.messages import AgentError, AgentResult, ErrorInfo
from schemas.statuses import JoinPolicy, ReportStatus, RunStatus, StepStatus
from schemas.validation import parse_workflow

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN, TASK, OTHER = UUID(int=1), UUID(int=2), UUID(int=3)
REPLY = ReplyAddress("replies", "c-1")
ERROR = ErrorInfo(code="agent_error", message="no luck")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def counted_ids(first: int = 100) -> Callable[[], UUID]:
    numbers = count(first)
    return lambda: UUID(int=next(numbers))


# Plans


def agent(agent_name: str = "echo", **fields: Any) -> dict[str, Any]:
    return {"agent_name": agent_name, **fields}


def parallel(*branches: str, **fields: Any) -> dict[str, Any]:
    return {"type": "parallel", "parallel_steps": list(branches), **fields}


def loop(*body: str, **config: Any) -> dict[str, Any]:
    """Return a loop step that goes through two items."""
    return {"type": "loop", "loop_config": {"collection": [1, 2], "loop_body": list(body), **config}}


def plan_of(**steps: dict[str, Any]) -> Plan:
    """Return the plan of a workflow that begins with the first of *steps*."""
    return compile_plan(parse_workflow({"name": "sample", "start_step": next(iter(steps)), "steps": steps}))


def agent_plan(plan: Plan, step_id: str) -> AgentPlan:
    step = plan.steps[step_id]
    assert isinstance(step, AgentPlan)
    return step


def block_plan(plan: Plan, step_id: str = "block") -> BlockPlan:
    step = plan.steps[step_id]
    assert isinstance(step, BlockPlan)
    return step


def conditional_plan(plan: Plan, step_id: str = "choice") -> ConditionalPlan:
    step = plan.steps[step_id]
    assert isinstance(step, ConditionalPlan)
    return step


def loop_plan(plan: Plan, step_id: str = "loop") -> LoopPlan:
    step = plan.steps[step_id]
    assert isinstance(step, LoopPlan)
    return step


def three_branches(**block_fields: Any) -> Plan:
    """Return the plan of a block with the branches a, b and c, and nothing after it."""
    return plan_of(block=parallel("a", "b", "c", **block_fields), a=agent(), b=agent(), c=agent())


# Rows


def run_row(status: RunStatus = RunStatus.RUNNING, **fields: Any) -> Run:
    known = {"definition_id": "d-1", "workflow_id": "sample", "request_digest": "digest", "reply": None}
    return Run(**{"id": RUN, "status": status, "started_at": NOW, **known, **fields})


def step_row(step_id: str = "step", status: StepStatus = StepStatus.QUEUED, **fields: Any) -> StepExecution:
    """Return the row of an agent step in the first attempt, whose task is TASK once it has been sent."""
    sent = status is not StepStatus.PENDING
    given: dict[str, Any] = {"agent_name": "echo", "attempt": int(sent), "task_id": TASK if sent else None}
    if status is StepStatus.FAILED:
        given["error"] = ERROR
    return StepExecution(run_id=RUN, step_id=step_id, status=status, **(given | fields))


def branch_row(step_id: str = "a", status: StepStatus = StepStatus.QUEUED, **fields: Any) -> StepExecution:
    given = {"parent_step_id": "block", "branch_name": step_id, "position": ord(step_id[0]) - ord("a")} | fields
    return step_row(step_id, status, **given)


def block_row(status: StepStatus = StepStatus.RUNNING, **counters: Any) -> StepExecution:
    """Return the row of a block of three, all of them open."""
    given = {"total": 3, "open": 3, "failed": 0, "dispatched": 0, "passed": 0, "max_parallelism": None} | counters
    return StepExecution(
        run_id=RUN,
        step_id="block",
        status=status,
        join_policy=JoinPolicy.ALL,
        branches=Branches(**given),
        error=ERROR if status is StepStatus.FAILED else None,
    )


# States and inputs


def known(*rows: StepExecution, run: Run | None = None, plan: Plan | None = None) -> RunState:
    """Return the state of a run in which these rows, a plan and an empty input are known.

    The plan is, where none is given, one of the step and of the block of three, neither of which is tried again.
    """
    plan = plan or plan_of(
        step=agent(next_step="block"), block=parallel("a", "b", "c"), a=agent(), b=agent(), c=agent()
    )
    state = RunState(run or run_row(), plan=plan, run_values=RunValues({}, None, None))
    for row in rows:
        state.put_step(row)
    return state


def before_fork(plan: Plan) -> RunState:
    """Return the state in which the block of *plan* has its row, and no branch has."""
    return known(new_block(RUN, block_plan(plan), "block", None, NOW), plan=plan)


def report(status: ReportStatus = ReportStatus.COMPLETED, **fields: Any) -> AgentResult:
    given: dict[str, Any] = {"task_id": TASK, "run_id": RUN, "worker_id": "worker-1"}
    if status is ReportStatus.FAILED:
        given["error"] = AgentError(type="ValueError", message="no luck")
    return AgentResult(status=status, **(given | fields))


def requested(**fields: Any) -> RunRequested:
    given: dict[str, Any] = {
        "run_id": RUN,
        "definition_id": "d-1",
        "workflow_id": "sample",
        "workflow_version": "1.0",
        "request_digest": "digest",
        "input": {"topic": "rain"},
        "labels": {},
        "reply": None,
    }
    return RunRequested(**(given | fields))


def answer(state: RunState, event: Input, now: datetime = NOW) -> Decision | Wanted:
    return decide(state, event, Moment(now, counted_ids(), lambda: 0.0))


def decided(state: RunState, event: Input, now: datetime = NOW) -> Decision:
    """Return the decision about *event*, which must not want to see more, and must leave *state* as it is."""
    before = snapshot(state)
    decision = answer(state, event, now)
    assert isinstance(decision, Decision), f"it wants to see more: {decision}"
    assert snapshot(state) == before, "deciding changed the state"
    return decision


def snapshot(state: RunState) -> RunState:
    """Return a copy of *state* that does not change with it; the rows in it are frozen."""
    return replace(
        state,
        steps=dict(state.steps),
        tasks=dict(state.tasks),
        outcomes=dict(state.outcomes),
        failures=dict(state.failures),
        errors=dict(state.errors),
        waiting=dict(state.waiting),
        ready=dict(state.ready),
        items=dict(state.items),
        collections=dict(state.collections),
    )
