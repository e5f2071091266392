"""Named places in the services at which the death of the process must do no harm.

A service says that it passes one by calling `reach`. Unless somebody armed the points, that does nothing, for about
50 ns (`tests/unit/messaging/test_crash_points.py` measures it): there is no setting and no environment variable that
could arm them, only a call of `arm`, and only the fault tests' launcher makes it.

| point | the process has | about |
|---|---|---|
| intake.taken | taken deliveries of a queue, and read none | the queue's name |
| transaction.locked | locked the runs of a batch, and changed nothing | the inputs |
| transaction.written | written everything, and not committed | nothing |
| transaction.committed | committed, and sent nothing | the inputs |
| intake.before_ack | applied deliveries, and not acked them | the queue's name |
| intake.acked | acked deliveries | the queue's name |
| outbox.before_publish | messages of the outbox to send | the rows |
| outbox.published | the broker's answer to them, and not forgotten them | the rows |
| outbox.forgotten | deleted the rows of sent messages | nothing |
| gate.opened | a gate in the database, and its queue; no ticket is sent | the block |
| gate.lease_taken | renewed or taken a lease, and not looked after the gate | the block |
| gate.ticket_held | a ticket in hand, and not asked whether its branch runs | the branch |
| gate.tickets_acked | acked the tickets of branches that ended | the branches |
| gate.queue_deleted | deleted a gate's queue, and not its row | the block |
| agent_gate.let_through | let tasks of a limited agent through, and sent none of them | the rows |
| timers.due_found | found what is due, and not decided it | the steps |
| dead_letters.stored | stored dead letters, and not acked them | nothing |
| reconciler.missing_found | found that tasks are missing, and not sent them again | the attempts |
| reconciler.sent_again | committed that tasks are sent again | the attempts |
| worker.task_taken | a new task in hand, and not started it | the agent |
| worker.agent_started | an agent that is about to run | the agent |
| worker.agent_ended | the agent's outcome, and no report of it | the agent |
| worker.before_publish | reports to send | the reports |
| worker.published | the broker's answer to them, and no task acked | the reports |
| worker.acked | acked the tasks whose results are confirmed | their reports |
"""

from collections.abc import Callable
from typing import Final, Literal, get_args

# Literals, not an enum: looking a member up costs four times as much as the call itself (Python 3.11).
CrashPoint = Literal[
    "intake.taken",
    "transaction.locked",
    "transaction.written",
    "transaction.committed",
    "intake.before_ack",
    "intake.acked",
    "outbox.before_publish",
    "outbox.published",
    "outbox.forgotten",
    "gate.opened",
    "gate.lease_taken",
    "gate.ticket_held",
    "gate.tickets_acked",
    "gate.queue_deleted",
    "agent_gate.let_through",
    "timers.due_found",
    "dead_letters.stored",
    "reconciler.missing_found",
    "reconciler.sent_again",
    "worker.task_taken",
    "worker.agent_started",
    "worker.agent_ended",
    "worker.before_publish",
    "worker.published",
    "worker.acked",
]
CRASH_POINTS: Final[tuple[CrashPoint, ...]] = get_args(CrashPoint)

Passage = Callable[[CrashPoint, object], None]

_passage: Passage | None = None


def reach(point: CrashPoint, about: object = None) -> None:
    """Say that this process passes *point*; does nothing unless the points are armed.

    Args:
        point: Which one.
        about: What the passage concerns, at hand already: it is passed on as it is, and costs nothing.
    """
    if _passage is not None:
        _passage(point, about)


def arm(passage: Passage | None) -> None:
    """Have *passage* called at every point from now on in this process, or nothing any more.

    For fault tests only.
    """
    global _passage
    _passage = passage
