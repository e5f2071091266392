"""What the properties of a delivery tell of a client that asks for a run: where it listens, and which run it means."""

from typing import Final
from uuid import UUID, uuid4, uuid5

from messaging.port import Delivery
from orchestrator.engine.records import ReplyAddress

RUN_ID_NAMESPACE: Final = UUID("9f0f5a5e-5f0c-4f5b-9d5e-0c1c2f3b7a10")


def reply_address(delivery: Delivery) -> ReplyAddress | None:
    """Return where the client awaits the RunResult; None where it does not."""
    return ReplyAddress(delivery.reply_to, delivery.correlation_id) if delivery.reply_to else None


def run_id_of(delivery: Delivery) -> UUID:
    """Return an id for a run whose client chose none; the same message delivered again gets the same id."""
    return uuid5(RUN_ID_NAMESPACE, delivery.message_id) if delivery.message_id else uuid4()
