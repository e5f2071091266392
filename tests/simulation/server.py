"""The broker of the simulation: it knows which queues came back after they had been deleted, and by whom.

A consumer declares its queue again when that is deleted under it. So a replica that is frozen while another takes its
gate over, and deletes the queue, brings it back without a step of its own. It finds that out in its next lease round;
where it is killed first, nobody knows of the queue any more, and it stays until it expires.
"""

from collections.abc import Callable
from datetime import datetime

from messaging.memory import MemoryServer
from messaging.memory.server import Client
from messaging.port import Queue


class SimulatedServer(MemoryServer):
    """The broker in memory, watched."""

    def __init__(self, wall_clock: Callable[[], datetime]) -> None:
        super().__init__(wall_clock=wall_clock)
        self._deleted: set[str] = set()
        self.brought_back: dict[str, Client] = {}

    def declare_queue(self, queue: Queue, client: Client) -> None:
        """Make sure that *queue* exists with its bindings; note who brought it back."""
        came_back = queue.name in self._deleted and queue.name not in self.queue_names
        super().declare_queue(queue, client)
        if came_back:
            self.brought_back[queue.name] = client

    def delete_queue(self, name: str, client: Client) -> None:
        """Delete a queue, if it is there; nobody should want it back."""
        super().delete_queue(name, client)
        self._deleted.add(name)
        self.brought_back.pop(name, None)

    def lose_queue(self, name: str, client: Client) -> None:
        """Delete a queue by accident: whoever brings it back does right."""
        super().delete_queue(name, client)
