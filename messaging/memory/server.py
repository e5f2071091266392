"""The exchanges, queues and messages that several clients share, as several processes share one RabbitMQ."""

import asyncio
import heapq
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Protocol

from messaging.memory.exchange import MemoryExchange
from messaging.memory.queue import MemoryQueue, Subscription
from messaging.port import (
    Binding,
    BrokerUnavailable,
    Exchange,
    OutgoingMessage,
    PublishOutcome,
    Queue,
    QueueDepth,
    QueueKind,
    QueueMissing,
    TopologyMismatch,
)
from messaging.topology import DEFAULT_EXCHANGE


class Client(Protocol):
    """What the server knows of a connected client."""

    def quiesce(self) -> None:
        """Take no more deliveries: the connection is about to go."""

    def drop_connection(self) -> None:
        """Lose the connection, then try to restore it."""

    def restore_soon(self) -> None:
        """Try to restore whatever is not there (any more), in the next turn of the event loop."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class MemoryServer:
    """A broker in memory. It draws no randomness and starts no timer: unused queues are found expired when looked for.

    Args:
        clock: Seconds, for the expiry of unused queues; the running event loop's time if left out.
        wall_clock: The present time, for the dead letters.
    """

    def __init__(
        self, *, clock: Callable[[], float] | None = None, wall_clock: Callable[[], datetime] = _utc_now
    ) -> None:
        self.wall_clock = wall_clock
        self._clock = clock
        self._running = True
        self._clients: dict[Client, None] = {}
        self._exchanges: dict[str, MemoryExchange] = {}
        self._queues: dict[str, MemoryQueue] = {}
        self._expiries: list[tuple[float, int, MemoryQueue]] = []  # a heap by due time
        self._serial = 0

    # Faults, for tests

    @property
    def running(self) -> bool:
        """Whether clients can connect."""
        return self._running

    def drop_connections(self) -> None:
        """Cut every client off; each reconnects by itself in the next turn of the event loop."""
        for client in self._clients:
            client.quiesce()
        for client in list(self._clients):
            client.drop_connection()

    def stop(self) -> None:
        """Cut every client off until `start`; durable queues keep what they hold."""
        self._running = False
        self.drop_connections()

    def start(self) -> None:
        """Let clients connect again; those that know the server do so by themselves."""
        self._running = True
        self._restore_clients()

    # Observation, for tests

    @property
    def queue_names(self) -> tuple[str, ...]:
        """The queues that exist."""
        self._delete_expired()
        return tuple(self._queues)

    def unsettled(self, queue: str) -> int:
        """Return how many messages of *queue* are with consumers."""
        return self._queue(queue, owner=None).unsettled

    # What clients use

    def attach(self, client: Client) -> None:
        """Know *client*, so that it hears of restarts."""
        self._clients[client] = None

    def detach(self, client: Client) -> None:
        """Forget *client* and delete what is exclusive to it."""
        self.close_connection(client)
        self._clients.pop(client, None)

    def close_connection(self, client: Client) -> None:
        """Delete the exclusive queues of *client*."""
        for queue in [queue for queue in self._queues.values() if queue.owner is client]:
            self._delete(queue)

    def next_serial(self) -> int:
        """Return a number that was never returned before."""
        self._serial += 1
        return self._serial

    def declare_exchange(self, exchange: Exchange) -> None:
        """Make sure that *exchange* exists."""
        self._require_running()
        found = self._exchanges.setdefault(exchange.name, MemoryExchange(exchange)).definition
        if found != exchange:
            raise TopologyMismatch(
                f'exchange "{exchange.name}" exists with another kind: expected {exchange.kind}, found {found.kind}'
            )

    def declare_queue(self, queue: Queue, client: Client) -> None:
        """Make sure that *queue* exists with its bindings; being declared counts as use."""
        self._require_running()
        self._delete_expired()
        now = self._now()
        found = self._queues.get(queue.name)
        if found is None:
            owner = client if queue.kind is QueueKind.EXCLUSIVE else None
            found = self._queues[queue.name] = MemoryQueue(queue, owner, now)
        _require_same(queue, found, client)
        found.unused_since = now
        self._watch_expiry(found)
        for binding in queue.bindings:
            self._bind(found, binding)

    def delete_queue(self, name: str, client: Client) -> None:
        """Delete a queue, if it is there; its consumers are cancelled."""
        self._require_running()
        self._delete_expired()
        if name in self._queues:
            self._delete(self._queue(name, owner=client))
            self._restore_clients()  # a consumer that wants the queue with other properties can have it now

    def depth(self, name: str, client: Client) -> QueueDepth:
        """Return what a queue holds."""
        self._require_running()
        return self._queue(name, owner=client).depth

    def publish(self, message: OutgoingMessage) -> PublishOutcome:
        """Put *message* into every queue that takes it."""
        self._delete_expired()
        queues = self._route(message)
        if queues is None:
            return PublishOutcome.UNKNOWN  # RabbitMQ closes the channel: nothing is said about the message
        for queue in queues:
            queue.put(message)
        return PublishOutcome.CONFIRMED if queues or not message.mandatory else PublishOutcome.RETURNED

    def subscribe(self, name: str, subscription: Subscription, client: Client) -> None:
        """Let *subscription* consume from a queue."""
        self._queue(name, owner=client).subscribe(subscription)

    def unsubscribe(self, name: str, subscription: Subscription) -> None:
        """End *subscription*; what it holds returns to the queue."""
        queue = self._queues.get(name)
        if queue is None or subscription not in queue.subscriptions:
            return
        queue.unsubscribe(subscription, self._now())
        if queue.owner is not None and not queue.subscriptions:
            self._delete(queue)  # exclusive queues are declared auto-delete
        self._watch_expiry(queue)

    def cancel(self, name: str, subscription: Subscription) -> None:
        """Hand nothing more to *subscription*; what it holds stays with it."""
        queue = self._queues.get(name)
        if queue is not None and subscription in queue.subscriptions:
            queue.cancel(subscription, self._now())
            self._watch_expiry(queue)

    def settle(self, name: str, subscription: Subscription, tags: Iterable[int], *, requeue: bool) -> int:
        """Settle what *subscription* holds under *tags*; return how many those were."""
        queue = self._queues.get(name)
        if queue is None or subscription not in queue.subscriptions:
            return 0
        return queue.settle(subscription, tags, requeue=requeue)

    def _require_running(self) -> None:
        if not self._running:
            raise BrokerUnavailable("the in-memory server is stopped; start() lets clients connect again")

    def _restore_clients(self) -> None:
        for client in self._clients:
            client.restore_soon()

    def _now(self) -> float:
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()

    def _queue(self, name: str, *, owner: Client | None) -> MemoryQueue:
        self._delete_expired()
        queue = self._queues.get(name)
        if queue is None:
            raise QueueMissing(f'there is no queue "{name}"')
        if owner is not None and queue.owner not in (None, owner):
            raise _locked(name)
        return queue

    def _route(self, message: OutgoingMessage) -> list[MemoryQueue] | None:
        if message.exchange == DEFAULT_EXCHANGE:
            queue = self._queues.get(message.routing_key)
            return [queue] if queue is not None else []
        exchange = self._exchanges.get(message.exchange)
        return None if exchange is None else [self._queues[name] for name in exchange.route(message.routing_key)]

    def _bind(self, queue: MemoryQueue, binding: Binding) -> None:
        exchange = self._exchanges.get(binding.exchange)
        if exchange is None:
            raise TopologyMismatch(
                f'queue "{queue.definition.name}" cannot be bound to exchange "{binding.exchange}": '
                "there is no such exchange; declare it first"
            )
        exchange.bind(binding.routing_key, queue.definition.name)
        queue.bindings[binding] = None

    def _delete(self, queue: MemoryQueue) -> None:
        name = queue.definition.name
        for binding in queue.bindings:
            self._exchanges[binding.exchange].unbind(binding.routing_key, name)
        del self._queues[name]
        for subscription in list(queue.subscriptions):
            subscription.on_cancel()

    def _watch_expiry(self, queue: MemoryQueue) -> None:
        expires = queue.definition.expires
        if expires is not None and not queue.depth.consumers:
            due = queue.unused_since + expires.total_seconds()
            heapq.heappush(self._expiries, (due, self.next_serial(), queue))

    def _delete_expired(self) -> None:
        while self._expiries and self._expiries[0][0] <= self._now():
            due, _, queue = heapq.heappop(self._expiries)
            if self._is_unused_since(queue, due):
                self._delete(queue)

    def _is_unused_since(self, queue: MemoryQueue, due: float) -> bool:
        expires = queue.definition.expires
        return (
            expires is not None
            and self._queues.get(queue.definition.name) is queue
            and not queue.depth.consumers
            and queue.unused_since + expires.total_seconds() <= due
        )


def _require_same(expected: Queue, found: MemoryQueue, client: Client) -> None:
    if found.owner not in (None, client):
        raise _locked(expected.name)
    wanted, present = _properties(expected), _properties(found.definition)
    if wanted != present:
        raise TopologyMismatch(
            f'queue "{expected.name}" exists with other properties: expected {wanted}, found {present}'
        )


def _properties(queue: Queue) -> str:
    return f"kind {queue.kind}, expires {queue.expires or 'never'}"


def _locked(name: str) -> TopologyMismatch:
    return TopologyMismatch(f'queue "{name}" exists and is exclusive to another connection')
