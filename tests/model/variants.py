"""What is explored: how large the world is, and which rules of the protocol are broken on purpose.

With no variant the model is the protocol of `orchestrator/` and `agent_worker/`. Each variant takes one of its rules
away, the way a design or a careless change could; `test_variants` says what the checker then finds. A checker that
finds nothing in a broken protocol proves nothing about the real one.
"""

from dataclasses import dataclass
from enum import StrEnum


class Variant(StrEnum):
    """A rule that does not hold; the value says what happens instead."""

    NO_OUTBOX = "messages are published from memory after the commit, then the delivery is acked; no row remembers them"
    PUBLISH_BEFORE_COMMIT = "messages are published while the transaction is still open, and only then; there is no row"
    ACK_BEFORE_COMMIT = "a delivery is acked when it is taken"
    LIMIT_BY_QUEUE_ONLY = "each ticket that arrives starts its branch; only the prefetch counts"
    JOIN_WITHOUT_LOCK = "transactions read the rows without a lock and write back what they counted"
    FOLLOW_UP_APART = "a result is one transaction; the join and the next slot are another, which only it starts"
    DUPLICATES_DRIVE_ON = "a repeated result starts the join and the next slot, should they be due, once more"
    FORWARD_REPEATED_TICKETS = "a ticket whose branch has its slot already sends the task again"
    FORWARD_REPEATED_RESULTS = (
        "a result that was applied before lets the next branch through, or sends the next step's task, again"
    )
    ACK_TASK_BEFORE_RESULT = "a worker acks the task before its result is confirmed"
    NO_RECONCILIATION = "only tickets fill slots; the lease round of the gate's holder does not"
    TICKETS_OUTLIVE_GATE = "a gate is deleted without its unsent tickets"


@dataclass(frozen=True)
class Scope:
    """How large the explored world is; one run with one block, and one step after it.

    Args:
        branches: Of the block.
        limit: Its max_parallelism; as many as there are branches: the block has no gate.
        replicas: Orchestrators; those that die start again.
        workers: Each takes any number of tasks.
        faults: So many may happen, of any kind, at any moment.
        starts: Whether workers report that they started, too.
    """

    branches: int = 3
    limit: int = 2
    replicas: int = 2
    workers: int = 1
    faults: int = 1
    starts: bool = False
    variants: frozenset[Variant] = frozenset()

    @property
    def is_gated(self) -> bool:
        """Whether the limit can ever hold a branch back."""
        return self.limit < self.branches

    def __str__(self) -> str:
        broken = f", {' + '.join(sorted(self.variants))}" if self.variants else ""
        return (
            f"{self.branches} branches, limit {self.limit}, {self.replicas} replicas, {self.workers} workers, "
            f"{self.faults} faults{', start reports' if self.starts else ''}{broken}"
        )
