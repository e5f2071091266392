"""The protocol as a graph: every state's successors, and the oracles of FAULTS.md that must hold in it.

`state` is the world as a value, `decisions` what a transaction does, `replica`, `gate` and `worker` the actions of the
parts, `faults` what goes wrong, `variants` how large the world is and what is broken on purpose; `checker` explores.
"""

from collections.abc import Iterator

from tests.model.decisions import HOLD_SLOT
from tests.model.faults import fault_steps
from tests.model.gate import broker_steps, ended_tickets, gate_steps
from tests.model.replica import forget, intake_steps, is_locked, publish, relay_steps
from tests.model.state import (
    IDLE,
    NEXT,
    NO_GATE,
    Kind,
    Message,
    Phase,
    Progress,
    Replica,
    State,
    Status,
    Step,
    Worker,
    initial,
    step_name,
)
from tests.model.variants import Scope, Variant
from tests.model.worker import acked, proceed, take, worker_steps


class Protocol:
    """What `checker.explore` needs to know of a scope.

    Args:
        scope: How large, and what is broken.
        reduced: Leave out orders that cannot matter; see `_tidied_first`.
    """

    def __init__(self, scope: Scope, *, reduced: bool = True) -> None:
        self.scope = scope
        self._reduced = reduced

    def initial(self) -> State:
        """Return where it starts."""
        scope = self.scope
        return initial(scope.branches, scope.replicas, scope.workers, scope.faults)

    def steps(self, state: State) -> Iterator[Step]:
        """Yield everything that can happen without a fault."""
        first = self._first(state) if self._reduced else None
        if first is not None:
            yield first
            return
        for index in range(len(state.replicas)):
            yield from intake_steps(self.scope, state, index)
            yield from relay_steps(self.scope, state, index)
            yield from gate_steps(self.scope, state, index)
        for index in range(len(state.workers)):
            yield from worker_steps(self.scope, state, index)
        yield from broker_steps(state)

    def faults(self, state: State) -> Iterator[Step]:
        """Yield everything that can go wrong."""
        return fault_steps(self.scope, state)

    def broken(self, state: State) -> str | None:
        """Return which oracle *state* breaks."""
        rows, history = state.database.rows, state.history
        running = sum(status in HOLD_SLOT for status in rows.steps[:-1])
        if running > self.scope.limit:
            return f"O4 limit: {running} branches are dispatched, and max_parallelism is {self.scope.limit}"
        if max(history.accepted) > 1:
            return "O2 one effect: a second result of the same step was accepted"
        if history.created > 1:
            return "O2 one effect: the next step was created twice"
        allowed = 1 + self.scope.faults - state.faults_left
        if max(history.executions) > allowed:
            name = self._name(history.executions.index(max(history.executions)))
            return f"O3 bounded repeats: {name} ran {max(history.executions)} times, after {allowed - 1} faults"
        return None

    def broken_by_step(self, before: State, after: State) -> str | None:
        """Return which oracle the way from one state to the next breaks."""
        if before.database.rows is after.database.rows:
            return None
        old, new = before.database.rows, after.database.rows
        pairs = zip((old.run, old.block, *old.steps), (new.run, new.block, *new.steps), strict=True)
        if any(was is Status.COMPLETED is not now for was, now in pairs):
            return "O7 final: a final status changed"
        return None

    def is_complete(self, state: State) -> bool:
        """Whether the run has ended and its client knows (O1)."""
        return state.database.rows.run is Status.COMPLETED and state.history.told

    def is_quiet(self, state: State) -> bool:
        """Whether nothing is left to do or to settle: the outbox, all queues and all hands are empty (O5)."""
        broker, database = state.broker, state.database
        return (
            self.is_complete(state)
            and not database.outbox
            and database.lease == NO_GATE
            and (broker.inbox, broker.tasks, broker.gate) == ((), (), None)
            and all(replica == IDLE for replica in state.replicas)
            and not any(worker.attempts for worker in state.workers)
        )

    def describe(self, state: State) -> str:
        """Return what stands where, for whoever reads a trace."""
        rows, broker = state.database.rows, state.broker
        steps = ", ".join(f"{self._name(step)} {status}" for step, status in enumerate(rows.steps))
        outbox = ", ".join(str(message) for message in sorted(state.database.outbox)) or "nothing"
        inbox = ", ".join(str(message) for message in broker.inbox) or "nothing"
        gate = "no queue" if broker.gate is None else f"{len(broker.gate)} tickets"
        return (
            f"Postgres has the run {rows.run}, the block {rows.block} ({rows.open} open, {rows.dispatched} slots "
            f"taken), {steps}; in the outbox {outbox}. RabbitMQ has for orchestrators {inbox}, for workers "
            f"{len(broker.tasks)} tasks, at the gate {gate}."
        )

    def _name(self, place: int) -> str:
        return step_name(place if place < self.scope.branches else NEXT)

    def key(self, state: State) -> State:
        """Return the same value for states that differ only in which replica, or which worker, is which."""
        workers = _relevant_memories(state) if state.faults_left == 0 else state.workers
        if len(workers) > 1:
            workers = tuple(sorted(workers, key=hash))
        if len(state.replicas) != 2:
            return state._replace(workers=workers)
        first, second = state.replicas
        lease = state.database.lease
        if hash((first, lease == 0)) > hash((second, lease == 1)):
            swapped = state.database._replace(lease=1 - lease if lease >= 0 else lease)
            return state._replace(database=swapped, replicas=(second, first), workers=workers)
        return state._replace(workers=workers)

    def _first(self, state: State) -> Step | None:
        tidied = self._tidied_first(state)
        if tidied is None and state.faults_left == 0 and not self.scope.variants:
            return self._certain_first(state)
        return tidied

    def _certain_first(self, state: State) -> Step | None:
        """Return a step that may as well come first because nothing can interfere, once no fault is left.

        A transaction that has the lock commits; a task of which there is no other copy goes its way to its result.
        Whatever others do meanwhile they can do as well while that result waits in its queue.
        """
        for index, replica in enumerate(state.replicas):
            if replica.work is not None and replica.work.phase is Phase.OPEN and is_locked(self.scope, state):
                return next(intake_steps(self.scope, state, index))
            if replica.unsent and replica.unsent[0].kind is Kind.TASK and _copies(state, replica.unsent[0].step) == 1:
                return publish(state, index)
        for index, worker in enumerate(state.workers):
            for attempt in worker.attempts:
                if _copies(state, attempt.step) == 1:
                    return proceed(self.scope, state, index, attempt)
        for step in state.broker.tasks:
            if _copies(state, step) == 1:
                return take(state, 0, step)
        return None

    def _tidied_first(self, state: State) -> Step | None:
        """Return an ack, or the deletion of sent rows, that may as well happen before anything else.

        Such a step prevents no other step and no oracle sees it; it only takes the occasion from a fault that would
        bring the message back. That fault is explored here, before the step. Had it come later, after actions of
        others, the same state would be reached, for a fault only gives back what those did not have. What is left out
        is one crash that brings back messages of several commits of one process, or several confirmed tasks of one
        worker; that takes several crashes here. Small scopes are explored in full as well, see `test_protocol`.
        """
        for index, replica in enumerate(state.replicas):
            if replica.work is not None and replica.work.phase is Phase.COMMITTED:
                ack = next(intake_steps(self.scope, state, index), None)
                if ack is not None:
                    return ack
            if replica.sent and not _sends_tasks(replica) and Variant.PUBLISH_BEFORE_COMMIT not in self.scope.variants:
                return forget(state, index)
            ended = next(ended_tickets(state, index), None)
            if ended is not None:
                return ended
        for index, worker in enumerate(state.workers):
            for attempt in worker.attempts:
                if attempt.progress is Progress.CONFIRMED:
                    return acked(state, index, attempt)
        return None


def _copies(state: State, step: int) -> int:
    """Return how many copies of a task are on their way or in work."""
    message = Message(Kind.TASK, step)
    handed_over = sum(one.unsent.count(message) for one in state.replicas)
    in_outbox = 1 if message in state.database.outbox and not handed_over else 0
    at_work = sum(attempt.step == step for worker in state.workers for attempt in worker.attempts)
    return handed_over + in_outbox + at_work + state.broker.tasks.count(step)


def _relevant_memories(state: State) -> tuple[Worker, ...]:
    """Return the workers without the answers that nobody can ask for any more, once no fault can repeat a task."""
    coming = {*state.broker.tasks, *(message.step for message in state.database.outbox if message.kind is Kind.TASK)}
    coming.update(message.step for one in state.replicas for message in one.unsent if message.kind is Kind.TASK)
    return tuple(worker._replace(answers=worker.answers & coming) for worker in state.workers)


def _sends_tasks(replica: Replica) -> bool:
    return bool(replica.unsent) and replica.unsent[0].kind is Kind.TASK
