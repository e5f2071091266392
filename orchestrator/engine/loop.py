"""A loop's collection: what it goes through, and what cannot be gone through."""

from collections.abc import Sequence
from typing import Any

from orchestrator.engine import codes
from orchestrator.engine.plan import LoopPlan
from schemas.display import kind
from schemas.errors import ReferenceBroken
from schemas.messages import ErrorInfo
from schemas.scope import Scope


def collected(plan: LoopPlan, scope: Scope) -> Sequence[Any] | ErrorInfo:
    """Return the items of the loop's collection, or why there are none to go through."""
    try:
        items = plan.collection.resolve(scope)
    except ReferenceBroken as broken:
        reference = {"reference": broken.reference}
        return ErrorInfo(code=codes.REFERENCE_BROKEN, message=str(broken), details=reference)
    if not isinstance(items, list | tuple):
        message = f"the collection is {kind(items)}; a loop goes through an array"
        return ErrorInfo(code=codes.NOT_A_COLLECTION, message=message)
    if plan.max_iterations is not None and len(items) > plan.max_iterations:
        message = f"the collection has {len(items)} items, and max_iterations allows {plan.max_iterations}"
        return ErrorInfo(code=codes.TOO_MANY_ITERATIONS, message=message, details={"total_count": len(items)})
    return items
