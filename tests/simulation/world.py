"""One simulation: replicas, workers and a client, on one broker and one storage, and what happens to them.

The parts are the product's own: `Replica`, `Worker`, the in-memory broker. Beneath are virtual time and the in-memory
storage; between, at every call, a seeded scheduler that delays, cuts, repeats, freezes and kills.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from agent_worker import AgentContext, AgentRegistry
from agent_worker.options import WorkerOptions
from agent_worker.worker import Worker
from messaging.topology import GATE_EXPIRES
from orchestrator.service.replica import Replica
from schemas.statuses import StepStatus
from schemas.validation import parse_workflow
from tests.property.cases import Behaviour, said
from tests.simulation.chaos import Chaos
from tests.simulation.client import SimulatedClient
from tests.simulation.clock import virtual_now
from tests.simulation.entropy import Dice
from tests.simulation.limits import AGENT, Limits
from tests.simulation.member import Member, Role
from tests.simulation.oracles import (
    Execution,
    History,
    Violation,
    check_children,
    check_outcome,
    check_repeats,
    check_taken_over,
    check_told,
    require,
)
from tests.simulation.server import SimulatedServer
from tests.simulation.storage import Commit, MemoryStorage

UNKNOWN_AGENT_AFTER: Final = 20.0  # virtual seconds, as all below
SILENT_AFTER: Final = 12.0
HEARTBEAT_INTERVAL: Final = 4.0
COMPLETE_WITHIN: Final = 1_800.0
QUIET_WITHIN: Final = 120.0
# Longer than any time limit. A worker that was not told of a cancellation gets to the end of it all the same.
FOR_TOO_LONG: Final = 60.0
REPLACEABLE: Final = ("agent.", "orchestrator.gate.", "orchestrator.results")  # what they lose is made up for
EXCLUSIVE: Final = ("orchestrator.replica.", "orchestrator.worker.")  # queues that die with their process


class World:
    """Everything of one seed."""

    def __init__(self, seed: int) -> None:
        self.chaos = Chaos(Dice(f"world {seed}"))
        self.executions: list[Execution] = []
        self._dice = self.chaos.dice
        self._history = History()
        self._server = SimulatedServer(virtual_now)
        self._storage = MemoryStorage(virtual_now)
        self._storage.on_commit = self._committed
        self._limits = Limits(seed, partial(self._storage.limit_agent, AGENT), partial(self.chaos.note, "operator"))
        self._client = SimulatedClient(self._server, self._dice)
        self._members: list[Member] = []
        self._dead: list[Member] = []
        self._started = 0
        self._problem: BaseException | None = None
        self._broken = asyncio.Event()

    async def run(self) -> None:
        """Let everything happen, and check it.

        Raises:
            Violation: An oracle said no.
            Exception: A replica or a worker ended by it.
        """
        await self._register_delegates()
        limiting = asyncio.create_task(self._limits.change())
        await asyncio.sleep(0)  # one turn for it: a limit is there before anybody is
        for role in (self._replica, self._worker):
            for _ in range(self._dice.pick([1, 2, 2, 3])):
                self._start(role)
        accidents = asyncio.create_task(self._accidents())
        try:
            await self._complete()
        finally:
            accidents.cancel()
            limiting.cancel()
        await self._quiet()
        self._check_ends()

    async def _register_delegates(self) -> None:
        operator = self._storage.client("operator")
        for document in (document for run in self._client.runs for document in run.delegates):
            workflow = parse_workflow(document)
            await operator.store_definition(workflow, document)
            self._storage.register_workflow(workflow, document)

    async def shut_down(self) -> None:
        """End all processes."""
        self._client.leave()
        for member in list(self._members):
            member.die()
        await asyncio.sleep(0)
        await asyncio.gather(*(member.burial for member in self._dead if member.burial is not None))

    # Processes

    def _start(self, role: Role) -> None:
        self._started += 1
        member = Member(
            f"{role.__name__.lstrip('_')}-{self._started}",
            role,
            self.chaos,
            server=self._server,
            storage=self._storage,
            on_death=self._gone,
        )
        self._members.append(member)
        member.note("starts")
        member.process.spawn(self._main(member))

    async def _main(self, member: Member) -> None:
        try:
            await member.role(member)
        except Exception as error:
            self._break(error)
            return
        member.note("has stopped")
        self._gone(member)

    def _gone(self, member: Member) -> None:
        """Have a supervisor start another process in place of one that has ended."""
        self._members.remove(member)
        self._dead.append(member)
        asyncio.get_running_loop().call_later(self._dice.uniform(0.05, 4), self._start, member.role)

    async def _replica(self, member: Member) -> None:
        await member.broker.connect()
        replica = Replica(
            member.storage,
            member.broker,
            member.name,
            unknown_agent_after=UNKNOWN_AGENT_AFTER,
            silent_after=SILENT_AFTER,
        )
        await replica.start()
        await _first(replica.failed, member.told_to_stop.wait)
        await replica.stop()
        await member.broker.close()

    async def _worker(self, member: Member) -> None:
        options = WorkerOptions(
            worker_id=member.name, concurrency=self._dice.pick([1, 2, 5]), heartbeat_interval=HEARTBEAT_INTERVAL
        )
        worker = Worker(member.broker, self._agents(member), options)
        running = asyncio.create_task(worker.run_until_stopped())
        await _first(lambda: asyncio.shield(running), member.told_to_stop.wait)
        worker.stop()
        await running
        await member.broker.close()

    def _agents(self, member: Member) -> AgentRegistry:
        agents = AgentRegistry()

        @agents.agent("x")
        async def x(input: Any, context: AgentContext) -> Any:
            self.executions.append(
                Execution(context.run_id, context.step_id, context.attempt, member.name, self.chaos.now)
            )
            member.note(f"works on {context.step_id}")
            behaviour = self._behaviour(context)
            await asyncio.sleep(
                FOR_TOO_LONG if behaviour is Behaviour.HANGS else self._dice.pick([0.0, 0.01, 0.3, 2.0])
            )
            if behaviour is Behaviour.FAILS:
                raise ValueError("as it should")
            return said(context.step_id, input)

        return agents

    def _behaviour(self, context: AgentContext) -> Behaviour:
        """Return what an agent does, whether the client's run calls it or one that carries out a step of that."""
        parent = self._storage.runs[context.run_id].parent
        if parent is None:
            return self._client.behaviour_of(context.run_id, context.step_id, context.attempt)
        attempt = self._storage.steps[parent.run_id, parent.step_id].attempt
        return self._client.behaviour_of(parent.run_id, parent.step_id, attempt)

    # What happens from outside

    async def _accidents(self) -> None:
        accidents = (self._stop_broker, self._stop_storage, self._lose_queue, self._stop_gracefully, self._kill)
        while not self.chaos.is_over:
            await asyncio.sleep(self._dice.expovariate(0.2))
            accident = self._dice.pick(accidents)
            if self.chaos.befalls(accident.__name__.strip("_").replace("_", " ")):
                await accident()

    async def _stop_broker(self) -> None:
        self._server.stop()
        try:
            await asyncio.sleep(self._dice.uniform(0.1, 15))
        finally:
            self._server.start()
            self.chaos.note("broker", "is back")

    async def _stop_storage(self) -> None:
        self.chaos.storage_is_down = True
        try:
            await asyncio.sleep(self._dice.uniform(0.1, 15))
        finally:
            self.chaos.storage_is_down = False
            self.chaos.note("storage", "is back")

    async def _lose_queue(self) -> None:
        names = sorted(name for name in self._server.queue_names if name.startswith(REPLACEABLE))
        if names:
            name = self._dice.pick(names)
            self.chaos.note("broker", f"loses {name}")
            self._server.lose_queue(name, self._client.broker)

    async def _stop_gracefully(self) -> None:
        if self._members:
            self._dice.pick(self._members).told_to_stop.set()

    async def _kill(self) -> None:
        if self._members:
            self._dice.pick(self._members).die()

    # The end, and the oracles

    async def _complete(self) -> None:
        try:
            async with asyncio.timeout(COMPLETE_WITHIN):
                await _first(self._client.work, self._broken.wait)
        except TimeoutError:
            raise Violation(f"O1 complete: not within {COMPLETE_WITHIN:.0f} s: {self._unfinished()}") from None
        self._raise_problem()

    async def _quiet(self) -> None:
        deadline = self.chaos.now + QUIET_WITHIN
        while (restless := self._restless()) and self.chaos.now < deadline:
            await asyncio.sleep(0.5)
            self._raise_problem()
        if restless and self._orphans().issuperset(restless):
            await asyncio.sleep(GATE_EXPIRES.total_seconds())
            restless = self._restless()
            self._raise_problem()
        require(not restless, "O5 quiet", "; ".join(restless))

    def _committed(self, commit: Commit) -> None:
        try:
            for before, after in commit.runs:
                self._history.run_changed(before, after)
            self._history.steps_changed(commit.steps)
            self._limits.committed(commit)
        except Violation as violation:  # not raised: the product would take it for an error of its own
            self._break(violation)

    def _break(self, problem: BaseException) -> None:
        self._problem = self._problem or problem
        self._broken.set()

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _unfinished(self) -> str:
        runs = [f"run {run.status}" for run in self._history.runs.values()]
        steps = [f"{key[1]} {step.status}" for key, step in self._history.steps.items() if not step.status.is_final]
        return "; ".join([*runs, *steps, *self._restless()])

    def _restless(self) -> list[str]:
        shared = [name for name in self._server.queue_names if not name.startswith(EXCLUSIVE)]
        busy = [name for name in shared if name.startswith("orchestrator.gate.")]
        for name in shared:
            ready, unsettled = self._server.depth(name, self._client.broker).ready, self._server.unsettled(name)
            if ready or unsettled:
                busy.append(f"{name}: {ready} ready, {unsettled} unsettled")
        busy += [f"run {run.id} is {run.status}" for run in self._history.runs.values() if not run.status.is_final]
        busy += [f"outbox: {row}" for row in self._storage.outbox_rows]
        busy += [f"gate: {row}" for row in self._storage.gate_rows]
        busy += [f"dead letter: {letter}" for letter in self._storage.dead_letter_rows]
        return busy

    def _orphans(self) -> frozenset[str]:
        """Return the queues that somebody brought back who has been killed since: they are left to expire."""
        dead = {member.broker.inner for member in self._dead}
        return frozenset(name for name, client in self._server.brought_back.items() if client in dead)

    def _check_ends(self) -> None:
        for one in self._client.runs:
            run = self._history.runs[one.run_id]
            steps = self._history.steps_of(one.run_id)
            outputs = {step_id: self._storage.output_of(one.run_id, step_id) for step_id in steps}
            earlier = self._history.steps_of(one.retry_of) if one.retry_of is not None else {}
            kept = check_taken_over(earlier, steps, [it.step_id for it in self.executions if it.run_id == one.run_id])
            failed = {step_id for step_id in kept if steps[step_id].status is StepStatus.FAILED}
            check_outcome(one.expected(failed), run, steps, outputs, may_be_cancelled=one.may_be_cancelled)
            check_told(run, one.results)
        check_children(self._history)
        check_repeats(self.executions, len(self.chaos.faults))


async def _first(*works: Callable[[], Any]) -> None:
    """Do several things until one of them is done; raise what that raised."""
    tasks = [asyncio.ensure_future(work()) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
