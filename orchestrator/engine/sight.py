"""What an execution sees: the outcomes that its references lead to, those of its own iterations of loops first."""

from orchestrator.engine.executions import iterations_of
from orchestrator.engine.plan import Plan
from orchestrator.engine.state import RunState, Wanted
from schemas.scope import Iteration, Part, Reads, Scope


def wanted_by(plan: Plan, execution: str, reads: Reads) -> Wanted:
    """Return what must be known before references of *execution*, which lead to *reads*, are resolved."""
    loop = plan.loop_around(execution) if reads.loop_parts else None
    return Wanted(
        steps=frozenset((loop,) if loop is not None else ()),
        outcomes=frozenset(plan.beside(execution, step_id) for step_id in reads.steps),
        errors=frozenset(plan.beside(execution, block_id) for block_id in reads.blocks),
        items=frozenset(
            ((loop, _index(plan, loop, execution)),) if loop is not None and Part.ITEM in reads.loop_parts else ()
        ),
        run_values=reads.workflow_input,
    )


def scope_of(state: RunState, execution: str, reads: Reads) -> Scope:
    """Return what references of *execution* resolve against; what `wanted_by` asks for is known."""
    plan = state.plan
    assert plan is not None, "whoever resolves references knows the plan"
    known = {step_id: state.outcome(plan.beside(execution, step_id)) for step_id in reads.steps}
    return Scope(
        state.run_values.input if state.run_values is not None else None,
        {step_id: outcome for step_id, outcome in known.items() if outcome is not None},
        _iteration(state, plan, execution, reads) if reads.loop_parts else None,
    )


def _iteration(state: RunState, plan: Plan, execution: str, reads: Reads) -> Iteration | None:
    loop = plan.loop_around(execution)
    row = state.steps[loop] if loop is not None else None
    if loop is None or row is None or row.branches is None:
        return None
    index = _index(plan, loop, execution)
    return Iteration(index, row.branches.total, state.item(loop, index) if Part.ITEM in reads.loop_parts else None)


def _index(plan: Plan, loop: str, execution: str) -> int:
    """Return which iteration of a loop around it *execution* lies in."""
    return iterations_of(execution)[plan.step(loop).loops]
