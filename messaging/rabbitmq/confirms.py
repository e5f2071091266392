"""Which published messages are still without an answer from the broker.

On one channel the broker numbers messages from 1 as they arrive. It acks or nacks these numbers singly or all up to
one; a mandatory message that no queue takes comes back first, and is acked afterwards. A returned message carries no
number: it is known by its id and where it was sent, of which the oldest unanswered one is meant.
"""

import asyncio
from collections.abc import Sequence

from messaging.port import OutgoingMessage, PublishOutcome

_Address = tuple[str, str, str]  # message id, exchange, routing key


class Batch:
    """Messages that are published together, and what became of each."""

    def __init__(self, messages: Sequence[OutgoingMessage]) -> None:
        self.messages = messages
        self.outcomes = [PublishOutcome.UNKNOWN] * len(messages)
        self._unanswered = len(messages)
        self._answered = asyncio.Event()
        if not messages:
            self._answered.set()

    @property
    def is_answered(self) -> bool:
        """Whether nothing more will come."""
        return self._answered.is_set()

    async def answered(self) -> None:
        """Wait until every message has an answer, or never gets one."""
        await self._answered.wait()

    def answer(self, index: int, outcome: PublishOutcome) -> None:
        """Note what the broker said of one message; a returned one stays returned when it is acked."""
        if self.outcomes[index] is not PublishOutcome.RETURNED:
            self.outcomes[index] = outcome
        self._unanswered -= 1
        if not self._unanswered:
            self._answered.set()

    def give_up(self) -> None:
        """No more answers can come: what has none stays UNKNOWN."""
        self._answered.set()


class Confirms:
    """The unanswered messages of one channel."""

    def __init__(self) -> None:
        self._last_tag = 0
        self._oldest_tag = 1  # nothing before it is unanswered
        self._pending: dict[int, tuple[Batch, int]] = {}
        self._tags: dict[_Address, list[int]] = {}  # of mandatory messages, oldest first

    @property
    def unanswered(self) -> int:
        """How many messages wait for an answer."""
        return len(self._pending)

    def add(self, batch: Batch, index: int) -> None:
        """Give the next number to a message; its frames must be written in the same order."""
        self._last_tag += 1
        self._pending[self._last_tag] = (batch, index)
        message = batch.messages[index]
        if message.mandatory:
            self._tags.setdefault(_address(message), []).append(self._last_tag)

    def confirm(self, tag: int, *, multiple: bool, outcome: PublishOutcome) -> None:
        """Note an ack (CONFIRMED) or a nack (UNKNOWN) of one message, or of all up to it."""
        if not multiple:
            self._settle(tag, outcome)
            return
        for settled in range(self._oldest_tag, tag + 1):
            self._settle(settled, outcome)
        self._oldest_tag = max(self._oldest_tag, tag + 1)

    def returned(self, message_id: str, exchange: str, routing_key: str) -> None:
        """Note that no queue takes a message; its ack follows."""
        tags = self._tags.get((message_id, exchange, routing_key))
        if tags:
            batch, index = self._pending[self._forget_address((message_id, exchange, routing_key), tags[0])]
            batch.outcomes[index] = PublishOutcome.RETURNED

    def lost(self) -> None:
        """The channel ended: no answer will come for any message."""
        for batch, _ in self._pending.values():
            batch.give_up()
        self._pending.clear()
        self._tags.clear()

    def _settle(self, tag: int, outcome: PublishOutcome) -> None:
        pending = self._pending.pop(tag, None)
        if pending is None:
            return
        batch, index = pending
        message = batch.messages[index]
        if message.mandatory:
            self._forget_address(_address(message), tag)
        batch.answer(index, outcome)

    def _forget_address(self, address: _Address, tag: int) -> int:
        tags = self._tags.get(address, [])
        if tag in tags:
            tags.remove(tag)
        if not tags:
            self._tags.pop(address, None)
        return tag


def _address(message: OutgoingMessage) -> _Address:
    return (message.message_id, message.exchange, message.routing_key)
