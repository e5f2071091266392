"""One orchestrator replica within the tests' process, which can be killed like a process."""

import asyncio
import contextvars
import weakref
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from messaging.memory import MemoryBroker, MemoryServer
from messaging.port import Broker
from messaging.rabbitmq import RabbitmqBroker
from orchestrator.service.replica import Replica
from orchestrator.storage.database import Database

# Which replica a task belongs to: tasks inherit the context of whoever creates them, and a task factory notes it.
_OWNER: contextvars.ContextVar[str] = contextvars.ContextVar("owner", default="")
_OWNERS: "weakref.WeakKeyDictionary[asyncio.Task[Any], str]" = weakref.WeakKeyDictionary()


def owned_task(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> "asyncio.Task[Any]":
    context = options.get("context") or contextvars.copy_context()
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    _OWNERS[task] = context.run(_OWNER.get)
    return task


@dataclass
class Brokers:
    """Clients of one broker: of a vhost, or of a server in memory where there is no *amqp_url*."""

    amqp_url: str | None
    server: MemoryServer = field(default_factory=MemoryServer)

    async def connect(self, name: str, **options: Any) -> Broker:
        """Return a new, connected client; its owner closes it."""
        broker: Broker
        if self.amqp_url is None:
            broker = MemoryBroker(self.server, name=name, **options)
        else:
            broker = RabbitmqBroker(self.amqp_url, name=name, **options)
        await broker.connect()
        return broker


@dataclass
class RunningReplica:
    """One orchestrator replica with its own connections, as one process has it."""

    name: str
    replica: Replica
    broker: Broker
    database: Database
    failed: "asyncio.Task[None]"

    async def stop(self) -> None:
        """End it in order; raises what made one of its loops fail."""
        await self._end(self.replica.stop())

    async def crash(self) -> None:
        """End it as SIGKILL does: nothing is finished, no lease is given back."""
        await self._end(self._cancel_all())

    async def _end(self, ending: Awaitable[None]) -> None:
        broken = self.failed.done() and not self.failed.cancelled()
        self.failed.cancel()
        await ending
        await self.broker.close()
        await self.database.close()
        if broken:
            self.failed.result()

    async def _cancel_all(self) -> None:
        while tasks := [task for task in asyncio.all_tasks() if self._owns(task)]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _owns(self, task: "asyncio.Task[Any]") -> bool:
        # The broker client has tasks of its own, which end with it.
        code = getattr(task.get_coro(), "cr_code", None)
        return _OWNERS.get(task) == self.name and code is not None and "/orchestrator/" in code.co_filename


async def start(replica: Replica, name: str) -> "asyncio.Task[None]":
    """Start a replica and know its tasks for its own; return the task that ends when one of its loops fails."""
    asyncio.get_running_loop().set_task_factory(owned_task)
    context = contextvars.copy_context()
    context.run(_OWNER.set, name)
    await asyncio.create_task(replica.start(), context=context)
    return asyncio.create_task(replica.failed())
