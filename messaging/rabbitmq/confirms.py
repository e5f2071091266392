"""Which published messages are still without an answer from the broker.

On one channel the broker numbers messages from 1 as they arrive. It acks or nacks these numbers singly or all up to
one; a mandatory message that no queue takes comes back first, and is acked afterwards. A returned message carries no
number: it is known by its id and where it was sent, of which the oldest unanswered one is meant.

Messages that are written together have numbers in a row, and most are answered in a row. So what is kept is not a
message each but a stretch of numbers, with exceptions only where answers overtake each other or messages come back.
"""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from messaging.port import OutgoingMessage, PublishOutcome

_Address = tuple[str, str, str]  # message id, exchange, routing key


class Batch:
    """Messages that are published together, and what became of each."""

    def __init__(self, messages: Sequence[OutgoingMessage]) -> None:
        self.messages = messages
        self.outcomes = [PublishOutcome.UNKNOWN] * len(messages)
        self._unanswered = len(messages)
        self._any_returned = False
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

    def answer(self, start: int, end: int, outcome: PublishOutcome) -> None:
        """Note what the broker said of messages in a row; a returned one stays returned when it is acked."""
        if self._any_returned:
            for index in range(start, end):
                if self.outcomes[index] is not PublishOutcome.RETURNED:
                    self.outcomes[index] = outcome
        else:
            self.outcomes[start:end] = [outcome] * (end - start)
        self._unanswered -= end - start
        if not self._unanswered:
            self._answered.set()

    def return_(self, index: int) -> None:
        """Note that no queue takes a message; its ack follows."""
        self.outcomes[index] = PublishOutcome.RETURNED
        self._any_returned = True

    def give_up(self) -> None:
        """No more answers can come: what has none stays UNKNOWN."""
        self._answered.set()


class Confirms:
    """The unanswered messages of one channel."""

    def __init__(self) -> None:
        self._last_tag = 0
        self._stretches: list[_Stretch] = []  # with something unanswered, in the order of their numbers

    @property
    def unanswered(self) -> int:
        """How many messages wait for an answer."""
        return sum(stretch.unanswered for stretch in self._stretches)

    def add(self, batch: Batch, start: int, end: int) -> None:
        """Give the next numbers to messages of *batch*; their frames must be written in the same order."""
        self._stretches.append(_Stretch(batch, start, end, self._last_tag + 1))
        self._last_tag += end - start

    def confirm(self, tag: int, *, multiple: bool, outcome: PublishOutcome) -> None:
        """Note an ack (CONFIRMED) or a nack (UNKNOWN) of one message, or of all up to it."""
        found = bisect_left(self._stretches, tag, key=_last_tag)
        if multiple:
            for stretch in self._stretches[:found]:
                stretch.answer_up_to(stretch.last_tag, outcome)
            del self._stretches[:found]
            found = 0
        if found == len(self._stretches):
            return
        stretch = self._stretches[found]
        if multiple:
            stretch.answer_up_to(tag, outcome)
        else:
            stretch.answer_one(tag, outcome)
        if not stretch.unanswered:
            del self._stretches[found]

    def returned(self, message_id: str, exchange: str, routing_key: str) -> None:
        """Note that no queue takes a message; its ack follows."""
        for stretch in self._stretches:
            if stretch.return_((message_id, exchange, routing_key)):
                return

    def lost(self) -> None:
        """The channel ended: no answer will come for any message."""
        for stretch in self._stretches:
            stretch.batch.give_up()
        self._stretches.clear()


class _Stretch:
    """Messages of one batch with numbers in a row."""

    def __init__(self, batch: Batch, start: int, end: int, first_tag: int) -> None:
        self.batch = batch
        self.last_tag = first_tag + end - start - 1
        self._shift = start - first_tag  # from a number to the place in the batch
        self._next = first_tag  # everything before it is answered
        self._overtaking: set[int] = set()  # numbers from there on that are answered too
        self._places: dict[_Address, deque[int]] | None = None

    @property
    def unanswered(self) -> int:
        """How many of them wait for an answer."""
        return self.last_tag + 1 - self._next - len(self._overtaking)

    def answer_one(self, tag: int, outcome: PublishOutcome) -> None:
        """Note the answer to one of them, unless it has one."""
        if tag < self._next or tag in self._overtaking:
            return
        self._overtaking.add(tag)
        self._answer(tag, tag + 1, outcome)
        while self._next in self._overtaking:
            self._overtaking.remove(self._next)
            self._next += 1

    def answer_up_to(self, tag: int, outcome: PublishOutcome) -> None:
        """Note the answer to all up to *tag* that have none."""
        if tag < self._next:
            return
        if self._overtaking:
            for earlier in range(self._next, tag + 1):
                self.answer_one(earlier, outcome)
            return
        self._answer(self._next, tag + 1, outcome)
        self._next = tag + 1

    def return_(self, address: _Address) -> bool:
        """Note that the oldest unanswered one with *address* came back; False where there is none."""
        places = self._mandatory().get(address)
        while places:
            tag = places.popleft()
            if tag >= self._next and tag not in self._overtaking:
                self.batch.return_(tag + self._shift)
                return True
        return False

    def _answer(self, tag: int, end: int, outcome: PublishOutcome) -> None:
        self.batch.answer(tag + self._shift, end + self._shift, outcome)

    def _mandatory(self) -> dict[_Address, deque[int]]:
        if self._places is None:  # returns are rare, but where one is others follow
            self._places = {}
            for tag in range(self._next, self.last_tag + 1):
                message = self.batch.messages[tag + self._shift]
                if message.mandatory:
                    address = (message.message_id, message.exchange, message.routing_key)
                    self._places.setdefault(address, deque()).append(tag)
        return self._places


def _last_tag(stretch: _Stretch) -> int:
    return stretch.last_tag
