"""What a transaction writes, collected: new and changed records, joins, gates, and messages for the outbox."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from orchestrator.engine.decision import EndedAttempt, Join
from orchestrator.engine.inputs import RunRequested
from orchestrator.engine.records import Run, StepExecution


class OutboxRow(NamedTuple):
    """A message to send, with what it is about."""

    message_id: UUID
    run_id: UUID | None  # None only of a replay
    step_id: str | None
    task_id: UUID | None
    exchange: str
    routing_key: str
    type: str
    correlation_id: str | None
    body: bytes
    traceparent: str | None = None
    replay: str | None = None  # JSON: the other properties of a dead letter that is sent again


@dataclass(frozen=True, slots=True)
class GateRow:
    """A limited block's gate, and the replica that holds it first."""

    run_id: UUID
    block_id: str
    max_parallelism: int
    holder: str


class KeptItem(NamedTuple):
    """The item of one of a loop's iterations."""

    run_id: UUID
    loop_id: str
    position: int
    item: Any


@dataclass(slots=True)
class Changes:
    """What is to be written together. A record that changes twice is in it once, as it is in the end."""

    new_runs: dict[UUID, tuple[Run, RunRequested]] = field(default_factory=dict)
    changed_runs: dict[UUID, Run] = field(default_factory=dict)
    new_steps: dict[tuple[UUID, str], StepExecution] = field(default_factory=dict)
    changed_steps: dict[tuple[UUID, str], StepExecution] = field(default_factory=dict)
    ended_attempts: list[EndedAttempt] = field(default_factory=list)  # each followed by another
    joins: list[tuple[UUID, Join]] = field(default_factory=list)  # by run, an inner block before the one around it
    items: list[KeptItem] = field(default_factory=list)
    gates: list[GateRow] = field(default_factory=list)
    outbox: list[tuple[OutboxRow, float]] = field(default_factory=list)  # with the seconds until a sweeper may send it
    held: list[tuple[OutboxRow, float]] = field(default_factory=list)  # tasks, with their place in line, in seconds

    def __len__(self) -> int:
        waiting = len(self.outbox) + len(self.held)
        return len(self.new_steps) + len(self.changed_steps) + len(self.items) + waiting
