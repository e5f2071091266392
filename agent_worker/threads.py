"""Threads for sync agents.

Not a ThreadPoolExecutor: its size would be a limit that attempts which overran their timeout keep using up (a thread
cannot be killed), and the interpreter waits for its threads before it exits. These are daemon threads, one for each
attempt that runs, used again when it is done; how many attempts run is decided elsewhere.
"""

import asyncio
import contextvars
import itertools
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class AgentThreads:
    """As many threads as there are calls at once. Belongs to one event loop."""

    def __init__(self) -> None:
        self._idle: list[_AgentThread] = []
        self._numbers = itertools.count(1)
        self._closed = False

    def run(self, call: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Call *call*, which must not raise, in a thread; the future gives what it returns.

        Cancelling the future does not stop the thread: it goes on, and what it returns is dropped.
        """
        future = asyncio.get_running_loop().create_future()
        thread = self._idle.pop() if self._idle else _AgentThread(next(self._numbers), self._took_back)
        context = contextvars.copy_context()
        thread.jobs.put((lambda: context.run(call), future))
        return future

    def close(self) -> None:
        """End the idle threads now, and the others when their call returns."""
        self._closed = True
        while self._idle:
            self._idle.pop().jobs.put(None)

    def _took_back(self, thread: "_AgentThread", future: "asyncio.Future[Any]", value: Any) -> None:
        if not future.done():
            future.set_result(value)
        if self._closed:
            thread.jobs.put(None)
        else:
            self._idle.append(thread)


class _AgentThread:
    def __init__(self, number: int, done: Callable[["_AgentThread", "asyncio.Future[Any]", Any], None]) -> None:
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._done = done
        threading.Thread(target=self._work, name=f"agent-{number}", daemon=True).start()

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            call, future = job
            value = call()
            try:
                future.get_loop().call_soon_threadsafe(self._done, self, future, value)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            del job, call, future, value  # an idle thread must not keep the last result alive
