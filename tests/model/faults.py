"""What goes wrong, at any moment: each of these takes one of the scope's faults.

a process dies                     its memory is lost, its transaction rolled back, its deliveries come again
a delivery comes again             as after a lost connection, or a publish whose confirm was lost
COMMIT succeeds, its answer is lost   the replica has no messages in memory and applies the input once more
a lease lapses                     another replica takes the gate over, while the old holder believes it has it
the sweep comes early              what a slow but living process is about to publish is published by another
the gate queue is lost             purged, deleted or expired, with all its tickets
"""

from collections.abc import Iterator

from tests.model import replica, worker
from tests.model.gate import without_queue
from tests.model.state import LAPSED, NO_GATE, Phase, State, Status, Step, step_name
from tests.model.variants import Scope, Variant


def fault_steps(scope: Scope, state: State) -> Iterator[Step]:
    """Yield every fault that can happen now and would change something."""
    if state.faults_left == 0:
        return
    hit = state._replace(faults_left=state.faults_left - 1)
    for index in range(len(state.replicas)):
        yield from _replica_faults(scope, hit, index)
    for index, some_worker in enumerate(state.workers):
        if some_worker.attempts or some_worker.answers:
            yield Step(f"FAULT: worker {index + 1} dies", worker.crashed(scope, hit, index))
    yield from _repeated_deliveries(hit)
    if state.broker.gate is not None and state.database.rows.block is Status.RUNNING:
        yield Step("FAULT: the gate queue is lost with its tickets", without_queue(hit))


def _replica_faults(scope: Scope, hit: State, index: int) -> Iterator[Step]:
    one, database = hit.replicas[index], hit.database
    dead = replica.crashed(scope, hit, index)
    if dead != hit:
        yield Step(f"FAULT: replica {index + 1} dies", dead)
    if one.work is not None and one.work.phase is Phase.OPEN and _commits_next(scope, hit, index):
        lost = replica.committed(scope, hit, index, known=False)
        yield Step(f"FAULT: replica {index + 1} commits the {one.work.input}, and the answer is lost", lost)
    if database.lease not in (index, LAPSED, NO_GATE):
        taken = hit._replace(database=database._replace(lease=index))
        yield Step(f"FAULT: the lease of the gate lapses, replica {index + 1} takes it over", taken)
    for message in sorted({*one.unsent, *one.sent} & database.outbox):
        other = (index + 1) % len(hit.replicas)
        if message not in hit.replicas[other].sent:
            early = replica.sweep(hit, other, message, "comes too early and sweeps up")
            yield Step(f"FAULT: {early.words}", early.state)


def _commits_next(scope: Scope, state: State, index: int) -> bool:
    work = state.replicas[index].work
    assert work is not None
    assert work.seen is not None
    inserted_meanwhile = work.seen.run is Status.ABSENT and state.database.rows.run is not Status.ABSENT
    return not inserted_meanwhile and Variant.PUBLISH_BEFORE_COMMIT not in scope.variants


def _repeated_deliveries(hit: State) -> Iterator[Step]:
    broker = hit.broker
    for one in hit.replicas:
        if one.work is not None and not replica.is_own(one.work.input):
            message = replica.delivery(one.work)
            again = hit._replace(broker=replica.given_back(broker, message))
            yield Step(f"FAULT: the {message} is delivered again", again)
        if one.tickets is not None and broker.gate is not None:
            for step in sorted(one.tickets.held):
                gate = tuple(sorted((*broker.gate, step)))
                again = hit._replace(broker=broker._replace(gate=gate))
                yield Step(f"FAULT: the ticket of {step_name(step)} is delivered again", again)
    for step in sorted({attempt.step for one in hit.workers for attempt in one.attempts}):
        again = hit._replace(broker=broker._replace(tasks=tuple(sorted((*broker.tasks, step)))))
        yield Step(f"FAULT: the task of {step_name(step)} is delivered again", again)
