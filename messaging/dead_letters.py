"""How a message that could not be processed looks in the dead letters; both adapters use it.

Body, type, correlation id, reply address and headers stay as they were, so that a replay has the original effect. The
`x-forkjoin-*` headers say where the message came from and why it is here.
"""

from datetime import UTC, datetime
from typing import Final

from messaging.port import BrokerUnavailable, DeadLetterReason, Delivery, OutgoingMessage, PublishOutcome
from messaging.topology import DEAD_LETTERS_EXCHANGE

HEADER_PREFIX: Final = "x-forkjoin-"
REASON_HEADER: Final = HEADER_PREFIX + "reason"
MESSAGE_HEADER: Final = HEADER_PREFIX + "message"
QUEUE_HEADER: Final = HEADER_PREFIX + "queue"
EXCHANGE_HEADER: Final = HEADER_PREFIX + "exchange"
ROUTING_KEY_HEADER: Final = HEADER_PREFIX + "routing-key"
MESSAGE_ID_HEADER: Final = HEADER_PREFIX + "message-id"
TIME_HEADER: Final = HEADER_PREFIX + "time"

# The broker counts deliveries in these; on a message that starts anew they would be lies.
_BROKERS_OWN: Final = frozenset({"x-delivery-count", "x-acquired-count"})
_LONGEST_ORIGINAL_ID: Final = 50  # characters; with the suffix it fits into an AMQP short string


def dead_letter(delivery: Delivery, reason: DeadLetterReason, *, serial: str, at: datetime) -> OutgoingMessage:
    """Return what to publish in order to move *delivery* to the dead letters.

    Args:
        delivery: What could not be processed.
        reason: Why; it ends up in two headers.
        serial: Makes the new message id unique, where the original one may be absent or used twice.
        at: The present time.
    """
    return OutgoingMessage(
        exchange=DEAD_LETTERS_EXCHANGE,
        routing_key=delivery.routing_key,
        type=delivery.type or "",
        message_id=f"{(delivery.message_id or 'unnamed')[:_LONGEST_ORIGINAL_ID]}.dead.{serial}",
        body=delivery.body,
        correlation_id=delivery.correlation_id,
        reply_to=delivery.reply_to,
        headers=_kept_headers(delivery) | _origin_headers(delivery) | _reason_headers(reason, at),
    )


def require_confirmed(outcome: PublishOutcome, delivery: Delivery) -> None:
    """Raise BrokerUnavailable unless the dead letter of *delivery* is known to have arrived."""
    if outcome is PublishOutcome.CONFIRMED:
        return
    hint = ""
    if outcome is PublishOutcome.RETURNED:
        hint = f'; no queue is bound to exchange "{DEAD_LETTERS_EXCHANGE}": declare the topology first'
    raise BrokerUnavailable(
        f'the dead letter of message "{delivery.message_id}" from queue "{delivery.queue}" '
        f"was not confirmed ({outcome}){hint}"
    )


def _kept_headers(delivery: Delivery) -> dict[str, object]:
    return {name: value for name, value in delivery.headers.items() if name not in _BROKERS_OWN}


def _origin_headers(delivery: Delivery) -> dict[str, object]:
    return {
        QUEUE_HEADER: delivery.queue,
        EXCHANGE_HEADER: delivery.exchange,
        ROUTING_KEY_HEADER: delivery.routing_key,
        MESSAGE_ID_HEADER: delivery.message_id or "",
    }


def _reason_headers(reason: DeadLetterReason, at: datetime) -> dict[str, object]:
    return {
        REASON_HEADER: reason.code,
        MESSAGE_HEADER: reason.message,
        TIME_HEADER: at.astimezone(UTC).isoformat(),
    }
