"""A queue and its subscriptions: who gets which message next, and what comes back.

Messages leave in order of arrival and, when they come back, return to their original place. As only the head ever
leaves, everything that came back is older than everything that never left: two structures, a heap and a deque, are
the whole order, and every step costs at most the logarithm of what was given back.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from messaging.inbox import Inbox
from messaging.port import Binding, Delivery, OutgoingMessage, Queue, QueueDepth, QueueKind


@dataclass(slots=True, eq=False)
class StoredMessage:
    """A message in one queue."""

    sequence: int  # its place in the queue
    message: OutgoingMessage
    headers: dict[str, object]
    returns: int = 0  # how often it was handed over and came back


class Subscription:
    """The server's side of a consumer: its window, and what it holds."""

    def __init__(self, prefetch: int, inbox: Inbox, *, channel: int, on_cancel: Callable[[], None]) -> None:
        self.on_cancel = on_cancel  # the queue was deleted
        self._prefetch = prefetch
        self._inbox = inbox
        self._channel = channel
        self._last_tag = 0
        self._ended = False
        self.held: dict[int, StoredMessage] = {}

    @property
    def ended(self) -> bool:
        """Whether it takes nothing more."""
        return self._ended

    @property
    def has_room(self) -> bool:
        """Whether the window allows one more delivery."""
        return not self._ended and (not self._prefetch or len(self.held) < self._prefetch)

    def end(self) -> None:
        """Take nothing more. What several ended ones hold can then return without passing from one to the next."""
        self._ended = True

    def deliver(self, stored: StoredMessage, queue: Queue) -> None:
        """Hand *stored* over; it is held until it is settled."""
        self._last_tag += 1
        self.held[self._last_tag] = stored
        message = stored.message
        self._inbox.put(
            Delivery(
                queue=queue.name,
                exchange=message.exchange,
                routing_key=message.routing_key,
                type=message.type or None,  # AMQP does not carry empty properties
                message_id=message.message_id or None,
                body=message.body,
                correlation_id=message.correlation_id or None,
                reply_to=message.reply_to or None,
                headers=_delivered_headers(stored, queue.kind),
                redelivered=stored.returns > 0,
                tag=(self._channel, self._last_tag),
            )
        )

    def release(self, tags: Iterable[int]) -> list[StoredMessage]:
        """Stop to hold *tags* and return what they stood for; those settled already stand for nothing."""
        held = self.held
        return [held.pop(tag) for tag in tags if tag in held]


class MemoryQueue:
    """A declared queue, its messages and its subscriptions."""

    def __init__(self, definition: Queue, owner: object | None, now: float) -> None:
        self.definition = definition
        self.owner = owner  # the client that may use it, when it is exclusive
        self.bindings: dict[Binding, None] = {}
        self.unused_since = now
        self.subscriptions: dict[Subscription, None] = {}
        self._hungry: deque[Subscription] = deque()  # those with room, in the order of their turns
        self._last_sequence = 0
        self._fresh: deque[StoredMessage] = deque()  # never delivered
        self._returned: list[tuple[int, StoredMessage]] = []  # a heap by place; all before `_fresh`

    @property
    def depth(self) -> QueueDepth:
        """What the queue holds right now."""
        return QueueDepth(ready=len(self._fresh) + len(self._returned), consumers=self._consumers())

    @property
    def unsettled(self) -> int:
        """How many messages are with consumers."""
        return sum(len(subscription.held) for subscription in self.subscriptions)

    def put(self, message: OutgoingMessage) -> None:
        """Append *message*."""
        self._last_sequence += 1
        self._fresh.append(StoredMessage(self._last_sequence, message, dict(message.headers)))
        self._dispatch()

    def subscribe(self, subscription: Subscription) -> None:
        """Let *subscription* take part, last in turn."""
        self.subscriptions[subscription] = None
        self._hungry.append(subscription)
        self._dispatch()

    def cancel(self, subscription: Subscription, now: float) -> None:
        """Let *subscription* keep what it holds, and give it nothing more."""
        subscription.end()
        self.unused_since = now

    def unsubscribe(self, subscription: Subscription, now: float) -> None:
        """End *subscription*; what it holds returns and goes to the others."""
        subscription.end()
        del self.subscriptions[subscription]
        if subscription in self._hungry:
            self._hungry.remove(subscription)
        self.unused_since = now
        self._put_back(subscription.release(list(subscription.held)))
        self._dispatch()

    def settle(self, subscription: Subscription, tags: Iterable[int], *, requeue: bool) -> int:
        """Forget the messages of *tags*, or return them to their places; return how many there were."""
        had_room = subscription.has_room
        released = subscription.release(tags)
        if requeue:
            self._put_back(released)
        if released and not had_room:
            self._hungry.append(subscription)
        self._dispatch()
        return len(released)

    def _consumers(self) -> int:
        return sum(not subscription.ended for subscription in self.subscriptions)

    def _put_back(self, messages: Iterable[StoredMessage]) -> None:
        for stored in messages:
            stored.returns += 1
            heapq.heappush(self._returned, (stored.sequence, stored))

    def _dispatch(self) -> None:
        while self._hungry and (self._returned or self._fresh):
            subscription = self._hungry.popleft()
            if not subscription.has_room:
                continue
            stored = heapq.heappop(self._returned)[1] if self._returned else self._fresh.popleft()
            subscription.deliver(stored, self.definition)
            if subscription.has_room:
                self._hungry.append(subscription)


def _delivered_headers(stored: StoredMessage, kind: QueueKind) -> dict[str, object]:
    headers = dict(stored.headers)
    if kind is QueueKind.QUORUM and stored.returns:
        headers["x-delivery-count"] = stored.returns
    return headers
