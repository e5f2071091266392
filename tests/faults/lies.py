"""Execute-and-fail: operations that succeed and report an error, as a connection does that breaks in between.

Each replaces a function of this process for good; the processes that call them are made for one test.
"""

import functools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from messaging.port import Delivery, OutgoingMessage, PublishOutcome
from messaging.rabbitmq import RabbitmqBroker
from messaging.rabbitmq.consumer import RabbitmqConsumer
from orchestrator.storage.outbox import PostgresOutbox
from orchestrator.storage.postgres import PostgresStorage

LIED = "lied"  # the action in the log of a process that has met its fault


class Countdown:
    """Says when it is time to lie, and logs it: at the *number*-th call, and at no other."""

    def __init__(self, number: int) -> None:
        self._left = number

    def is_over(self) -> bool:
        """Count a call; return whether it is the one."""
        self._left -= 1
        if self._left == 0:
            print(json.dumps({"action": LIED}), flush=True)
        return self._left == 0


def lost() -> Exception:
    """Return what asyncpg raises when the connection breaks before the answer has come."""
    return asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")


def lie_about_commit(number: int) -> None:
    """COMMIT is done, and then the connection is lost before its answer (FAULTS.md, 47)."""
    countdown, execute = Countdown(number), asyncpg.Connection.execute

    @functools.wraps(execute)
    async def lying(connection: Any, query: str, *arguments: Any, **options: Any) -> Any:
        answer = await execute(connection, query, *arguments, **options)
        if query == "COMMIT" and countdown.is_over():
            connection.terminate()
            raise lost()
        return answer

    asyncpg.Connection.execute = lying


def lie_about_forget(number: int) -> None:
    """The rows of sent messages are deleted and that is committed, and then the connection is lost."""
    countdown, outbox, delete = Countdown(number), PostgresStorage.outbox, PostgresOutbox.delete
    deleted = []

    async def noting(self: PostgresOutbox, ids: Sequence[Any]) -> None:
        await delete(self, ids)
        deleted.append(ids)

    @asynccontextmanager
    async def lying(self: PostgresStorage) -> AsyncIterator[PostgresOutbox]:
        async with outbox(self) as opened:
            yield opened
        if deleted and countdown.is_over():
            raise lost()
        deleted.clear()

    PostgresOutbox.delete = noting  # type: ignore[method-assign]
    PostgresStorage.outbox = lying  # type: ignore[method-assign]


def lie_about_publish(number: int) -> None:
    """The broker has confirmed everything, and it is reported as unknown."""
    countdown, publish = Countdown(number), RabbitmqBroker.publish

    async def lying(
        self: RabbitmqBroker, messages: Sequence[OutgoingMessage], **options: Any
    ) -> Sequence[PublishOutcome]:
        outcomes = await publish(self, messages, **options)
        if messages and countdown.is_over():
            return [PublishOutcome.UNKNOWN for _ in messages]
        return outcomes

    RabbitmqBroker.publish = lying  # type: ignore[method-assign]


def lie_about_ack(number: int) -> None:
    """Acks are written, and then the connection is cut."""
    countdown, ack = Countdown(number), RabbitmqConsumer.ack

    async def lying(self: RabbitmqConsumer, deliveries: Sequence[Delivery]) -> None:
        await ack(self, deliveries)
        if deliveries and countdown.is_over():
            session = await self._connection.session()
            await session.writer.flushed()
            self._connection._transport.drop()

    RabbitmqConsumer.ack = lying  # type: ignore[method-assign]


LIES: dict[str, Callable[[int], None]] = {
    "lie.commit": lie_about_commit,
    "lie.forget": lie_about_forget,
    "lie.publish": lie_about_publish,
    "lie.ack": lie_about_ack,
}
