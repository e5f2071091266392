import asyncio

import pytest
from aiormq.exceptions import (
    AMQPConnectionError,
    ChannelAccessRefused,
    ChannelClosed,
    ChannelInvalidStateError,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    InvalidFrameError,
    ProbableAuthenticationError,
)

from messaging.port import BrokerUnavailable, QueueMissing, TopologyMismatch
from messaging.rabbitmq.failures import AccessRefused, ChannelLost, ConnectionRefused, connecting, using_channel


@pytest.mark.parametrize(
    ("raised", "translated"),
    [
        (ChannelPreconditionFailed("inequivalent arg"), TopologyMismatch),
        (ChannelLockedResource("locked queue"), TopologyMismatch),
        (ChannelNotFoundEntity("no queue"), QueueMissing),
        (ChannelAccessRefused("access refused"), AccessRefused),
        (ChannelClosed(504, "something else"), ChannelLost),
        (ChannelInvalidStateError("closed"), ChannelLost),
        (AMQPConnectionError("reset"), ChannelLost),
        (ConnectionResetError("reset"), ChannelLost),
        (asyncio.CancelledError(), ChannelLost),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.__name__,
)
async def test_what_a_channel_raises_is_said_in_the_ports_words(
    raised: BaseException, translated: type[Exception]
) -> None:
    with pytest.raises(translated, match='declaring queue "q"') as error, using_channel('declaring queue "q"'):
        raise raised
    assert error.value.__cause__ is raised


@pytest.mark.parametrize(
    ("raised", "translated"),
    [
        (ProbableAuthenticationError("ACCESS_REFUSED"), ConnectionRefused),
        (InvalidFrameError("got <Connection.Close>"), ConnectionRefused),
        (InvalidFrameError("garbage"), BrokerUnavailable),
        (ConnectionRefusedError("nobody listens"), BrokerUnavailable),
        (TimeoutError(), BrokerUnavailable),
        (asyncio.CancelledError(), BrokerUnavailable),
    ],
    ids=str,
)
async def test_waiting_helps_unless_the_broker_refused_us(raised: BaseException, translated: type[Exception]) -> None:
    with pytest.raises(BrokerUnavailable, match="RabbitMQ at host") as error, connecting("RabbitMQ at host"):
        raise raised
    assert type(error.value) is translated


async def test_a_real_cancellation_stays_one() -> None:
    async def use() -> None:
        with using_channel("waiting"), connecting("waiting"):
            await asyncio.Event().wait()

    using = asyncio.create_task(use())
    await asyncio.sleep(0)
    using.cancel()
    await asyncio.wait([using])
    assert using.cancelled()


@pytest.mark.parametrize("swallowed", [None, ChannelInvalidStateError("closed"), AMQPConnectionError("reset")], ids=str)
async def test_a_cancellation_that_aiormq_loses_is_not_lost(swallowed: Exception | None) -> None:
    async def use() -> None:
        with using_channel("closing"), connecting("closing"):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed is not None:
                    raise swallowed from None

    using = asyncio.create_task(use())
    await asyncio.sleep(0)
    using.cancel()
    await asyncio.wait([using])
    assert using.cancelled()


async def test_a_task_that_cleans_up_after_it_was_cancelled_can_use_channels() -> None:
    async def use() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            with using_channel("closing"), connecting("closing"):
                await asyncio.sleep(0)
            with pytest.raises(ChannelLost), using_channel("closing"):
                raise asyncio.CancelledError from None
        return "cleaned up"

    using = asyncio.create_task(use())
    await asyncio.sleep(0)
    using.cancel()
    assert await using == "cleaned up"
