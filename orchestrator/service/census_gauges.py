"""The census of the database as numbers for a monitor. All replicas show the same: take the largest, not the sum."""

from typing import Final

from messaging.monitoring.instruments import Description, Gauge, Instrument, Labels, bounded
from orchestrator.storage.census import Census

_UP: Final = Description("forkjoin_census_up", "Whether the database could be counted; if not, its numbers are absent.")
_COMPLETE: Final = Description(
    "forkjoin_census_complete", "Whether no count reached its limit; if not, there is more than is shown."
)
_SECONDS: Final = Description("forkjoin_census_seconds", "How long the counting took.")
_RUNS: Final = Description("forkjoin_runs", "Unfinished runs.", ("status",))
_BRANCHES: Final = Description("forkjoin_branches", "Open branches of running blocks.", ("status",))
_ATTEMPTS: Final = Description(
    "forkjoin_agent_attempts",
    "Open attempts: waiting for a slot or a time, in their queue, running.",
    ("agent", "status"),
)
_GATES: Final = Description("forkjoin_gates", "Limited blocks that run.")
_SLOTS: Final = Description("forkjoin_gate_slots", "Slots of all limited blocks: the sum of max_parallelism.")
_USED: Final = Description("forkjoin_gate_slots_used", "Slots that are taken.")
_WAITING: Final = Description("forkjoin_gate_branches_waiting", "Branches that wait for a slot.")
_OUTBOX: Final = Description("forkjoin_outbox_messages", "Messages that are not known to be sent.")
_OUTBOX_DUE: Final = Description("forkjoin_outbox_due_messages", "Those that are due: a sweep should send them now.")
_OUTBOX_UNROUTABLE: Final = Description("forkjoin_outbox_unroutable_messages", "Those that no queue takes.")
_OUTBOX_OLDEST: Final = Description("forkjoin_outbox_oldest_seconds", "The age of the oldest of them.")
_LETTERS: Final = Description("forkjoin_dead_letters", "Dead letters that wait for somebody.", ("code",))


def census_gauges(census: Census | None, seconds: float) -> list[Instrument]:
    """Return the numbers of a census that took *seconds*, or say that there is none."""
    if census is None:
        return [Gauge(_UP, {(): 0})]
    gates, outbox = census.gates, census.outbox
    attempts: dict[Labels, float] = {(agent, status.value): n for (agent, status), n in census.attempts.items()}
    return [
        Gauge(_UP, {(): 1}),
        Gauge(_COMPLETE, {(): census.complete}),
        Gauge(_SECONDS, {(): seconds}),
        Gauge(_RUNS, {(status.value,): number for status, number in census.runs.items()}),
        Gauge(_BRANCHES, {(status.value,): number for status, number in census.branches.items()}),
        Gauge(_ATTEMPTS, bounded(attempts)),
        Gauge(_GATES, {(): gates.gates}),
        Gauge(_SLOTS, {(): gates.slots}),
        Gauge(_USED, {(): gates.used}),
        Gauge(_WAITING, {(): gates.waiting}),
        Gauge(_OUTBOX, {(): outbox.messages}),
        Gauge(_OUTBOX_DUE, {(): outbox.due}),
        Gauge(_OUTBOX_UNROUTABLE, {(): outbox.unroutable}),
        Gauge(_OUTBOX_OLDEST, {(): outbox.oldest_seconds}),
        Gauge(_LETTERS, bounded({(code,): float(number) for code, number in census.dead_letters.items()})),
    ]
