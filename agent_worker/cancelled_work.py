"""What a worker knows to be cancelled: runs, and blocks that went on without the rest of their branches."""

from collections import OrderedDict
from typing import Final, NamedTuple
from uuid import UUID

from schemas.messages import AgentTask

MAX_CANCELLED: Final = 10_000


class Cancelled(NamedTuple):
    """A cancelled run, or the branches of one block of it."""

    run_id: UUID
    block_id: str | None = None

    def covers(self, task: AgentTask) -> bool:
        """Whether nobody waits for the result of *task*."""
        return self.run_id == task.run_id and self.block_id in {None, task.parent_step_id}


class CancelledWork:
    """What was cancelled last, so that tasks that are delivered later are known. Bounded."""

    def __init__(self, most: int = MAX_CANCELLED) -> None:
        self._most = most
        self._keys: OrderedDict[tuple[int, str | None], None] = OrderedDict()  # by numbers: UUIDs hash slowly

    def add(self, cancelled: Cancelled) -> None:
        """Remember this; what was heard of longest ago goes when there is too much."""
        key = (cancelled.run_id.int, cancelled.block_id)
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._most:
            self._keys.popitem(last=False)

    def covers(self, task: AgentTask) -> bool:
        """Whether nobody waits for the result of *task*."""
        if not self._keys:
            return False
        run, block = task.run_id.int, task.parent_step_id
        return (run, None) in self._keys or (block is not None and (run, block) in self._keys)
