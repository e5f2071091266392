"""The other workers that serve the same agents: one may still run a task that the broker hands out again.

A queue is not a lock. RabbitMQ hands a task to another worker as soon as a connection is lost or its consumer_timeout
has passed, though the agent still runs. So whoever is given a task that was handed out before asks the others first:
the one that runs it says so, and so does the one that has its confirmed result. Who does not answer within a second is
taken for dead. That can be wrong (an agent that blocks its event loop, a connection that takes longer to come back,
a worker that is not ours); then the task runs twice, and its id makes one of the two results a duplicate.

Questions and answers are no part of the public contract, and nothing breaks where they are lost.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid4

import structlog

from messaging.port import Broker, BrokerError, Consumer, Delivery, OutgoingMessage
from messaging.topology import WORKERS, WORKERS_EXCHANGE, answer_key, question_key, worker_queue
from schemas.codec import decode, encode
from schemas.errors import MessageRefused
from schemas.messages import AgentTask, Message

TIMES_ASKED: Final = 2  # one that just lost its connection hears the second time
PATIENCE: Final = 0.5  # seconds for each answer; a crashed worker's task waits for so long
PREFETCH: Final = 1_000

log = structlog.get_logger(__name__)


class Whereabouts(StrEnum):
    """What a worker knows of a task."""

    NOWHERE = "NOWHERE"  # nothing: nobody has it who can be asked
    RUNNING = "RUNNING"  # the worker runs it, or its result is on its way
    FINISHED = "FINISHED"  # its result is confirmed by the broker


class Question(Message):
    """Who has this task?"""

    task_id: UUID
    asker: str


class Answer(Message):
    """I have it."""

    task_id: UUID
    whereabouts: Whereabouts


class Colleagues:
    """Asks other workers about tasks, and answers them.

    Args:
        broker: Connected.
        whereabouts: What this worker knows of a task.
    """

    def __init__(self, broker: Broker, whereabouts: Callable[[UUID], Whereabouts]) -> None:
        self._broker = broker
        self._whereabouts = whereabouts
        self._me = uuid4().hex
        self._consumer: Consumer | None = None
        self._asked: dict[UUID, asyncio.Future[Whereabouts]] = {}

    async def start(self, agent_names: Iterable[str]) -> None:
        """Begin to hear questions about tasks of these agents; where the broker forbids it, nobody is ever asked."""
        try:
            await self._broker.declare([WORKERS], [])
            self._consumer = await self._broker.consume(worker_queue(self._me, agent_names), prefetch=PREFETCH)
        except BrokerError as error:
            log.warning(
                "Other workers cannot be asked about tasks that come again; such tasks may run twice. Give this user "
                "the permissions that the worker's README names",
                action="colleagues_unreachable",
                exchange=WORKERS_EXCHANGE,
                error=str(error),
            )

    async def run(self) -> None:
        """Hear questions and answers until the consumer is closed."""
        while self._consumer is not None:
            deliveries = await self._consumer.receive(PREFETCH)
            answers = [answer for delivery in deliveries if (answer := self._heard(delivery)) is not None]
            await self._consumer.ack(deliveries)
            if answers:
                with suppress(TimeoutError):  # later than that nobody waits for them
                    async with asyncio.timeout(PATIENCE):
                        await self._broker.publish(answers)

    async def ask(self, task: AgentTask) -> Whereabouts:
        """Return where else *task* is; NOWHERE when nobody answers in time."""
        if self._consumer is None:
            return Whereabouts.NOWHERE
        question = Question(task_id=task.task_id, asker=self._me)
        answered = self._asked[task.task_id] = asyncio.get_running_loop().create_future()
        try:
            for _ in range(TIMES_ASKED):
                with suppress(TimeoutError):
                    async with asyncio.timeout(PATIENCE):
                        await self._broker.publish([_message(question_key(task.agent_name), question)])
                        return await asyncio.shield(answered)
            return Whereabouts.NOWHERE
        finally:
            del self._asked[task.task_id]

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._consumer is not None:
            await self._consumer.close()

    def _heard(self, delivery: Delivery) -> OutgoingMessage | None:
        try:
            if delivery.type == Question.__name__:
                return self._answer_to(decode(Question, delivery.body))
            self._take(decode(Answer, delivery.body))
        except MessageRefused as refused:
            log.warning("A colleague cannot be understood", action="colleague_refused", error=str(refused)[:500])
        return None

    def _answer_to(self, question: Question) -> OutgoingMessage | None:
        found = self._whereabouts(question.task_id)
        if question.asker == self._me or found is Whereabouts.NOWHERE:
            return None
        return _message(answer_key(question.asker), Answer(task_id=question.task_id, whereabouts=found))

    def _take(self, answer: Answer) -> None:
        waiting = self._asked.get(answer.task_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.whereabouts)


def _message(routing_key: str, content: Question | Answer) -> OutgoingMessage:
    return OutgoingMessage(
        exchange=WORKERS_EXCHANGE,
        routing_key=routing_key,
        type=type(content).__name__,
        message_id=uuid4().hex,
        body=encode(content),
        persistent=False,
        mandatory=False,  # nobody needs to be there
    )
