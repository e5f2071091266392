"""Compiled plans, kept for as long as they are used and fit."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from orchestrator.engine.compilation import compile_plan
from orchestrator.engine.plan import Plan
from schemas.validation import parse_workflow

MAX_STEPS: Final = 200_000  # in all cached plans together; a step costs about a kilobyte

LoadDefinition = Callable[[str], Awaitable[Mapping[str, Any]]]


class PlanCache:
    """Plans by the id of their definition; the least recently used ones make room."""

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self._max_steps = max_steps
        self._plans: OrderedDict[str, Plan] = OrderedDict()
        self._steps = 0

    async def get(self, definition_id: str, load: LoadDefinition) -> Plan:
        """Return the plan; *load* brings the document where it is not cached."""
        plan = self._plans.get(definition_id)
        if plan is None:
            plan = compile_plan(parse_workflow(await load(definition_id)))
            self.put(definition_id, plan)
        self._plans.move_to_end(definition_id)
        return plan

    def put(self, definition_id: str, plan: Plan) -> None:
        """Keep a plan that was compiled just now."""
        if definition_id in self._plans:
            return
        self._plans[definition_id] = plan
        self._steps += len(plan.steps)
        while self._steps > self._max_steps and len(self._plans) > 1:
            _, dropped = self._plans.popitem(last=False)
            self._steps -= len(dropped.steps)
