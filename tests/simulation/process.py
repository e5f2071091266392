"""A process of the simulation: all tasks that one replica or worker has started, and their sudden end."""

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any, Final

_current: ContextVar["Process | None"] = ContextVar("process", default=None)

TURNS_TO_DIE: Final = 100  # of the event loop


class Process:
    """What lives and dies together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, main: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start its main task; whatever that starts belongs to the process too."""
        token = _current.set(self)
        try:
            return asyncio.get_running_loop().create_task(main)
        finally:
            _current.reset(token)

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        """Take a task in."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """End all its tasks; what they still try on their way out has no effect (see `Member`)."""
        assert not self.alive
        for _ in range(TURNS_TO_DIE):
            if not self._tasks:
                return
            for task in list(self._tasks):
                task.cancel()
            await asyncio.sleep(0)
        raise AssertionError(f"{self.name} does not end: {self._tasks}")


def task_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> "asyncio.Task[Any]":
    """Make a task that belongs to the process that starts it."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    process = _current.get()
    if process is not None:
        process.adopt(task)
    return task
