"""What the crash-point sweep sends through a cluster, and how it lets a process die in the middle of it."""

import asyncio
import json
import signal
import uuid
from dataclasses import dataclass, field
from typing import Any

import pika

from messaging.rabbitmq import RabbitmqBroker
from messaging.topology import EXCHANGES, QUEUES, agent_queue
from tests.acceptance.cluster import PATIENCE, Cluster, Service, wait_until
from tests.faults.launcher import launch
from tests.faults.oracles import Expected, fetch

AGENTS = ("nap", "echo", "fail")
JOURNAL_REGISTRY = "tests.acceptance.journal_agents:agents"
REPLIES = "test.replies"
LIMIT = 2
GATED = [f"b{number}" for number in range(6)]
OPEN = ["c0", "c1", "c2"]
MOST_RUNS = 10  # that are submitted until a process has died


def nap(n: Any, seconds: float, **fields: Any) -> dict[str, Any]:
    """Return a step that takes so long and gives *n* back."""
    return {"agent_name": "nap", "input_mapping": {"n": n, "seconds": seconds}, **fields}


def two_blocks(seconds: float) -> dict[str, Any]:
    """Return a workflow with a limited block, a block of which one branch fails, and a step that uses both."""
    steps: dict[str, Any] = {
        "gated": {"type": "parallel", "parallel_steps": GATED, "max_parallelism": LIMIT, "next_step": "open"},
        "open": {"type": "parallel", "parallel_steps": OPEN, "next_step": "last", "on_failure": "last"},
        "last": nap({"gated": "${gated.output}", "failed": "${c1.error.code}"}, 0, timeout_seconds=60),
        **{name: nap(name, seconds) for name in [*GATED, *OPEN]},
        "c1": {"agent_name": "fail", "input_mapping": {"message": "as it should"}},
    }
    return {"name": "sweep", "start_step": "gated", "steps": steps}


TWO_BLOCKS = Expected(
    status="COMPLETED",
    output={"n": {"gated": {name: {"n": name} for name in GATED}, "failed": "agent_error"}},
    steps=dict.fromkeys(["gated", *GATED, "c0", "c2", "last"], "COMPLETED") | {"open": "FAILED", "c1": "FAILED"},
    limits={"gated": LIMIT},
    executed=[*GATED, "c0", "c2", "last"],
)
LONG = ["l0", "l1", "l2", "l3"]
CANCELLED = Expected(status="CANCELLED", steps=None, limits={"long": 1})
RETRIED = Expected(
    status="COMPLETED",
    output={name: {"n": name} for name in LONG},
    steps=dict.fromkeys(["long", *LONG], "COMPLETED"),
    limits={"long": 1},
)


@dataclass
class Sweep:
    """A cluster through which messages of every kind pass.

    Attributes:
        seconds: For which each branch naps.
        expected: What each accepted run comes to.
        dead_letters: Codes of what was sent to be refused.
    """

    cluster: Cluster
    seconds: float = 0.02
    environment: dict[str, str] = field(default_factory=dict)
    expected: dict[str, Expected] = field(default_factory=dict)
    dead_letters: list[str] = field(default_factory=list)
    _to_cancel: list[str] = field(default_factory=list)

    def replicas(self, count: int, **fault: Any) -> list[Service]:
        """Start replicas, and wait for nothing."""
        return [launch(self.cluster, "serve", **fault, **self.environment) for _ in range(count)]

    def workers(self, count: int, **fault: Any) -> list[Service]:
        """Start workers, and wait for nothing."""
        return [launch(self.cluster, "worker", JOURNAL_REGISTRY, **fault) for _ in range(count)]

    def submit(self, workflow: dict[str, Any], expected: Expected) -> str:
        """Ask for a run as any client does, with a reply."""
        run_id = str(uuid.uuid4())
        self.expected[run_id] = expected
        request = {"version": 1, "run_id": run_id, "workflow": workflow}
        self.publish("orchestrator.runs", json.dumps(request).encode(), reply_to=REPLIES, correlation_id=run_id)
        return run_id

    def submit_two_blocks(self) -> None:
        """Ask for a run of both blocks."""
        self.submit(two_blocks(self.seconds), TWO_BLOCKS)

    def submit_cancelled(self) -> str:
        """Ask for a run that `poll` cancels as soon as it is under way."""
        block = {"type": "parallel", "parallel_steps": LONG, "max_parallelism": 1}
        steps = {"long": block, **{name: nap(name, 1.0) for name in LONG}}
        run_id = self.submit({"name": "cancelled", "start_step": "long", "steps": steps}, CANCELLED)
        self._to_cancel.append(run_id)
        return run_id

    def retry(self, run_id: str) -> None:
        """Ask for a retry of a run that was cancelled, with a reply."""
        new = str(uuid.uuid4())
        self.expected[new] = RETRIED
        command = json.dumps({"version": 1, "run_id": run_id, "new_run_id": new}).encode()
        self.publish("orchestrator.commands", command, type="RetryRun", reply_to=REPLIES, correlation_id=new)

    def submit_garbage(self) -> None:
        """Send what nobody can read, each time something else."""
        self.dead_letters.append("malformed_message")
        self.publish("orchestrator.runs", b"{" * len(self.dead_letters))

    def submit_everything(self) -> None:
        """Send messages of every kind."""
        self.submit_two_blocks()
        self.submit_cancelled()
        self.submit_garbage()

    def poll(self) -> None:
        """Cancel what is to be cancelled and can be."""
        for run_id in list(self._to_cancel):
            if fetch(self.cluster, "SELECT 1 FROM runs WHERE id::text = $1 AND status = 'RUNNING'", run_id):
                self._to_cancel.remove(run_id)
                self.publish("orchestrator.commands", json.dumps({"version": 1, "run_id": run_id}).encode())

    def all_sent(self) -> bool:
        """Whether nothing is left to send."""
        self.poll()
        return not self._to_cancel

    def publish(self, queue: str, body: bytes, **properties: Any) -> None:
        """Send a message with a confirm."""
        with pika.BlockingConnection(pika.URLParameters(self.cluster.amqp_url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2, **properties), mandatory=True)

    def declare(self) -> None:
        """Make the queues of orchestrator and agents, and one for replies, before anybody starts."""
        asyncio.run(_declare(self.cluster.amqp_url))
        with pika.BlockingConnection(pika.URLParameters(self.cluster.amqp_url)) as connection:
            connection.channel().queue_declare(REPLIES, durable=True)

    def purge(self, queue: str, count: int) -> None:
        """Wait until a queue holds so much, and empty it."""
        with pika.BlockingConnection(pika.URLParameters(self.cluster.amqp_url)) as connection:
            channel = connection.channel()

            def is_full() -> bool:
                return bool(channel.queue_declare(queue, passive=True).method.message_count >= count)

            wait_until(is_full, PATIENCE, lambda: f"{queue} never held {count} messages")
            channel.queue_purge(queue)

    def replies(self) -> dict[str, set[str]]:
        """Take all replies that have come, and return what was said of each run."""
        said: dict[str, set[str]] = {}
        with pika.BlockingConnection(pika.URLParameters(self.cluster.amqp_url)) as connection:
            channel = connection.channel()
            while (got := channel.basic_get(REPLIES, auto_ack=True))[0] is not None:
                said.setdefault(str(got[1].correlation_id), set()).add(got[2].decode())
        return said

    def let_time_pass(self) -> None:
        """Make due what waits for somebody who has died: messages that it was to send, and gates that it held.

        In real time these waits are 10 and 5 seconds; the slow cases in which another replica takes over sit them out.
        """
        fetch(self.cluster, "UPDATE outbox SET due_at = now() WHERE held_at IS NULL")
        fetch(self.cluster, "UPDATE gates SET lease_until = now() - interval '1 second'")


def died(service: Service) -> bool:
    """Whether the service has met its fault; fails when it ended otherwise."""
    code = service.process.poll()
    assert code in {None, -signal.SIGKILL}, f"exit code {code}:\n{service.log.read_text()}"
    return code is not None


async def _declare(amqp_url: str) -> None:
    broker = RabbitmqBroker(amqp_url, name="sweep")
    await broker.connect()
    await broker.declare(EXCHANGES, [*QUEUES, *map(agent_queue, AGENTS)])
    await broker.close()
