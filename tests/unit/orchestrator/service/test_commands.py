"""What the commands queue holds, told apart by the type of the message."""

from typing import Any
from uuid import UUID

import pytest

from messaging.port import DeadLetterReason, Delivery, OutgoingMessage, PublishOutcome
from orchestrator.engine import codes
from orchestrator.engine.decision import Verdict
from orchestrator.engine.inputs import CancelRequested, RetryRequested
from orchestrator.engine.records import ReplyAddress
from orchestrator.service.batch import Answer
from orchestrator.service.commands import CommandReader
from orchestrator.service.intake import Item, Refused
from orchestrator.service.refusals import Refusals
from orchestrator.service.traces import RunTraces
from schemas.codec import decode, encode
from schemas.messages import CancelRun, Message, RetryRun, RunResult
from schemas.statuses import ResultStatus

OLD, NEW = UUID(int=1), UUID(int=2)


class Told:
    """A broker that keeps what is published."""

    def __init__(self) -> None:
        self.messages: list[OutgoingMessage] = []

    async def publish(self, messages: list[OutgoingMessage]) -> list[PublishOutcome]:
        self.messages += messages
        return [PublishOutcome.CONFIRMED for _ in messages]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def reader(told: Any) -> CommandReader:
    return CommandReader(Refusals(told), RunTraces())


def delivery(
    message: Message | bytes, kind: str | None, *, message_id: str = "m", reply_to: str | None = None
) -> Delivery:
    body = message if isinstance(message, bytes) else encode(message)
    return Delivery("orchestrator.commands", "", "", kind, message_id, body, "c-1", reply_to, {}, False, (1, 1))


@pytest.mark.parametrize("kind", ["CancelRun", "", None])
async def test_a_cancellation_is_read_also_from_those_who_leave_its_type_out(
    reader: CommandReader, kind: str | None
) -> None:
    event = await reader.read(delivery(CancelRun(run_id=OLD, reason="enough"), kind))
    assert event == CancelRequested(OLD, "enough")


async def test_a_retry_is_read_with_the_address_of_its_client(reader: CommandReader) -> None:
    command = RetryRun(run_id=OLD, new_run_id=NEW)
    event = await reader.read(delivery(command, "RetryRun", reply_to="replies"))
    assert isinstance(event, RetryRequested)
    assert (event.run_id, event.retry_of, event.reply) == (NEW, OLD, ReplyAddress("replies", "c-1"))


async def test_requests_for_retries_of_one_run_are_alike_and_of_others_not(reader: CommandReader) -> None:
    async def digest(run_id: UUID, new: UUID | None) -> str:
        event = await reader.read(delivery(RetryRun(run_id=run_id, new_run_id=new), "RetryRun"))
        assert isinstance(event, RetryRequested)
        return event.request_digest

    assert await digest(OLD, NEW) == await digest(OLD, None) != await digest(NEW, None)


async def test_a_retry_without_a_new_id_gets_one_that_is_the_same_for_each_delivery(reader: CommandReader) -> None:
    ids = [
        (await reader.read(delivery(RetryRun(run_id=OLD), "RetryRun", message_id=message_id))).run_id
        for message_id in ("one", "one", "two")
    ]
    assert ids[0] == ids[1] != ids[2]


async def test_what_cannot_be_read_is_refused_and_whoever_asked_for_a_retry_is_told(
    reader: CommandReader, told: Told
) -> None:
    for kind in ("CancelRun", "RetryRun"):
        with pytest.raises(Refused, match="run_id"):
            await reader.read(delivery(b'{"version": 1}', kind, reply_to="replies"))
    [message] = told.messages
    assert (message.routing_key, message.correlation_id) == ("replies", "c-1")
    assert decode(RunResult, message.body).status is ResultStatus.REJECTED


@pytest.mark.parametrize("body", [RetryRun(run_id=OLD), b"nonsense"])
async def test_whoever_would_have_us_answer_into_a_queue_of_the_services_is_refused(
    reader: CommandReader, told: Told, body: RetryRun | bytes
) -> None:
    asked = delivery(body, "RetryRun", reply_to="orchestrator.results")
    with pytest.raises(Refused) as refused:
        await reader.read(asked)
    await reader.failed(asked, DeadLetterReason("internal_error", "a bug"))
    assert refused.value.reason.code == "invalid_reply_to"
    assert told.messages == []


async def test_a_command_that_nobody_knows_cancels_nothing(reader: CommandReader) -> None:
    with pytest.raises(Refused, match='not "PauseRun"') as refused:
        await reader.read(delivery(CancelRun(run_id=OLD), "PauseRun"))
    assert refused.value.reason.code == "malformed_message"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (codes.UNKNOWN_RUN, f"there is no run {OLD}"),
        (codes.RUN_GOES_ON, f"run {OLD} has not ended yet: wait for its end, or cancel it first"),
        (codes.RUN_COMPLETED, f"run {OLD} is COMPLETED: there is nothing to retry"),
        (codes.RUN_ID_CONFLICT, f"there is a run {NEW} that is no retry of {OLD}"),
    ],
)
async def test_a_refusal_says_why(reader: CommandReader, told: Told, code: str, message: str) -> None:
    asked = delivery(RetryRun(run_id=OLD, new_run_id=NEW), "RetryRun", reply_to="replies")
    await reader.answered(Item(asked, await reader.read(asked)), Answer(Verdict.REJECTED, code))
    result = decode(RunResult, told.messages[0].body)
    assert result.error is not None
    assert (result.run_id, result.status, result.error.code) == (NEW, ResultStatus.REJECTED, code)
    assert result.error.message.startswith(message)


async def test_a_refusal_that_nobody_awaits_is_a_dead_letter(reader: CommandReader) -> None:
    asked = delivery(RetryRun(run_id=OLD), "RetryRun")
    item = Item(asked, await reader.read(asked))
    with pytest.raises(Refused, match="has not ended yet"):
        await reader.answered(item, Answer(Verdict.REJECTED, codes.RUN_GOES_ON))


async def test_of_a_cancellation_without_effect_and_of_a_retry_that_starts_nobody_is_told(
    reader: CommandReader, told: Told
) -> None:
    for command, verdict in [
        (delivery(CancelRun(run_id=OLD), "CancelRun", reply_to="replies"), Verdict.REJECTED),
        (delivery(RetryRun(run_id=OLD), "RetryRun", reply_to="replies"), Verdict.APPLIED),
    ]:
        await reader.answered(Item(command, await reader.read(command)), Answer(verdict, ""))
    assert told.messages == []
