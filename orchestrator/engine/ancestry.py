"""Runs of workflows within runs: how deep they may go, and that none comes back to where it came from.

Each run knows the workflows of the runs above it, as the rows of those say, not as a message claims. So a step that
would start a run without end fails before anything is sent.
"""

from typing import Final

from orchestrator.engine import codes
from orchestrator.engine.records import Run
from schemas.display import cut, quoted
from schemas.messages import ErrorInfo

MAX_RUN_DEPTH: Final = 8  # runs within runs, the outermost one too


def why_forbidden(run: Run, workflow_id: str) -> ErrorInfo | None:
    """Return why *run* may not start a run of this workflow; None: it may."""
    way = " -> ".join(quoted(cut(name)) for name in (*run.lineage, workflow_id))
    if workflow_id in run.lineage:
        message = f"workflow {quoted(workflow_id)} would start itself, by this way: {way}"
        return ErrorInfo(code=codes.SUB_WORKFLOW_CYCLE, message=message)
    if len(run.lineage) >= MAX_RUN_DEPTH:
        message = f"runs go {MAX_RUN_DEPTH} deep at most, and this one would be deeper: {way}"
        return ErrorInfo(code=codes.SUB_WORKFLOW_TOO_DEEP, message=message)
    return None
