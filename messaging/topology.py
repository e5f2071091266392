"""The one table of exchanges and queues.

| name | kind | for |
|---|---|---|
| orchestrator.submit -> orchestrator.runs | direct -> quorum | RunRequest; also by queue name |
| orchestrator.tasks -> agent.<agent_name> | direct -> quorum per agent | AgentTask |
| orchestrator.results -> orchestrator.results | topic, result.# -> quorum | AgentResult; RunResults of sub-workflows |
| orchestrator.gates -> orchestrator.gate.<run>.<block> | direct -> classic, expires | branches of a limited block |
| orchestrator.commands | quorum | CancelRun, RetryRun |
| orchestrator.events | topic, run.<run_id> | RunEvent, for whoever binds a queue |
| orchestrator.workers -> orchestrator.worker.<random> | topic -> exclusive | RunCancelled; questions between workers |
| orchestrator.dead-letters | fanout -> quorum | what could not be processed |

Only what never differs between broker versions stands in queue arguments; limits belong in policies, because a queue's
arguments cannot be changed and a policy can.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final
from uuid import UUID

from messaging.port import Binding, Exchange, ExchangeKind, Queue, QueueKind

SUBMIT_EXCHANGE: Final = "orchestrator.submit"
TASKS_EXCHANGE: Final = "orchestrator.tasks"
RESULTS_EXCHANGE: Final = "orchestrator.results"
GATES_EXCHANGE: Final = "orchestrator.gates"
EVENTS_EXCHANGE: Final = "orchestrator.events"
DEAD_LETTERS_EXCHANGE: Final = "orchestrator.dead-letters"
WORKERS_EXCHANGE: Final = "orchestrator.workers"
DEFAULT_EXCHANGE: Final = ""

RUNS_KEY: Final = "orchestrator.runs"
CANCELLED_KEY: Final = "cancelled"
GATE_EXPIRES: Final = timedelta(hours=1)

# Workers declare it apart from the others, for they also work where they may not use it.
WORKERS: Final = Exchange(WORKERS_EXCHANGE, ExchangeKind.TOPIC)  # so that rights can tell keys apart

EXCHANGES: Final = (
    Exchange(SUBMIT_EXCHANGE, ExchangeKind.DIRECT),
    Exchange(TASKS_EXCHANGE, ExchangeKind.DIRECT),
    Exchange(RESULTS_EXCHANGE, ExchangeKind.TOPIC),
    Exchange(GATES_EXCHANGE, ExchangeKind.DIRECT),
    Exchange(EVENTS_EXCHANGE, ExchangeKind.TOPIC),
    WORKERS,
    Exchange(DEAD_LETTERS_EXCHANGE, ExchangeKind.FANOUT),
)

RUNS_QUEUE: Final = Queue(
    "orchestrator.runs", QueueKind.QUORUM, (Binding(SUBMIT_EXCHANGE, RUNS_KEY), Binding(SUBMIT_EXCHANGE, ""))
)
RESULTS_QUEUE: Final = Queue("orchestrator.results", QueueKind.QUORUM, (Binding(RESULTS_EXCHANGE, "result.#"),))
COMMANDS_QUEUE: Final = Queue("orchestrator.commands", QueueKind.QUORUM)
DEAD_LETTERS_QUEUE: Final = Queue("orchestrator.dead-letters", QueueKind.QUORUM, (Binding(DEAD_LETTERS_EXCHANGE, ""),))

# Queues of which each run, block or process has its own.
_FAMILIES: Final = tuple(f"orchestrator.{purpose}" for purpose in ("gate", "replica", "worker", "watch", "reply"))
_AGENT_PREFIX: Final = "agent."
_OURS: Final = "orchestrator."
_REPLY_PREFIX: Final = "orchestrator.reply."

QUEUES: Final = (RUNS_QUEUE, RESULTS_QUEUE, COMMANDS_QUEUE, DEAD_LETTERS_QUEUE)


def agent_queue(agent_name: str) -> Queue:
    """Return the queue in which tasks for *agent_name* wait; it outlives its workers."""
    return Queue(f"{_AGENT_PREFIX}{agent_name}", QueueKind.QUORUM, (Binding(TASKS_EXCHANGE, agent_name),))


def result_key(agent_name: str) -> str:
    """Return the routing key for reports about tasks of *agent_name*."""
    return f"result.{agent_name}"


def question_key(agent_name: str) -> str:
    """Return the routing key for questions to all workers of *agent_name*."""
    return f"asked.{agent_name}"


def answer_key(listener: str) -> str:
    """Return the routing key for answers to one worker."""
    return f"answer.{listener}"


def worker_queue(listener: str, agent_names: Iterable[str]) -> Queue:
    """Return the queue in which one worker hears of cancelled runs, questions about its agents, and answers."""
    keys = [CANCELLED_KEY, answer_key(listener), *map(question_key, agent_names)]
    bindings = tuple(Binding(WORKERS_EXCHANGE, key) for key in keys)
    return Queue(f"orchestrator.worker.{listener}", QueueKind.EXCLUSIVE, bindings)


def event_key(run_id: UUID) -> str:
    """Return the routing key for events of one run; bind it, or ``run.#`` for all runs."""
    return f"run.{run_id}"


def gate_key(run_id: UUID, block_id: str) -> str:
    """Return the routing key for branches that wait at the gate of a block.

    Clients refuse names of queues with brackets in them (aio-pika does), and the id of a block in the body of a loop
    has some: `x[3][0]` becomes `x:3:0`, and no step's id holds a colon.
    """
    return f"{run_id}.{block_id.replace('[', ':').replace(']', '')}"


def gate_queue(run_id: UUID, block_id: str) -> Queue:
    """Return the gate queue of a block; it expires should nobody be left to delete it."""
    key = gate_key(run_id, block_id)
    return Queue(f"orchestrator.gate.{key}", QueueKind.CLASSIC, (Binding(GATES_EXCHANGE, key),), GATE_EXPIRES)


def replica_queue(replica_id: str) -> Queue:
    """Return the queue for notices to one orchestrator replica."""
    return Queue(f"orchestrator.replica.{replica_id}", QueueKind.EXCLUSIVE)


def events_queue(watcher_id: str, run_id: UUID) -> Queue:
    """Return a queue that one watcher of one run reads events from."""
    return Queue(
        f"orchestrator.watch.{watcher_id}", QueueKind.EXCLUSIVE, (Binding(EVENTS_EXCHANGE, event_key(run_id)),)
    )


def reply_queue(client_id: str) -> Queue:
    """Return a queue in which one client awaits RunResults."""
    return Queue(f"{_REPLY_PREFIX}{client_id}", QueueKind.EXCLUSIVE)


def is_for_services(queue_name: str) -> bool:
    """Whether a queue of that name is one that our services read, rather than a client of theirs."""
    return queue_name.startswith((_OURS, _AGENT_PREFIX)) and not queue_name.startswith(_REPLY_PREFIX)


def queue_family(name: str) -> str:
    """Return the name under which queues of one purpose are counted together: one for all gates, all replicas, …

    Queues of agents are told apart, as are those that exist once.
    """
    for family in _FAMILIES:
        if name.startswith(f"{family}."):
            return family
    return name
