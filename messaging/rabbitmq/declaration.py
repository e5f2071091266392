"""Exchanges and queues as RabbitMQ knows them.

Only arguments that never differ between broker versions are sent: RabbitMQ compares them whenever a queue is declared
again (406), while policies may change at any time. Every call happens on a channel of its own, which a refusal closes.
"""

from typing import assert_never

import structlog
from aiormq import Channel
from pamqp.common import FieldTable

from messaging.port import Exchange, Queue, QueueDepth, QueueKind, QueueMissing, TopologyMismatch
from messaging.rabbitmq.connection import Session
from messaging.rabbitmq.failures import AccessRefused, using_channel

log = structlog.get_logger(__name__)


def queue_arguments(queue: Queue) -> FieldTable:
    """Return the ``x-`` arguments of *queue*."""
    arguments: FieldTable = {}
    match queue.kind:
        case QueueKind.QUORUM:
            arguments["x-queue-type"] = "quorum"
        case QueueKind.CLASSIC:
            arguments["x-queue-type"] = "classic"
        case QueueKind.EXCLUSIVE:
            pass  # always classic
        case _:
            assert_never(queue.kind)
    if queue.expires is not None:
        arguments["x-expires"] = int(queue.expires.total_seconds() * 1000)
    return arguments


async def ensure_exchange(session: Session, exchange: Exchange) -> None:
    """Declare *exchange*, or see that it is there where our user may not configure it.

    Raises:
        TopologyMismatch: It exists with another kind, or we may not declare it and it does not exist.
    """
    try:
        await _declare_exchange(session, exchange, passive=False)
    except AccessRefused as refusal:
        try:
            await _declare_exchange(session, exchange, passive=True)
        except QueueMissing as error:
            raise TopologyMismatch(
                f'exchange "{exchange.name}" does not exist, and may not be declared: {refusal}'
            ) from error
        _log_checked("exchange", exchange.name)


async def ensure_queue(session: Session, queue: Queue) -> None:
    """Declare *queue* with its bindings, or see that it is there where our user may not configure it.

    Raises:
        TopologyMismatch: It exists with other properties, or an exchange that it is bound to does not exist.
        QueueMissing: We may not declare it and it does not exist.
    """
    try:
        async with session.throw_away_channel() as channel:
            await _declare_queue(channel, queue)
            await _bind_queue(channel, queue)
    except AccessRefused:
        await read_depth(session, queue.name)
        _log_checked("queue", queue.name)


async def read_depth(session: Session, name: str) -> QueueDepth:
    """Return what a queue holds, without declaring it. Raises QueueMissing."""
    async with session.throw_away_channel() as channel:
        with using_channel(f'checking queue "{name}"'):
            answer = await channel.queue_declare(name, passive=True)
    return QueueDepth(ready=answer.message_count or 0, consumers=answer.consumer_count or 0)


async def delete_queue(session: Session, name: str) -> None:
    """Delete a queue; RabbitMQ does not mind where there is none."""
    async with session.throw_away_channel() as channel:
        with using_channel(f'deleting queue "{name}"'):
            await channel.queue_delete(name)


async def _declare_exchange(session: Session, exchange: Exchange, *, passive: bool) -> None:
    async with session.throw_away_channel() as channel:
        with using_channel(f'declaring exchange "{exchange.name}" as {exchange.kind} and durable'):
            await channel.exchange_declare(
                exchange.name, exchange_type=exchange.kind.value, durable=True, passive=passive
            )


async def _declare_queue(channel: Channel, queue: Queue) -> None:
    exclusive = queue.kind is QueueKind.EXCLUSIVE
    arguments = queue_arguments(queue)
    with using_channel(f'declaring queue "{queue.name}" as {queue.kind} with arguments {arguments}'):
        await channel.queue_declare(
            queue.name, durable=not exclusive, exclusive=exclusive, auto_delete=exclusive, arguments=arguments
        )


async def _bind_queue(channel: Channel, queue: Queue) -> None:
    for binding in queue.bindings:
        try:
            with using_channel(f'binding queue "{queue.name}" to exchange "{binding.exchange}"'):
                await channel.queue_bind(queue.name, binding.exchange, binding.routing_key)
        except QueueMissing as error:  # the 404 is about the exchange; the queue was declared just before
            raise TopologyMismatch(f"{error}; declare the exchange first") from error


def _log_checked(what: str, name: str) -> None:
    log.info("Not permitted to declare; it is there already", action="declaration_not_permitted", **{what: name})
