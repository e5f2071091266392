"""Why a channel gives no more deliveries.

RabbitMQ closes a channel on which a delivery stays unsettled for longer than its `consumer_timeout`, and returns
everything on it. That has the code of any other violation (406), so only the text tells it from those. From 4.3 on it
cancels the consumer instead, and gives no reason at all.
"""

import re
from dataclasses import dataclass
from typing import Final

from aiormq.exceptions import AMQPChannelError, ChannelPreconditionFailed

from messaging.rabbitmq.failures import reason

_TIMED_OUT: Final = re.compile(r"delivery acknowledgement on channel \d+ timed out\. Timeout value used: (\d+) ms")

REMEDY: Final = (
    "set consumer_timeout (milliseconds, in rabbitmq.conf) above the longest time that an agent, or a branch of a "
    "limited block, may take; from RabbitMQ 3.12 on a policy can do it for single queues"
)


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a channel gives no more deliveries.

    Attributes:
        reason: For people.
        connection_lost: Its connection was lost with it.
        consumer_timeout: Seconds; given when the broker found that a delivery was unsettled for longer.
    """

    reason: str
    connection_lost: bool = False
    consumer_timeout: float | None = None


CANCELLED: Final = Ending(
    "the consumer was cancelled: its queue was deleted or has moved to another node, or (from RabbitMQ 4.3 on) a "
    "delivery was unsettled for longer than consumer_timeout"
)


def channel_ending(error: BaseException | None) -> Ending:
    """Return what the error with which aiormq closed a channel means."""
    text = reason(error)
    timed_out = _TIMED_OUT.search(text) if isinstance(error, ChannelPreconditionFailed) else None
    return Ending(
        text,
        connection_lost=not isinstance(error, AMQPChannelError),
        consumer_timeout=int(timed_out[1]) / 1000 if timed_out is not None else None,
    )
