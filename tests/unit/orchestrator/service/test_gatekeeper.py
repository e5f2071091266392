"""The holder of a gate and the tickets in its hands, over the in-memory broker."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from messaging import topology
from messaging.memory import MemoryBroker
from messaging.port import OutgoingMessage, PublishOutcome
from orchestrator.engine.decision import Verdict
from orchestrator.errors import RunLocked
from orchestrator.service import gatekeeper
from orchestrator.service.batch import Answer, Committed
from orchestrator.service.gatekeeper import Gatekeeper
from orchestrator.service.health import DatabaseWatch
from orchestrator.service.held_gate import GateKey, HeldGate
from orchestrator.service.notices import GateTicket
from orchestrator.storage.changes import GateRow
from orchestrator.storage.gates import Lease
from schemas.codec import encode
from schemas.statuses import StepStatus
from tests.services.waiting import eventually

KEY = (uuid.uuid4(), "block")
QUEUE = topology.gate_queue(*KEY)


class Driver:
    """Answers each ticket with one verdict."""

    def __init__(self, verdict: Verdict = Verdict.DUPLICATE) -> None:
        self.asked: list[str] = []
        self.database = DatabaseWatch()
        self.is_locked_out = False
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.answered = 0
        self._verdict = verdict

    async def drive(self, inputs: Sequence[Any]) -> list[Answer]:
        self.asked += [event.step_id for event in inputs]
        if self.is_locked_out:
            raise RunLocked("somebody keeps a run locked")
        await self.go_on.wait()
        self.answered += 1
        return [Answer(self._verdict, "") for _ in inputs]


class Storage:
    """Knows which gates are ours, and whether the block is over."""

    def __init__(self) -> None:
        self.block_is_over = False
        self.rounds = 0
        self.gates: list[GateKey] = []
        self.error: Exception | None = None
        self.looking = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def take_leases(self, replica_id: str) -> list[Any]:
        self.rounds += 1
        self.looking.set()
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return [Lease(*key, 2, StepStatus.RUNNING, has_free_slots=False) for key in self.gates]

    async def block_over(self, run_id: uuid.UUID, block_id: str) -> bool:
        return self.block_is_over

    async def branches_over(self, run_id: uuid.UUID, step_ids: Sequence[str]) -> frozenset[str]:
        return frozenset(step_ids if self.block_is_over else ())

    async def release_leases(self, replica_id: str) -> None:
        pass


@pytest.fixture
async def broker() -> AsyncIterator[MemoryBroker]:
    broker = MemoryBroker()
    await broker.connect()
    await broker.declare(topology.EXCHANGES, [])
    yield broker
    await broker.close()


@pytest.fixture
async def keeper(broker: MemoryBroker) -> AsyncIterator[Gatekeeper]:
    keeper = Gatekeeper(Storage(), broker, Driver(), "me")  # type: ignore[arg-type]
    yield keeper
    await keeper.close()


async def send_ticket(broker: MemoryBroker, step_id: str) -> None:
    body = encode(GateTicket(run_id=KEY[0], block_id=KEY[1], step_id=step_id))
    message = OutgoingMessage(topology.GATES_EXCHANGE, topology.gate_key(*KEY), "GateTicket", str(uuid.uuid4()), body)
    assert await broker.publish([message]) == [PublishOutcome.CONFIRMED]


def opened() -> Committed:
    return Committed(answers=[], gates=[GateRow(*KEY, 2, "me")])


async def test_a_ticket_that_was_sent_twice_is_acked_twice_when_its_branch_has_ended(broker: MemoryBroker) -> None:
    driver = Driver()
    gate = HeldGate(KEY, await broker.consume(QUEUE, prefetch=2), driver)  # type: ignore[arg-type]
    await send_ticket(broker, "a")
    await eventually(lambda: driver.asked == ["a"])
    gate.branches_dispatched(["a"])
    await send_ticket(broker, "a")
    await send_ticket(broker, "b")
    await eventually(lambda: broker.server.unsettled(QUEUE.name) == 2)
    await gate.branches_ended(["a"])
    await eventually(lambda: "b" in gate.held)
    assert gate.held == ["b"]
    assert broker.server.unsettled(QUEUE.name) == 1
    await gate.close()


async def test_a_locked_run_leaves_its_gate_open_and_its_tickets_in_hand(broker: MemoryBroker) -> None:
    driver = Driver()
    driver.is_locked_out = True
    gate = HeldGate(KEY, await broker.consume(QUEUE, prefetch=2), driver)  # type: ignore[arg-type]
    with capture_logs() as lines:
        await send_ticket(broker, "a")
        await eventually(lambda: driver.asked == ["a"])
        await send_ticket(broker, "b")
        await eventually(lambda: driver.asked == ["a", "b"])
    assert gate.held == ["a", "b"]
    assert not gate.is_broken
    assert {line["action"] for line in lines} == {"gate_waits"}
    await gate.close()


async def test_a_question_that_is_under_way_is_answered_before_its_gate_is_given_up(broker: MemoryBroker) -> None:
    driver = Driver()
    driver.go_on.clear()
    gate = HeldGate(KEY, await broker.consume(QUEUE, prefetch=2), driver)  # type: ignore[arg-type]
    await send_ticket(broker, "a")
    await eventually(lambda: driver.asked == ["a"])
    closing = asyncio.create_task(gate.close())
    await eventually(lambda: not broker.server.unsettled(QUEUE.name))
    driver.go_on.set()
    await closing
    assert driver.answered == 1, "what follows its commit would wait for the sweep"


@pytest.mark.parametrize("over", [True, False])
async def test_a_gate_that_was_opened_too_late_goes_with_its_queue_if_its_block_is_over(
    broker: MemoryBroker, keeper: Gatekeeper, over: bool
) -> None:
    keeper._storage.block_is_over = over  # type: ignore[attr-defined]
    await keeper.open_gates(opened())
    await keeper.run_once()
    assert keeper.held == 0
    assert (QUEUE.name in broker.server.queue_names) is not over, "another replica works on an open block's queue"


async def test_a_gate_that_is_opened_while_the_leases_are_read_is_not_taken_for_lost(
    broker: MemoryBroker, keeper: Gatekeeper
) -> None:
    storage: Any = keeper._storage
    storage.go_on.clear()
    reading = asyncio.create_task(keeper.run_once())
    await eventually(storage.looking.is_set)
    await keeper.open_gates(opened())
    storage.go_on.set()
    await reading
    assert keeper.held == 1


async def test_a_replica_without_gates_asks_for_some_when_it_is_woken_and_only_then(
    keeper: Gatekeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatekeeper, "LEASE_ROUND_SECONDS", 0)
    storage: Any = keeper._storage
    async with running(keeper):
        await turns()
        assert storage.rounds == 0
        keeper.wake()
        await eventually(lambda: storage.rounds == 1)
        await turns()
        assert storage.rounds == 1


async def test_a_replica_with_gates_renews_them_unasked_and_no_sooner_when_it_is_woken(
    keeper: Gatekeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage: Any = keeper._storage
    storage.gates = [KEY]
    await keeper.open_gates(opened())
    async with running(keeper):
        await eventually(lambda: storage.rounds == 1)
        keeper.wake()
        await turns()
        assert storage.rounds == 1
    monkeypatch.setattr(gatekeeper, "LEASE_ROUND_SECONDS", 0.001)
    async with running(keeper):
        await eventually(lambda: storage.rounds > 3)


async def test_a_round_that_failed_is_repeated_at_once(keeper: Gatekeeper) -> None:
    """Whoever restarts the loop has waited already, and the reason that woke it is still there."""
    storage: Any = keeper._storage
    storage.error = ConnectionResetError("gone")
    keeper.wake()
    with pytest.raises(ConnectionResetError):
        await keeper.run()
    storage.error = None
    async with running(keeper):
        await eventually(lambda: storage.rounds == 2)


@asynccontextmanager
async def running(keeper: Gatekeeper) -> AsyncIterator[None]:
    """Run the keeper's loop meanwhile."""
    task = asyncio.create_task(keeper.run())
    yield
    task.cancel()
    await asyncio.wait([task])


async def turns() -> None:
    """Let everybody do what can be done without waiting."""
    for _ in range(20):
        await asyncio.sleep(0)
