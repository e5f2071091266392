"""What a replica does about the gate: leases, tickets, free slots, and the gate's end; see `service/gatekeeper.py`.

The lease is a column in Postgres, the consumer is memory; the two differ whenever a lease lapsed and its old holder has
not noticed. Notices to the holder are not modelled as messages: a notice may be lost, and the lease round finds the
same by asking Postgres, so a holder acks the ticket of an ended branch at some time later, however it heard of it.
"""

from collections.abc import Iterator

from tests.model.decisions import HOLD_SLOT, free_slots
from tests.model.replica import begin, is_locked, opened, with_replica
from tests.model.state import (
    LAPSED,
    NO_GATE,
    Kind,
    Message,
    Replica,
    State,
    Status,
    Step,
    Tickets,
    step_name,
)
from tests.model.variants import Scope, Variant


def gate_steps(scope: Scope, state: State, index: int) -> Iterator[Step]:
    """Yield what the replica can do about the gate."""
    yield from _lease_steps(scope, state, index)
    yield from _ending_steps(scope, state, index)
    if state.replicas[index].tickets is not None:
        yield from _ticket_steps(scope, state, index)
    if state.replicas[index].work is None and not is_locked(scope, state):
        yield from _filling_steps(scope, state, index)


def broker_steps(state: State) -> Iterator[Step]:
    """Yield what RabbitMQ does by itself: a queue that nobody has used for an hour expires."""
    unused = all(replica.tickets is None for replica in state.replicas)
    if state.broker.gate is not None and unused and state.database.lease == NO_GATE:
        yield Step("the unused gate queue expires", state._replace(broker=state.broker._replace(gate=None)))


def ended_tickets(state: State, index: int) -> Iterator[Step]:
    """Yield the acks of tickets whose branches have ended."""
    replica = state.replicas[index]
    tickets = replica.tickets
    if tickets is None:
        return
    for step in sorted(tickets.held):
        if state.database.rows.steps[step] is Status.COMPLETED:
            left = replica._replace(tickets=tickets._replace(held=tickets.held - {step}))
            yield with_replica(state, index, left, f"acks the ticket of {step_name(step)}, which has ended")


def closed(state: State, index: int) -> State:
    """Return the state after the replica closed its consumer: all it held is ready again."""
    replica, broker = state.replicas[index], state.broker
    if replica.tickets is not None and broker.gate is not None:
        broker = broker._replace(gate=tuple(sorted((*broker.gate, *replica.tickets.held, *replica.tickets.forgotten))))
    return with_replica(state._replace(broker=broker), index, replica._replace(tickets=None), "").state


def without_queue(state: State) -> State:
    """Return the state after the gate queue was deleted, with what was delivered from it."""
    emptied = tuple(
        replica if replica.tickets is None else replica._replace(tickets=Tickets(frozenset(), ()))
        for replica in state.replicas
    )
    return state._replace(broker=state.broker._replace(gate=None), replicas=emptied)


def _lease_steps(scope: Scope, state: State, index: int) -> Iterator[Step]:
    replica, database = state.replicas[index], state.database
    if database.lease == LAPSED:
        taken = state._replace(database=database._replace(lease=index))
        yield Step(f"replica {index + 1} takes the lapsed lease of the gate", taken)
    if database.lease == index and replica.tickets is None and database.rows.block is Status.RUNNING:
        yield Step(f"replica {index + 1} opens the gate that it holds", opened(state, index))
    if database.lease != index and replica.tickets is not None:
        yield Step(f"replica {index + 1} notices that the gate is not its own, and lets go", closed(state, index))
    if replica.tickets is not None and state.broker.gate is None:
        # The adapter keeps its consumers alive: one whose queue is gone declares it again.
        yield Step(f"replica {index + 1} declares the gate queue again", opened(state, index))


def _ending_steps(scope: Scope, state: State, index: int) -> Iterator[Step]:
    database, replica = state.database, state.replicas[index]
    if database.lease != index or database.rows.block is not Status.COMPLETED:
        return
    if state.broker.gate is not None or replica.tickets is not None:
        gone = with_replica(state, index, replica._replace(tickets=None), "").state
        yield Step(f"replica {index + 1} closes the gate and deletes its queue", without_queue(gone))
        return
    kept = database.outbox
    if Variant.TICKETS_OUTLIVE_GATE not in scope.variants:
        kept = frozenset(message for message in kept if message.kind is not Kind.TICKET)
    forgotten = database._replace(lease=NO_GATE, outbox=kept)
    yield Step(f"replica {index + 1} deletes the gate and its unsent tickets", state._replace(database=forgotten))


def _ticket_steps(scope: Scope, state: State, index: int) -> Iterator[Step]:
    replica, queue = state.replicas[index], state.broker.gate
    assert replica.tickets is not None
    tickets = replica.tickets
    if queue and len(tickets.held) + len(tickets.forgotten) < scope.limit:
        taken = state._replace(broker=state.broker._replace(gate=queue[1:]))
        words = f"receives the ticket of {step_name(queue[0])}"
        arrived = with_replica(taken, index, _with_ticket(replica, tickets, queue[0]), words)
        yield _with_question(scope, arrived, index, queue[0])
    yield from ended_tickets(state, index)


def _with_ticket(replica: Replica, tickets: Tickets, step: int) -> Replica:
    if step in tickets.held:
        return replica._replace(tickets=tickets._replace(forgotten=tuple(sorted((*tickets.forgotten, step)))))
    return replica._replace(tickets=tickets._replace(held=tickets.held | {step}))


def _with_question(scope: Scope, arrived: Step, index: int, step: int) -> Step:
    """Ask what the ticket of a branch that has its slot means, where a variant makes that matter."""
    state, words = arrived.state, arrived.words
    if Variant.FORWARD_REPEATED_TICKETS not in scope.variants or state.database.rows.steps[step] not in HOLD_SLOT:
        return arrived
    if state.replicas[index].work is not None or is_locked(scope, state):
        return arrived
    asked = begin(state, index, Message(Kind.TICKET, step), "")
    return Step(f"{words} and opens a transaction for it", asked.state)


def _filling_steps(scope: Scope, state: State, index: int) -> Iterator[Step]:
    """A ticket that waits in hand is an occasion to fill slots, and the lease round of the holder is another."""
    replica, rows = state.replicas[index], state.database.rows
    held = replica.tickets.held if replica.tickets is not None else frozenset()
    waiting = sorted(step for step in held if rows.steps[step] is Status.PENDING)
    if Variant.LIMIT_BY_QUEUE_ONLY in scope.variants:
        for step in waiting:
            words = f"opens a transaction for the ticket of {step_name(step)}"
            yield begin(state, index, Message(Kind.TICKET, step), words)
    elif free_slots(scope, rows) > 0:
        reconciles = state.database.lease == index and Variant.NO_RECONCILIATION not in scope.variants
        if waiting or reconciles:
            occasion = f"the ticket of {step_name(waiting[0])}" if waiting else "the free slots"
            yield begin(state, index, Message(Kind.FILL), f"opens a transaction for {occasion}")
