"""What a worker does with tasks, one atomic action at a time; see `agent_worker/desk.py` and `reporter.py`.

    take ──▶ TAKEN ──run──▶ RAN ──publish the result──▶ CONFIRMED ──ack──▶ (only the answer is remembered)

A task that comes again while its attempt is open joins it; one that comes later is answered from memory. Both memories
end with the process, and other workers have their own.
"""

from collections.abc import Iterator
from typing import assert_never

from tests.model.state import Attempt, Kind, Message, Progress, State, Step, Worker, put, step_name
from tests.model.variants import Scope, Variant


def worker_steps(scope: Scope, state: State, index: int) -> Iterator[Step]:
    """Yield what the worker can do: take a task, run it, send its result, ack it."""
    for step in dict.fromkeys(state.broker.tasks):
        yield take(state, index, step)
    for attempt in dict.fromkeys(state.workers[index].attempts):
        yield proceed(scope, state, index, attempt)


def take(state: State, index: int, step: int) -> Step:
    """Take a task from the agents' queue: a new one, one in work, or one whose answer is known."""
    tasks = list(state.broker.tasks)
    tasks.remove(step)
    rest = state._replace(broker=state.broker._replace(tasks=tuple(tasks)))
    worker = state.workers[index]
    name = step_name(step)
    for attempt in worker.attempts:
        if attempt.step == step and attempt.progress is not Progress.CONFIRMED:
            joined = attempt._replace(deliveries=attempt.deliveries + 1)
            changed = worker._replace(attempts=_with(_without(worker, attempt), joined))
            return _with_worker(rest, index, changed, f"takes the task of {name}, which it works on already")
    remembered = step in worker.answers
    attempt = Attempt(step, Progress.RAN if remembered else Progress.TAKEN, 1)
    words = f"takes the task of {name}" + (", whose answer it remembers" if remembered else "")
    return _with_worker(rest, index, worker._replace(attempts=_with(worker.attempts, attempt)), words)


def proceed(scope: Scope, state: State, index: int, attempt: Attempt) -> Step:
    """Do what comes next of an attempt."""
    match attempt.progress:
        case Progress.TAKEN:
            return _run(scope, state, index, attempt)
        case Progress.RAN:
            return _publish(state, index, attempt)
        case Progress.CONFIRMED:
            return acked(state, index, attempt)
        case _:
            assert_never(attempt.progress)


def crashed(scope: Scope, state: State, index: int) -> State:
    """Return the state after the process died: the broker has its tasks ready again."""
    back = [
        attempt.step
        for attempt in state.workers[index].attempts
        for _ in range(0 if Variant.ACK_TASK_BEFORE_RESULT in scope.variants else attempt.deliveries)
    ]
    broker = state.broker._replace(tasks=tuple(sorted((*state.broker.tasks, *back))))
    return state._replace(broker=broker, workers=put(state.workers, index, Worker()))


def acked(state: State, index: int, attempt: Attempt) -> Step:
    """Settle all deliveries of an attempt whose result is confirmed."""
    worker = state.workers[index]
    changed = worker._replace(attempts=_without(worker, attempt))
    return _with_worker(state, index, changed, f"acks the task of {step_name(attempt.step)}")


def _run(scope: Scope, state: State, index: int, attempt: Attempt) -> Step:
    step, history, worker = attempt.step, state.history, state.workers[index]
    counted = history._replace(executions=put(history.executions, step, history.executions[step] + 1))
    broker = state.broker
    if scope.starts:
        broker = broker._replace(inbox=tuple(sorted((*broker.inbox, Message(Kind.STARTED, step)))))
    changed = worker._replace(attempts=_with(_without(worker, attempt), attempt._replace(progress=Progress.RAN)))
    after = state._replace(history=counted, broker=broker)
    return _with_worker(after, index, changed, f"runs {step_name(step)}")


def _publish(state: State, index: int, attempt: Attempt) -> Step:
    worker, step = state.workers[index], attempt.step
    inbox = tuple(sorted((*state.broker.inbox, Message(Kind.RESULT, step))))
    confirmed = attempt._replace(progress=Progress.CONFIRMED)
    changed = Worker(_with(_without(worker, attempt), confirmed), worker.answers | {step})
    after = state._replace(broker=state.broker._replace(inbox=inbox))
    return _with_worker(after, index, changed, f"publishes the result of {step_name(step)}")


def _with(attempts: tuple[Attempt, ...], attempt: Attempt) -> tuple[Attempt, ...]:
    return tuple(sorted((*attempts, attempt)))


def _without(worker: Worker, attempt: Attempt) -> tuple[Attempt, ...]:
    attempts = list(worker.attempts)
    attempts.remove(attempt)
    return tuple(attempts)


def _with_worker(state: State, index: int, worker: Worker, words: str) -> Step:
    return Step(f"worker {index + 1} {words}", state._replace(workers=put(state.workers, index, worker)))
