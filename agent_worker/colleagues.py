"""The other workers that serve the same agents: one may still run a task that the broker hands out again.

A queue is not a lock. RabbitMQ hands a task to another worker as soon as a connection is lost or its consumer_timeout
has passed, though the agent still runs. So whoever is given a task that was handed out before asks the others first:
the one that runs it says so, and so does the one that has its confirmed result. Who does not answer within a second is
taken for dead. That can be wrong (an agent that blocks its event loop, a connection that takes longer to come back,
a worker that is not ours); then the task runs twice, and its id makes one of the two results a duplicate.

Questions and answers are no part of the public contract, and nothing breaks where they are lost. How they get here is
the `listener`'s affair.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid4

from messaging.port import Broker, Delivery, OutgoingMessage
from messaging.topology import WORKERS_EXCHANGE, answer_key, question_key
from schemas.codec import decode, encode
from schemas.messages import AgentTask, Message

TIMES_ASKED: Final = 2  # one that just lost its connection hears the second time
PATIENCE: Final = 0.5  # seconds for each answer; a crashed worker's task waits for so long


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
        self.me = uuid4().hex  # where answers go
        self.reachable = False  # until this worker hears what others say
        self._asked: dict[UUID, asyncio.Future[Whereabouts]] = {}

    async def ask(self, task: AgentTask) -> Whereabouts:
        """Return where else *task* is; NOWHERE when nobody answers in time."""
        if not self.reachable:
            return Whereabouts.NOWHERE
        question = Question(task_id=task.task_id, asker=self.me)
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

    def heard(self, delivery: Delivery) -> OutgoingMessage | None:
        """Take a question or an answer, and return what is to be answered, if anything.

        Raises:
            MessageRefused: It is neither.
        """
        if delivery.type == Question.__name__:
            return self._answer_to(decode(Question, delivery.body))
        self._take(decode(Answer, delivery.body))
        return None

    def _answer_to(self, question: Question) -> OutgoingMessage | None:
        found = self._whereabouts(question.task_id)
        if question.asker == self.me or found is Whereabouts.NOWHERE:
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
