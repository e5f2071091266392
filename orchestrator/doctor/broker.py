"""What RabbitMQ tells: by AMQP little, by its management API most."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from messaging.definitions import DELIVERY_LIMIT, Role, User, rights_of
from messaging.port import Broker, Queue, QueueDepth, QueueMissing
from messaging.rabbitmq import RabbitmqBroker
from messaging.rabbitmq.declaration import queue_arguments
from messaging.topology import DEAD_LETTERS_EXCHANGE, QUEUES, agent_queue
from orchestrator.doctor.findings import Finding, ok, problem, unknown, warning
from orchestrator.doctor.management import Management, ManagementRefused, ManagementUnavailable

OLDEST: Final = (3, 10)
DEFAULT_CONSUMER_TIMEOUT: Final = 1_800.0  # seconds
_SMALLEST_MAXIMUM: Final = {3: 128 * 1024 * 1024, 4: 16 * 1024 * 1024}  # of a message, by major version
_WORK: Final = re.compile(r"agent\.|orchestrator\.(runs|results|commands)$")
_NO_QUEUES: Final = "there are no queues yet"
_MAKE_QUEUES: Final = "start an orchestrator, or import definitions, and ask again"
_BY_HAND: Final = "give --management-url, or ask on the server: "

# Names that an orchestrator configures, writes to and reads from.
_NEEDED: Final = {
    "configure": ("orchestrator.runs", "orchestrator.gate.x", "orchestrator.replica.x"),
    "write": ("orchestrator.tasks", "orchestrator.gates", "orchestrator.events", "orchestrator.gate.x", "amq.default"),
    "read": ("orchestrator.runs", "orchestrator.results", "orchestrator.gate.x", "orchestrator.gates"),
}


@dataclass(frozen=True, slots=True)
class Managed:
    """What the management API says of a vhost."""

    nodes: Sequence[Mapping[str, Any]]
    queues: Mapping[str, Mapping[str, Any]]
    permissions: Mapping[str, str] | None  # of our user, empty where it has none; None: we are not told


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """What was asked of RabbitMQ; None where it could not be."""

    version: str
    depths: Mapping[str, QueueDepth | None]  # of queues by name; None: there is none
    managed: Managed | None = None
    agents: Sequence[str] = field(default_factory=tuple)  # those of which tasks are open


async def ask_broker(broker: RabbitmqBroker, agents: Iterable[str], managed: Managed | None) -> BrokerFacts:
    """Look at the queues, without declaring any; *broker* is connected."""
    known = tuple(agents)
    names = [queue.name for queue in (*QUEUES, *map(agent_queue, known))]
    depths = {name: await _depth(broker, name) for name in names}
    return BrokerFacts(await broker.server_version(), depths, managed, known)


def ask_management(management: Management, vhost: str, user: str) -> Managed:
    """Ask the management API. Raises ManagementUnavailable."""
    overview = management.get("overview")
    if not isinstance(overview, dict) or "rabbitmq_version" not in overview:
        raise ManagementUnavailable(f"what answers at {management.base} is not RabbitMQ's management API")
    return Managed(
        nodes=management.get("nodes"),
        queues={queue["name"]: queue for queue in management.get("queues", vhost)},
        permissions=_ask_permissions(management, vhost, user),
    )


def examine_broker(facts: BrokerFacts, longest_timeout: float | None, max_message_bytes: int) -> Iterator[Finding]:
    """Yield what the facts mean.

    *longest_timeout* is in seconds, of all agents: infinite where some have no limit, None where it is not known.
    """
    yield _version(facts.version)
    yield _message_size(facts.version, max_message_bytes)
    yield _own_queues(facts)
    yield from _agent_queues(facts)
    if facts.managed is None:
        yield unknown("delivery_limits", "AMQP does not tell policies", f"{_BY_HAND}`rabbitmqctl list_policies`")
        yield unknown("alarms", "AMQP does not tell alarms", f"{_BY_HAND}`rabbitmq-diagnostics alarms`")
        yield _consumer_timeout(None, longest_timeout)
        return
    managed = facts.managed
    yield _alarms(managed.nodes)
    yield from _arguments(facts)
    yield from _delivery_limits(managed, facts.version)
    yield _permissions(managed.permissions)
    yield _consumer_timeout(managed, longest_timeout)


def _ask_permissions(management: Management, vhost: str, user: str) -> Mapping[str, str] | None:
    try:
        entries = management.get("users", user, "permissions")
    except ManagementRefused:
        return None  # RabbitMQ tells administrators only
    return next((entry for entry in entries if entry["vhost"] == vhost), {})


async def _depth(broker: Broker, name: str) -> QueueDepth | None:
    try:
        return await broker.check_queue(name)
    except QueueMissing:
        return None


def _own_queues(facts: BrokerFacts) -> Finding:
    missing = [queue.name for queue in QUEUES if facts.depths[queue.name] is None]
    if missing:
        seen = f"there is no queue {', '.join(missing)}"
        return problem("queues", seen, "start an orchestrator: it declares them; or import definitions")
    idle = [queue.name for queue in QUEUES if _consumers(facts.depths[queue.name]) == 0]
    if idle:
        return problem("queues", f"nobody consumes {', '.join(idle)}", "start an orchestrator")
    return ok("queues", "the orchestrators' queues are there and consumed")


def _consumers(depth: QueueDepth | None) -> int:
    return 0 if depth is None else depth.consumers


def _agent_queues(facts: BrokerFacts) -> Iterator[Finding]:
    for agent in facts.agents:
        depth = facts.depths[agent_queue(agent).name]
        if depth is None:
            seen = f'there is no queue for tasks of agent "{agent}", and there are some'
            yield problem("agent_queue", seen, "start a worker that has this agent, or import definitions that name it")
        elif depth.consumers == 0:
            seen = f'no worker takes tasks of agent "{agent}"; {depth.ready} wait'
            yield problem("agent_queue", seen, "start a worker that has this agent")
        else:
            yield ok("agent_queue", f'agent "{agent}": {depth.consumers} workers, {depth.ready} tasks wait')


def _version(version: str) -> Finding:
    seen = f"RabbitMQ {version}"
    if not _numbers(version):
        return unknown("broker_version", "the broker does not tell its version", f"{_BY_HAND}`rabbitmqctl version`")
    if _numbers(version) < OLDEST:
        return problem("broker_version", seen, "upgrade RabbitMQ to 3.10 or newer")
    return ok("broker_version", seen)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _major(version: str) -> int:
    return next(iter(_numbers(version)), 4)  # the stricter one where it is not told


def _message_size(version: str, ours: int) -> Finding:
    theirs = _SMALLEST_MAXIMUM[4 if _major(version) >= 4 else 3]
    if ours > theirs:
        seen = f"FORKJOIN_MAX_MESSAGE_BYTES is {ours:,}, and RabbitMQ takes {theirs:,} unless it is told otherwise"
        return warning("message_size", seen, "set max_message_size in rabbitmq.conf to as much")
    return ok("message_size", f"messages have at most {ours:,} bytes, which RabbitMQ takes")


def _alarms(nodes: Sequence[Mapping[str, Any]]) -> Finding:
    down = [str(node["name"]) for node in nodes if not node.get("running", True)]
    if down:
        return problem("alarms", f"node {', '.join(down)} is down", "start it: quorum queues need a majority of nodes")
    kinds = {"mem_alarm": "memory", "disk_free_alarm": "disk"}
    raised = [f"{kinds[kind]} on {node['name']}" for node in nodes for kind in kinds if node.get(kind)]
    if raised:
        seen = f"an alarm is on, and nobody can publish: {', '.join(raised)}"
        return problem("alarms", seen, "free memory or disk, or give RabbitMQ more of it")
    return ok("alarms", f"{len(nodes)} nodes run, without alarms")


def _arguments(facts: BrokerFacts) -> Iterator[Finding]:
    assert facts.managed is not None
    expected = [queue for queue in (*QUEUES, *map(agent_queue, facts.agents)) if queue.name in facts.managed.queues]
    differences = {queue.name: _difference(queue, facts.managed.queues[queue.name]) for queue in expected}
    wrong = [f"{name} {difference}" for name, difference in differences.items() if difference is not None]
    if not expected:
        yield unknown("queue_arguments", _NO_QUEUES, _MAKE_QUEUES)
    elif wrong:
        yield problem(
            "queue_arguments", "; ".join(wrong), "delete the queue when it is empty: who needs it declares it anew"
        )
    else:
        yield ok("queue_arguments", "queues are declared as they should be")


def _difference(queue: Queue, found: Mapping[str, Any]) -> str | None:
    expected = queue_arguments(queue)
    arguments = {name: value for name, value in found.get("arguments", {}).items() if name in expected}
    if arguments != expected:
        return f"has {found.get('arguments', {})}, and should have {expected}"
    return None if found.get("durable") else "is not durable, and should be"


def _delivery_limits(managed: Managed, version: str) -> Iterator[Finding]:
    work = [queue for name, queue in managed.queues.items() if _WORK.match(name)]
    drops = sorted(str(queue["name"]) for queue in work if _drops(queue, version))
    advice = "import the policies of `forkjoin rabbitmq definitions`"
    if not work:
        yield unknown("delivery_limits", _NO_QUEUES, _MAKE_QUEUES)
    elif drops:
        seen = f"messages that come back often are dropped for good, at {', '.join(drops)}"
        yield problem("delivery_limits", seen, advice)
    elif any(_policy(queue).get("delivery-limit") is None for queue in work):
        seen = "there is no delivery limit: a message that kills its worker comes back for ever"
        yield warning("delivery_limits", seen, f"{advice} ({DELIVERY_LIMIT} returns, then a dead letter)")
    else:
        yield ok("delivery_limits", "messages that come back too often become dead letters")


def _drops(queue: Mapping[str, Any], version: str) -> bool:
    policy = _policy(queue)
    limited = _major(version) >= 4 or "delivery-limit" in policy
    unlimited = policy.get("delivery-limit") == -1 and _major(version) >= 4
    return limited and not unlimited and policy.get("dead-letter-exchange") != DEAD_LETTERS_EXCHANGE


def _policy(queue: Mapping[str, Any]) -> Mapping[str, Any]:
    # Without one the API gives an empty list.
    return queue.get("effective_policy_definition") or {}


def _permissions(permissions: Mapping[str, str] | None) -> Finding:
    if permissions is None:
        advice = f"{_BY_HAND}`rabbitmqctl list_user_permissions USER`; the API tells users with the tag administrator"
        return unknown("permissions", "RabbitMQ does not tell us what our user may do", advice)
    if not permissions:
        return problem("permissions", "our user has no rights in this vhost", "import `forkjoin rabbitmq definitions`")
    lacking = [
        f"{right} {name}"
        for right, names in _NEEDED.items()
        for name in names
        if re.search(permissions[right], name) is None
    ]
    if lacking:
        least = rights_of(User("", Role.ORCHESTRATOR))
        advice = f"an orchestrator needs: configure {least.configure} write {least.write} read {least.read}"
        return problem("permissions", f"our user may not {', '.join(lacking)}", advice)
    return ok("permissions", "our user may do what an orchestrator does")


def _consumer_timeout(managed: Managed | None, longest: float | None) -> Finding:
    if longest is None:
        seen = "it is not known how long agents may take"
        return unknown("consumer_timeout", seen, "ask again when Postgres is reached and has a workflow")
    timeouts = [] if managed is None else [_policy(queue).get("consumer-timeout") for queue in managed.queues.values()]
    known = [int(timeout) / 1000 for timeout in timeouts if timeout is not None]
    agents = "some agents have no time limit" if longest == math.inf else f"agents take up to {longest:g} s"
    advice = (
        "set consumer_timeout in rabbitmq.conf (milliseconds) above the longest agent; give each step timeout_seconds"
    )
    if known and min(known) <= longest:
        return problem("consumer_timeout", f"{agents}, and RabbitMQ takes tasks back after {min(known):g} s", advice)
    if known or longest < DEFAULT_CONSUMER_TIMEOUT:
        return ok("consumer_timeout", f"{agents}, less than RabbitMQ waits")
    by_hand = "`rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'`"
    return unknown(
        "consumer_timeout",
        f"{agents}; RabbitMQ waits 30 minutes unless it is told otherwise",
        f"{advice}; see {by_hand}",
    )
