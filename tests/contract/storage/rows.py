"""Runs, steps and messages as a replica would write them, for the contract of storage."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

from messaging import topology
from orchestrator.engine.decision import Join
from orchestrator.engine.inputs import RunRequested
from orchestrator.engine.records import Branches, Parent, Run, StepExecution
from orchestrator.engine.state import RunState, Wanted
from orchestrator.storage.changes import Changes, GateRow, OutboxRow
from orchestrator.storage.definitions import definition_id
from orchestrator.storage.port import Session, Storage
from schemas.statuses import JoinPolicy, RunStatus, StepStatus
from schemas.validation import parse_workflow

TIME: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DOCUMENT: Final[dict[str, Any]] = {
    "name": "small", "start_step": "one", "steps": {"one": {"agent_name": "echo", "input_mapping": {"b": 1, "a": 2}}},
}  # fmt: skip
DEFINITION: Final = definition_id(DOCUMENT)
WORKFLOW: Final = parse_workflow(DOCUMENT)
BLOCK: Final = "block"
NOTHING: Final = Wanted()


def run(run_id: UUID | None = None, **fields: Any) -> Run:
    """Return a run that goes on."""
    known = {"status": RunStatus.RUNNING, "definition_id": DEFINITION, "workflow_id": "small"}
    known |= {"request_digest": "digest", "reply": None}
    return Run(**{"id": run_id or uuid4(), "started_at": TIME, **known, **fields})


def request(one: Run, **fields: Any) -> RunRequested:
    """Return the request that caused a run."""
    known: dict[str, Any] = {"workflow_id": "small", "workflow_version": "1.0", "input": None, "labels": {}}
    return RunRequested(
        run_id=one.id,
        definition_id=one.definition_id,
        request_digest=one.request_digest,
        reply=one.reply,
        **{**known, **fields},
    )


def step(run_id: UUID, step_id: str, status: StepStatus = StepStatus.PENDING, **fields: Any) -> StepExecution:
    """Return an agent step that is nobody's branch."""
    known: dict[str, Any] = {"agent_name": "echo", "created_at": TIME}
    return StepExecution(**{"run_id": run_id, "step_id": step_id, "status": status, **known, **fields})


def branch(run_id: UUID, position: int, status: StepStatus = StepStatus.PENDING, **fields: Any) -> StepExecution:
    """Return a branch of the block; its id starts with a letter that runs against its position."""
    name = f"{chr(ord('z') - position)}-{position}"
    known = {"parent_step_id": BLOCK, "branch_name": name, "join_policy": JoinPolicy.ALL, "position": position}
    return step(run_id, name, status, **{**known, **fields})


def block(run_id: UUID, **counters: Any) -> StepExecution:
    """Return the block, which has four branches unless told otherwise."""
    known = {"total": 4, "open": 4, "failed": 0, "dispatched": 0, "passed": 0, "max_parallelism": 2}
    branches = Branches(**{**known, **counters})
    return StepExecution(
        run_id=run_id, step_id=BLOCK, status=StepStatus.RUNNING, branches=branches, created_at=TIME, started_at=TIME
    )


def queued(run_id: UUID, position: int, **fields: Any) -> StepExecution:
    """Return a branch whose first attempt is under way."""
    return branch(
        run_id, position, StepStatus.QUEUED, **{"attempt": 1, "task_id": uuid4(), "queued_at": TIME, **fields}
    )


def message(run_id: UUID, **fields: Any) -> OutboxRow:
    """Return a message about a run."""
    known: dict[str, Any] = {"step_id": None, "task_id": None, "exchange": "tasks", "routing_key": "echo"}
    rest: dict[str, Any] = {"type": "AgentTask", "correlation_id": None, "body": b"{}", "traceparent": "00-1-2-01"}
    return OutboxRow(**{"message_id": uuid4(), "run_id": run_id, **known, **rest, **fields})


def ticket(run_id: UUID, block_id: str = BLOCK) -> OutboxRow:
    """Return a branch's ticket for the gate of its block."""
    key = topology.gate_key(run_id, block_id)
    return message(run_id, exchange=topology.GATES_EXCHANGE, routing_key=key, type="GateTicket")


def changes(
    *steps: StepExecution,
    new: Run | None = None,
    input: Any = None,
    ended: Run | None = None,
    changed: Iterable[StepExecution] = (),
    joins: Iterable[tuple[UUID, Join]] = (),
    gate: GateRow | None = None,
    outbox: Iterable[tuple[OutboxRow, float]] = (),
    held: Iterable[tuple[OutboxRow, float]] = (),
) -> Changes:
    """Return what a session writes: *steps* are new."""
    return Changes(
        new_runs={new.id: (new, request(new, input=input))} if new is not None else {},
        changed_runs={ended.id: ended} if ended is not None else {},
        new_steps={(one.run_id, one.step_id): one for one in steps},
        changed_steps={(one.run_id, one.step_id): one for one in changed},
        joins=list(joins),
        gates=[gate] if gate is not None else [],
        outbox=list(outbox),
        held=list(held),
    )


async def write(storage: Storage, run_id: UUID, what: Changes) -> None:
    """Write something in a session of its own."""
    async with storage.session() as session:
        await session.first_look({run_id: NOTHING})
        await session.write(what)


async def add_run(
    storage: Storage, *steps: StepExecution, run_id: UUID, parent: Parent | None = None, **more: Any
) -> Run:
    """Store a new run with its steps, and whatever comes with them."""
    await storage.store_definition(WORKFLOW, DOCUMENT)
    new = run(run_id, parent=parent)
    await write(storage, run_id, changes(*steps, new=new, **more))
    return new


async def look(session: Session, run_id: UUID, wanted: Wanted = NOTHING) -> RunState:
    """Begin a session on one run, and load what is wanted, except plans."""
    _, states = await session.first_look({run_id: wanted})
    await session.load(states, {run_id: wanted})
    return states[run_id]


async def seen(storage: Storage, run_id: UUID, wanted: Wanted = NOTHING) -> RunState:
    """Return what a session of its own sees of a run."""
    async with storage.session() as session:
        return await look(session, run_id, wanted)


@asynccontextmanager
async def locking(storage: Storage, *run_ids: UUID) -> AsyncIterator[Session]:
    """Be in a session that has locked runs."""
    async with storage.session() as session:
        await session.first_look(dict.fromkeys(run_ids, NOTHING))
        yield session
