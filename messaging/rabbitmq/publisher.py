"""Publishing with confirms, many messages at a time, across reconnects."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from messaging.port import BrokerUnavailable, OutgoingMessage, PublishOutcome
from messaging.rabbitmq.confirm_channel import ConfirmChannel
from messaging.rabbitmq.confirms import Batch
from messaging.rabbitmq.connection import Connection


class Publisher:
    """Publishes on one channel, and opens the next one when that is lost.

    Args:
        connection: For publishing only: under a memory alarm RabbitMQ stops reading from it.
        timeout: Seconds that one `publish` takes at most, where it is not told otherwise.
        user_id: The connection's user, where messages are signed.
    """

    def __init__(self, connection: Connection, *, timeout: float, user_id: str | None = None) -> None:
        self._connection = connection
        self._user_id = user_id
        self._timeout = timeout
        self._opening = asyncio.Lock()
        self._channel: ConfirmChannel | None = None

    async def publish(
        self, messages: Sequence[OutgoingMessage], *, timeout: float | None = None
    ) -> list[PublishOutcome]:
        """Send *messages* and return what became of each, in the same order.

        What has no answer when the time is over, or when the channel ends, is UNKNOWN. An answer that comes later is
        noted where nobody looks any more.
        """
        batch = Batch(messages)
        with suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout(self._timeout if timeout is None else timeout):
                channel = await self._open()
                await channel.send(batch)
                await batch.answered()
        return list(batch.outcomes)

    async def _open(self) -> ConfirmChannel:
        async with self._opening:
            if self._channel is None or self._channel.is_lost:
                session = await self._connection.session()
                self._channel = ConfirmChannel(await session.open_channel(confirms=True), session, self._user_id)
            return self._channel
