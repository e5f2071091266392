"""Deliveries between the broker's side and whoever calls `Consumer.receive`; both adapters use it."""

import asyncio
from collections import deque

from messaging.port import ConsumerClosed, Delivery


class Inbox:
    """Deliveries that have arrived and that nobody has taken yet, in order.

    Nothing is taken by a `take` that is cancelled: there is no await between taking and returning.
    """

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._waiting: deque[Delivery] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, delivery: Delivery) -> None:
        """Add a delivery and wake whoever waits; after `close` the channel's end returns it to the queue."""
        if self._closed:
            return
        self._waiting.append(delivery)
        self._changed.set()

    async def take(self, limit: int) -> list[Delivery]:
        """Wait until something is there, then return it all, at most *limit*.

        Raises:
            ConsumerClosed: `close` was called.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}; a consumer receives at least 1 delivery")
        while not self._waiting:
            self._raise_if_closed()
            self._changed.clear()
            await self._changed.wait()
        if limit >= len(self._waiting):
            taken = list(self._waiting)
            self._waiting.clear()
            return taken
        return [self._waiting.popleft() for _ in range(limit)]

    def clear(self) -> None:
        """Forget what waits: its channel is gone, so the broker delivers it again."""
        self._waiting.clear()

    def drain(self) -> list[Delivery]:
        """Close, and return what nobody has taken."""
        left = list(self._waiting)
        self.close()
        return left

    def close(self) -> None:
        """Forget what waits and let every present and later `take` raise ConsumerClosed."""
        self._closed = True
        self.clear()
        self._changed.set()

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise ConsumerClosed(f'the consumer of queue "{self._queue}" was closed; it gives no more deliveries')
