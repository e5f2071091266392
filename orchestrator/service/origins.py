"""What a delivery of the dead-letter queue tells: where the message came from, and why it is there.

Two kinds of messages arrive. Ours carry `x-forkjoin-*` headers (messaging/dead_letters.py) and an id of their own. The
broker's, which a policy sent here, carry `x-death`, and the id of the original message, if that had one. And anybody
may publish anything, so nothing here fails: what cannot be read is left out, what cannot be stored is replaced.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from messaging import dead_letters as ours
from messaging.limits import MAX_NAME_BYTES
from messaging.port import Delivery
from messaging.topology import DEAD_LETTERS_QUEUE
from orchestrator.storage.dead_letters import NewDeadLetter
from orchestrator.storage.headers import headers_to_json

# Codes beside those of whoever dead-lettered a message.
QUEUE_MISSING: Final = "queue_missing"  # it was replayed, and its queue is gone
UNKNOWN_REASON: Final = "unknown_reason"  # nothing says why it is here
BY_BROKER: Final = "broker_"  # before RabbitMQ's own word: rejected, expired, maxlen, delivery_limit

LONGEST_MESSAGE: Final = 10_000  # characters
LONGEST_CODE: Final = 100

_OURS: Final = frozenset({
    ours.REASON_HEADER, ours.MESSAGE_HEADER, ours.QUEUE_HEADER, ours.EXCHANGE_HEADER, ours.ROUTING_KEY_HEADER,
    ours.MESSAGE_ID_HEADER, ours.TIME_HEADER,
})  # fmt: skip
# These count the deliveries of the dead letter itself, and so differ from one to the next.
_COUNTS: Final = frozenset({"x-delivery-count", "x-acquired-count"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message was when it could not be processed, and why."""

    queue: str | None
    exchange: str | None
    routing_key: str | None
    message_id: str | None
    code: str
    message: str
    at: datetime | None


def to_dead_letters(deliveries: Sequence[Delivery]) -> list[NewDeadLetter]:
    """Return what to store of deliveries from the dead-letter queue."""
    letters = [_to_dead_letter(delivery) for delivery in deliveries]
    # Messages without an id can be alike to the last byte, and are several all the same.
    seen: Counter[str] = Counter()
    for index, letter in enumerate(letters):
        seen[letter.key] += 1
        if seen[letter.key] > 1 and not is_ours(deliveries[index]):
            letters[index] = replace(letter, key=f"{letter.key}.{seen[letter.key]}")
    return letters


def is_ours(delivery: Delivery) -> bool:
    """Whether one of our services dead-lettered it, and so gave it an id that is unique."""
    return ours.REASON_HEADER in delivery.headers and bool(delivery.message_id)


def bare(letter: NewDeadLetter) -> NewDeadLetter:
    """Return the little of a dead letter that any database takes: its body and its reason."""
    return replace(letter, type=None, message_id=None, correlation_id=None, reply_to=None, headers="{}", step_id=None)


def _to_dead_letter(delivery: Delivery) -> NewDeadLetter:
    headers = {name: value for name, value in delivery.headers.items() if name not in _COUNTS}
    origin = _our_origin(delivery) if is_ours(delivery) else _brokers_origin(delivery)
    stored = headers_to_json({name: value for name, value in headers.items() if name not in _OURS})
    run_id, step_id = _run_and_step(delivery.body)
    return NewDeadLetter(
        key=f"id:{_short(delivery.message_id)}" if is_ours(delivery) else f"digest:{_digest(delivery, headers)}",
        dead_lettered_at=origin.at,
        queue=_short(origin.queue) if origin.queue != DEAD_LETTERS_QUEUE.name else None,
        exchange=_short(origin.exchange),
        routing_key=_short(origin.routing_key),
        code=_text(origin.code, LONGEST_CODE),
        message=_text(origin.message, LONGEST_MESSAGE),
        type=_short(delivery.type),
        message_id=_short(origin.message_id),
        correlation_id=_short(delivery.correlation_id),
        reply_to=_short(delivery.reply_to),
        headers=json.dumps(stored),
        body=delivery.body,
        run_id=run_id,
        step_id=step_id,
        is_new=not is_ours(delivery) and not delivery.redelivered,
    )


def _our_origin(delivery: Delivery) -> Origin:
    headers = delivery.headers
    return Origin(
        queue=_word(headers.get(ours.QUEUE_HEADER)),
        exchange=_word(headers.get(ours.EXCHANGE_HEADER), empty=""),
        routing_key=_word(headers.get(ours.ROUTING_KEY_HEADER), empty=""),
        message_id=_word(headers.get(ours.MESSAGE_ID_HEADER)),
        code=_word(headers.get(ours.REASON_HEADER)) or UNKNOWN_REASON,
        message=_word(headers.get(ours.MESSAGE_HEADER)) or "",
        at=_time(headers.get(ours.TIME_HEADER)),
    )


def _brokers_origin(delivery: Delivery) -> Origin:
    death = _last_death(delivery.headers)
    if death is None:
        return Origin(
            queue=None,
            exchange=delivery.exchange,
            routing_key=delivery.routing_key,
            message_id=delivery.message_id,
            code=UNKNOWN_REASON,
            message="it was published to the dead letters, and nothing in it says from which queue, or why",
            at=None,
        )
    queue, why = _word(death.get("queue")), _word(death.get("reason")) or "unknown"
    keys = death.get("routing-keys")
    return Origin(
        queue=queue,
        exchange=_word(death.get("exchange"), empty=""),
        routing_key=_word(keys[0], empty="") if isinstance(keys, list) and keys else None,
        message_id=delivery.message_id,
        code=BY_BROKER + why,
        message=f'RabbitMQ moved it here from queue "{queue}", as a policy or an argument of that queue says: {why}',
        at=_time(death.get("time")),
    )


def _last_death(headers: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the newest entry of x-death, which has the newest first; our own queue may stand in it too."""
    deaths = headers.get("x-death")
    if not isinstance(deaths, list):
        return None
    return next(
        (death for death in deaths if isinstance(death, dict) and death.get("queue") != DEAD_LETTERS_QUEUE.name), None
    )


def _digest(delivery: Delivery, headers: Mapping[str, Any]) -> str:
    known = [
        delivery.message_id, delivery.type, delivery.correlation_id, delivery.reply_to, delivery.exchange,
        delivery.routing_key, headers_to_json(headers),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    digest.update(delivery.body)
    return digest.hexdigest()


def _run_and_step(body: bytes) -> tuple[UUID | None, str | None]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(content, dict):
        return None, None
    step_id = content.get("step_id")
    return _uuid(content.get("run_id")), _short(step_id) if isinstance(step_id, str) else None


def _uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _time(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.astimezone(UTC) if isinstance(moment, datetime) else None
    except (ValueError, OverflowError):
        return None


def _word(value: object, *, empty: str | None = None) -> str | None:
    """Return a header's value as text: another sender may have chosen another type."""
    if value is None:
        return None
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)) or empty


def _short(text: str | None) -> str | None:
    """Return what AMQP takes as a short string, and Postgres as text."""
    return _text(text, MAX_NAME_BYTES).encode()[:MAX_NAME_BYTES].decode(errors="ignore") if text is not None else None


def _text(text: str, limit: int) -> str:
    return text[:limit].replace("\0", "?").encode(errors="replace").decode()
