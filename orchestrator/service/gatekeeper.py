"""The gates that this replica holds: leases, and the gate queues behind them.

A replica holds a gate by a lease in Postgres, renewed long before it lapses; when it dies another takes over. A replica
that holds none asks for none: it is woken when there is one to take over (`orchestrator.service.lookout`). For each
gate it holds it consumes the gate queue with prefetch = max_parallelism. Whether a branch may run is decided in
Postgres (`orchestrator.engine.gate`); the queue only paces.

Branches end in any replica. The holder hears of it in process, or by a notice to its own queue; a lost notice is made
up for by the reconciliation of the next lease round.
"""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final
from uuid import UUID, uuid4

import structlog

from messaging import topology
from messaging.crash_points import reach
from messaging.port import Broker, OutgoingMessage
from orchestrator.engine.inputs import SlotsFree
from orchestrator.errors import RunLocked
from orchestrator.service.batch import Committed, GateChange
from orchestrator.service.driver import Driver
from orchestrator.service.held_gate import GateKey, HeldGate
from orchestrator.service.notices import GateNotice
from orchestrator.storage.database import is_lost_connection
from orchestrator.storage.gates import Lease
from orchestrator.storage.port import Storage
from schemas.codec import encode

log = structlog.get_logger(__name__)

LEASE_ROUND_SECONDS: Final = 1.5  # well within a lease, so that one late round does not lose it
NOTICE_SECONDS: Final = 0.05  # what changed meanwhile is told together
MAX_PREFETCH: Final = 65_535  # AMQP's; above it the window is open, and the count alone limits


class Gatekeeper:
    """All gates of one replica."""

    def __init__(self, storage: Storage, broker: Broker, driver: Driver, replica_id: str) -> None:
        self._storage = storage
        self._broker = broker
        self._driver = driver
        self._replica_id = replica_id
        self._gates: dict[GateKey, HeldGate] = {}
        self._changing = asyncio.Lock()
        self._removed: set[GateKey] = set()  # since the last round began: what that knows of them is out of date
        self._holds_leases = False
        self._woken = asyncio.Event()
        self._changes: list[GateChange] = []
        self._background: set[asyncio.Task[Any]] = set()

    async def open_gates(self, batch: Committed) -> None:
        """Open the gates of new blocks; called after a commit, before its messages go out."""
        for gate in batch.gates:
            await self._open((gate.run_id, gate.block_id), gate.max_parallelism)

    async def tell_holders(self, batch: Committed) -> None:
        """Have the holders of gates told what a commit changed; called after it.

        Slots are filled already, so tickets may be settled together a moment later.
        """
        if batch.gate_changes and not self._changes:
            self._in_background(self._tell_soon())
        self._changes.extend(batch.gate_changes)

    def wake(self) -> None:
        """Have gates looked after that are nobody's, or ours without our knowing."""
        if not self._gates:  # the next round is near, and finds them too
            self._woken.set()

    async def run(self) -> None:
        """Renew the leases round by round while there are any, and look after others when woken."""
        while True:
            if self._gates or self._woken.is_set():
                await self.run_once()
                self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LEASE_ROUND_SECONDS):
                    await self._woken.wait()

    async def run_once(self) -> None:
        """Renew leases, take over lapsed ones, close gates whose block is over, and reconcile the tickets in hand."""
        known = list(self._gates)  # one that is opened meanwhile may be too young for the answer
        self._removed.clear()
        with self._driver.database.using():
            taken = await self._storage.take_leases(self._replica_id)
        leases = {lease.key: lease for lease in taken}
        for key in [key for key in known if key in self._gates and key not in leases]:
            log.warning("A gate was lost to another replica", action="gate_lost", run_id=str(key[0]), block_id=key[1])
            await self._leave(key)
        for key, lease in leases.items():
            reach("gate.lease_taken", key[1])
            try:
                await self._tend(key, lease)
            except RunLocked:  # the other gates are not to wait for this one
                log.info(
                    "Somebody keeps a run locked; its gate waits",
                    action="gate_waits",
                    run_id=str(key[0]),
                    block_id=key[1],
                )

    async def take_notice(self, notice: GateNotice) -> None:
        """Act on what a transaction of this or another replica changed."""
        key = (notice.run_id, notice.block_id)
        gate = self._gates.get(key)
        if gate is not None:
            gate.branches_dispatched(notice.dispatched)
            await gate.branches_ended(notice.ended)
        if notice.block_over:
            self._in_background(self._remove(key))

    async def close(self) -> None:
        """Give all gates up at once: others take over without waiting for a lease to lapse. May be repeated."""
        await asyncio.gather(*self._background, return_exceptions=True)
        self._holds_leases = self._holds_leases or bool(self._gates)
        for key in list(self._gates):
            await self._let_go(key)
        if self._holds_leases:
            await self._storage.release_leases(self._replica_id)
        self._holds_leases = False

    @property
    def held(self) -> int:
        """How many gates this replica holds."""
        return len(self._gates)

    async def _tell_soon(self) -> None:
        await asyncio.sleep(NOTICE_SECONDS)
        changes, self._changes = self._changes, []
        elsewhere = []
        for notice, holder in _notices(changes):
            if holder == self._replica_id:
                await self.take_notice(notice)
            else:
                elsewhere.append(_notice_message(holder, notice))
        if elsewhere:
            await self._broker.publish(elsewhere)

    async def _tend(self, key: GateKey, lease: Lease) -> None:
        if lease.block_status.is_final:
            await self._remove(key)
            return
        gate = self._gates.get(key)
        if gate is None or gate.is_broken:
            await self._let_go(key)
            await self._open(key, lease.max_parallelism)
            return
        if gate.held:
            await gate.branches_ended(await self._storage.branches_over(key[0], gate.held))
        if lease.has_free_slots:
            await self._driver.drive([SlotsFree(*key)])

    async def _open(self, key: GateKey, max_parallelism: int) -> None:
        async with self._changing:
            if key in self._gates or key in self._removed:
                return
            prefetch = max_parallelism if max_parallelism <= MAX_PREFETCH else 0
            consumer = await self._broker.consume(topology.gate_queue(*key), prefetch=prefetch)
            reach("gate.opened", key[1])
            self._gates[key] = HeldGate(key, consumer, self._driver)

    async def _let_go(self, key: GateKey) -> None:
        gate = self._gates.pop(key, None)
        if gate is not None:
            await gate.close()

    async def _leave(self, key: GateKey) -> None:
        """Let go of a gate that is another replica's, or nobody's.

        Whoever held it last has deleted its queue when its block was over. Where we opened it late, or our consumer
        declared the queue again when that was deleted under it, nobody else knows that it exists.
        """
        async with self._changing:
            await self._let_go(key)
            run_id, block_id = key
            if await self._storage.block_over(run_id, block_id):
                await self._broker.delete_queue(topology.gate_queue(run_id, block_id).name)

    async def _remove(self, key: GateKey) -> None:
        async with self._changing:
            await self._let_go(key)
            await self._broker.delete_queue(topology.gate_queue(*key).name)
            self._removed.add(key)
            reach("gate.queue_deleted", key[1])
            await self._storage.delete_gate(self._replica_id, *key)

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        # Should it fail, the next lease round makes up for it.
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[Any]") -> None:
        self._background.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._driver.database.failed(error)
        if not is_lost_connection(error):
            log.warning("The next lease round makes up for a notice", action="gate_notice_failed", error=str(error))


def _notices(changes: Sequence[GateChange]) -> Iterator[tuple[GateNotice, str]]:
    """Yield one notice for each gate, with its holder."""
    by_gate: dict[tuple[str, UUID, str], list[GateChange]] = {}
    for change in changes:
        by_gate.setdefault((change.holder, change.run_id, change.block_id), []).append(change)
    for (holder, run_id, block_id), some in by_gate.items():
        ended = [step_id for change in some for step_id in change.ended]
        dispatched = [step_id for change in some for step_id in change.dispatched]
        over = any(change.block_over for change in some)
        yield (
            GateNotice(run_id=run_id, block_id=block_id, ended=ended, dispatched=dispatched, block_over=over),
            holder,
        )


def _notice_message(holder: str, notice: GateNotice) -> OutgoingMessage:
    return OutgoingMessage(
        exchange=topology.DEFAULT_EXCHANGE,
        routing_key=topology.replica_queue(holder).name,
        type=GateNotice.__name__,
        message_id=str(uuid4()),
        body=encode(notice),
        persistent=False,
        mandatory=False,
    )
