"""What an orchestrator replica does with its inputs and its messages, one atomic action at a time.

    take ──▶ OPEN ──commit──▶ COMMITTED ──ack──▶ idle       the intake, and the gate's own transactions
                       └─────▶ unsent ──publish──▶ sent ──forget──▶ (the outbox row is gone)

Publishing goes on beside the next transactions, as in `service/relay.py`. Taking a delivery and opening its transaction
are one action: in between, a crash leaves the same state as before. What waits for the run's lock is not taken yet.
The order of commit, publish and ack, and the lock, are what the variants take away.
"""

from collections.abc import Iterator

from tests.model.decisions import Outcome, decide, merged
from tests.model.state import (
    IDLE,
    LAPSED,
    NEXT,
    Broker,
    History,
    Kind,
    Message,
    Phase,
    Replica,
    Rows,
    State,
    Status,
    Step,
    Tickets,
    Work,
    put,
)
from tests.model.variants import Scope, Variant


def intake_steps(scope: Scope, state: State, index: int) -> Iterator[Step]:
    """Yield what the replica can do about its input: take one, commit it, ack it."""
    work = state.replicas[index].work
    if work is None:
        if not is_locked(scope, state):
            yield from _take(scope, state, index)
    elif work.phase is Phase.COMMITTED:
        yield from _ack(scope, state, index, work)
    elif work.phase is Phase.OPEN:
        yield from _commit(scope, state, index, work)
    elif not is_locked(scope, state):
        yield begin(state, index, work.input, f"opens another transaction for the {work.input}")


def relay_steps(scope: Scope, state: State, index: int) -> Iterator[Step]:
    """Yield what the replica can do about messages: publish, forget, sweep."""
    replica = state.replicas[index]
    if replica.unsent:
        yield publish(state, index)
    if replica.sent and Variant.PUBLISH_BEFORE_COMMIT not in scope.variants:
        yield forget(state, index)
    left = orphans(state)
    if left:
        yield sweep(state, index, left[0], "sweeps up")


def begin(state: State, index: int, event: Message, words: str) -> Step:
    """Open a transaction: it locks the run and reads its rows."""
    changed = state.replicas[index]._replace(work=Work(event, Phase.OPEN, state.database.rows))
    return with_replica(state, index, changed, words)


def is_locked(scope: Scope, state: State) -> bool:
    """Whether somebody's open transaction has the run's row. A row that is not there yet cannot be locked."""
    if state.database.rows.run is Status.ABSENT or Variant.JOIN_WITHOUT_LOCK in scope.variants:
        return False
    return any(other.work is not None and other.work.phase is Phase.OPEN for other in state.replicas)


def publish(state: State, index: int) -> Step:
    """Publish the next message that a commit handed over; for a new gate, open it."""
    replica = state.replicas[index]
    message, *later = replica.unsent
    if message.kind is Kind.OPEN_GATE:
        done = opened(state, index)
        return with_replica(
            done, index, done.replicas[index]._replace(unsent=tuple(later)), "opens the gate of the new block"
        )
    if not _is_routable(state, message):
        # Returned: the row stays in the outbox, for the sweep.
        return with_replica(state, index, replica._replace(unsent=tuple(later)), f"has the {message} returned")
    sent = replica.sent | {message} if message in state.database.outbox else replica.sent
    changed = replica._replace(unsent=tuple(later), sent=sent)
    return with_replica(published(state, message), index, changed, f"publishes the {message}")


def forget(state: State, index: int) -> Step:
    """Delete the rows of all messages that were published; the relay does it in bulk."""
    replica = state.replicas[index]
    database = state.database._replace(outbox=state.database.outbox - replica.sent)
    forgotten = replica._replace(sent=frozenset())
    return with_replica(state._replace(database=database), index, forgotten, "deletes the outbox rows of what it sent")


def orphans(state: State) -> list[Message]:
    """Return what lies in the outbox, can be routed, and is in no process's memory, so that a sweep finds it due."""
    known = {message for replica in state.replicas for message in (*replica.unsent, *replica.sent)}
    return sorted(message for message in state.database.outbox if message not in known and _is_routable(state, message))


def sweep(state: State, index: int, message: Message, verb: str) -> Step:
    """Publish a message of the outbox whose time has come; its row stays locked until it is deleted."""
    replica = state.replicas[index]
    swept = published(state, message)
    return with_replica(swept, index, replica._replace(sent=replica.sent | {message}), f"{verb} the {message}")


def with_replica(state: State, index: int, replica: Replica, words: str) -> Step:
    """Return the step after which one replica is another value."""
    return Step(
        f"replica {index + 1} {words}" if words else "", state._replace(replicas=put(state.replicas, index, replica))
    )


def published(state: State, message: Message) -> State:
    """Return the state after RabbitMQ confirmed *message*; what cannot be routed changes nothing."""
    broker, history = state.broker, state.history
    match message.kind:
        case Kind.REPLY:
            history = history._replace(told=True)
        case Kind.TASK:
            broker = broker._replace(tasks=tuple(sorted((*broker.tasks, message.step))))
        case Kind.TICKET if broker.gate is not None:
            broker = broker._replace(gate=tuple(sorted((*broker.gate, message.step))))
        case _:
            pass
    return state._replace(broker=broker, history=history)


def opened(state: State, index: int) -> State:
    """Return the state after the replica declared the gate queue and consumes it."""
    replica = state.replicas[index]
    tickets = replica.tickets or Tickets(frozenset(), ())
    broker = state.broker._replace(gate=state.broker.gate or ())
    return with_replica(state._replace(broker=broker), index, replica._replace(tickets=tickets), "").state


def given_back(broker: Broker, message: Message) -> Broker:
    """Return the broker with a delivery of the intake ready again."""
    return broker._replace(inbox=tuple(sorted((*broker.inbox, message))))


def crashed(scope: Scope, state: State, index: int) -> State:
    """Return the state after the process died: its memory and transaction are gone, the broker takes its deliveries."""
    replica, broker, database = state.replicas[index], state.broker, state.database
    work = replica.work
    if work is not None and not is_own(work.input) and Variant.ACK_BEFORE_COMMIT not in scope.variants:
        broker = given_back(broker, delivery(work))
    if replica.tickets is not None and broker.gate is not None:
        broker = broker._replace(gate=tuple(sorted((*broker.gate, *replica.tickets.held, *replica.tickets.forgotten))))
    if database.lease == index:
        database = database._replace(lease=LAPSED)
    return state._replace(broker=broker, database=database, replicas=put(state.replicas, index, IDLE))


def committed(scope: Scope, state: State, index: int, *, known: bool = True) -> State:
    """Return the state after COMMIT; when its answer was lost (not *known*), the replica will try again."""
    work = state.replicas[index].work
    assert work is not None
    assert work.seen is not None
    outcome = decide(scope, work.seen, work.input)
    database = state.database._replace(rows=merged(work.seen, outcome.rows, state.database.rows))
    if not scope.variants & {Variant.NO_OUTBOX, Variant.PUBLISH_BEFORE_COMMIT}:
        stored = frozenset(message for message in outcome.messages if message.kind is not Kind.OPEN_GATE)
        database = database._replace(outbox=database.outbox | stored)
    if Message(Kind.OPEN_GATE) in outcome.messages:
        database = database._replace(lease=index)
    history = _witnessed(state.history, work.seen, outcome)
    after = state._replace(database=database, history=history)
    return with_replica(after, index, _after_commit(scope, state.replicas[index], work, outcome, known), "").state


def is_own(event: Message) -> bool:
    """Whether a transaction is the replica's own, with no delivery of the intake behind it."""
    return event.kind in (Kind.FILL, Kind.TICKET)


def delivery(work: Work) -> Message:
    """Return the delivery in hand, which is what the broker gives back."""
    return Message(Kind.RESULT, work.input.step) if work.input.kind is Kind.FOLLOW_UP else work.input


def _take(scope: Scope, state: State, index: int) -> Iterator[Step]:
    for message in dict.fromkeys(state.broker.inbox):
        inbox = list(state.broker.inbox)
        inbox.remove(message)
        rest = state._replace(broker=state.broker._replace(inbox=tuple(inbox)))
        yield begin(rest, index, message, f"takes the {message} and opens a transaction")


def _commit(scope: Scope, state: State, index: int, work: Work) -> Iterator[Step]:
    if work.input.kind is Kind.REQUEST and work.seen is not None and work.seen.run is not state.database.rows.run:
        # Another replica has inserted the run meanwhile: a unique violation, after which the transaction starts anew.
        held = state.replicas[index]._replace(work=work._replace(phase=Phase.HELD, seen=None))
        yield with_replica(state, index, held, "rolls back: another replica inserted the same run")
        return
    if Variant.PUBLISH_BEFORE_COMMIT in scope.variants:
        yield from _publish_early(scope, state, index, work)
        return
    yield Step(f"replica {index + 1} commits the {work.input}", committed(scope, state, index))


def _publish_early(scope: Scope, state: State, index: int, work: Work) -> Iterator[Step]:
    """First all messages go out, in the transaction; then it commits."""
    assert work.seen is not None
    messages = decide(scope, work.seen, work.input).messages
    sent = state.replicas[index].sent
    left = [message for message in messages if message not in sent and message.kind is not Kind.OPEN_GATE]
    if not left:
        clean = state.replicas[index]._replace(sent=frozenset())
        cleaned = with_replica(state, index, clean, "").state
        yield Step(f"replica {index + 1} commits the {work.input}", committed(scope, cleaned, index))
        return
    replica = state.replicas[index]._replace(sent=sent | {left[0]})
    yield with_replica(published(state, left[0]), index, replica, f"publishes the {left[0]} before its COMMIT")


def _after_commit(scope: Scope, replica: Replica, work: Work, outcome: Outcome, known: bool) -> Replica:
    if not known:
        return replica._replace(work=None if is_own(work.input) else Work(work.input, Phase.HELD, None))
    own_duties = (Kind.OPEN_GATE,) if Variant.PUBLISH_BEFORE_COMMIT in scope.variants else tuple(Kind)
    handed_over = tuple(message for message in outcome.messages if message.kind in own_duties)
    if Variant.FOLLOW_UP_APART in scope.variants and outcome.accepted not in (None, NEXT):
        return replica._replace(work=Work(Message(Kind.FOLLOW_UP, work.input.step), Phase.HELD, None))
    work_left = None if is_own(work.input) else work._replace(phase=Phase.COMMITTED, seen=None)
    return replica._replace(work=work_left, unsent=replica.unsent + handed_over)


def _ack(scope: Scope, state: State, index: int, work: Work) -> Iterator[Step]:
    replica = state.replicas[index]
    if Variant.NO_OUTBOX in scope.variants and replica.unsent:
        return  # whoever has no outbox acks last
    yield with_replica(state, index, replica._replace(work=None), f"acks the {work.input}")


def _is_routable(state: State, message: Message) -> bool:
    return message.kind is not Kind.TICKET or state.broker.gate is not None


def _witnessed(history: History, seen: Rows, outcome: Outcome) -> History:
    if outcome.accepted is not None:
        count = history.accepted[outcome.accepted] + 1
        history = history._replace(accepted=put(history.accepted, outcome.accepted, count))
    if seen.block is not outcome.rows.block is Status.COMPLETED:
        history = history._replace(created=history.created + 1)
    return history
