"""What an operator imports into RabbitMQ: users with the least rights, exchanges, queues, and policies.

The result is a definitions file (`rabbitmqctl import_definitions`). Importing it again changes what differs and deletes
nothing. Rights are what RabbitMQ's access control knows: to configure, write to and read from resources whose name
matches a pattern, and for topic exchanges also whose routing key does.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, assert_never

from messaging.port import Exchange, ExchangeKind, Queue
from messaging.rabbitmq.declaration import queue_arguments
from messaging.topology import (
    COMMANDS_QUEUE,
    DEAD_LETTERS_EXCHANGE,
    DEAD_LETTERS_QUEUE,
    EXCHANGES,
    QUEUES,
    RESULTS_EXCHANGE,
    RESULTS_QUEUE,
    RUNS_QUEUE,
    WORKERS_EXCHANGE,
    agent_queue,
)

DELIVERY_LIMIT: Final = 100  # returns, lost connections included, before a message is a dead letter
MAX_WAITING_RUNS: Final = 100_000  # requests beyond that are refused: their publishers get a nack
_NOBODY: Final = "^$"

Definitions = dict[str, Any]


class Role(StrEnum):
    """What a user is for."""

    ORCHESTRATOR = "orchestrator"
    WORKER = "worker"
    SUBMITTER = "submitter"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


@dataclass(frozen=True, slots=True)
class User:
    """A user of the broker."""

    name: str
    role: Role
    agents: Sequence[str] = ()  # of a worker: those that it serves


@dataclass(frozen=True, slots=True)
class Rights:
    """Patterns of what a user may configure, write to and read from; by topic exchange those of routing keys."""

    configure: str
    write: str
    read: str
    topics: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # (write, read)


def definitions(
    users: Sequence[User], passwords: Mapping[str, str], *, vhost: str = "/", major_version: int = 4
) -> Definitions:
    """Return the definitions for these users.

    Args:
        users: Their agents get their queues.
        passwords: By user. Whoever has none cannot log in until it is set with `rabbitmqctl change_password`.
        vhost: Made where it is missing.
        major_version: Of RabbitMQ, 3 or 4: their delivery limits differ.
    """
    agents = sorted({agent for user in users for agent in user.agents})
    queues = (*QUEUES, *map(agent_queue, agents))
    rights = [(user.name, rights_of(user)) for user in users]
    return {
        "vhosts": [{"name": vhost}],
        "users": [_user(user, passwords.get(user.name)) for user in users],
        "permissions": [
            {"user": name, "vhost": vhost, "configure": its.configure, "write": its.write, "read": its.read}
            for name, its in rights
        ],
        "topic_permissions": [
            {"user": name, "vhost": vhost, "exchange": exchange, "write": write, "read": read}
            for name, its in rights
            for exchange, (write, read) in its.topics.items()
        ],
        "exchanges": [_exchange(exchange, vhost) for exchange in EXCHANGES],
        "queues": [_queue(queue, vhost) for queue in queues],
        "bindings": [binding for queue in queues for binding in _bindings(queue, vhost)],
        "policies": [{"vhost": vhost, **policy} for policy in policies(major_version)],
    }


def rights_of(user: User) -> Rights:
    """Return the least that a user needs."""
    match user.role:
        case Role.ORCHESTRATOR:
            # Results go to whatever queue a request names in reply_to, through the default exchange. That reaches
            # every queue of the vhost, so this user is trusted.
            return Rights(r"^orchestrator\.", r"^(orchestrator\..*|amq\.default)$", r"^orchestrator\.")
        case Role.WORKER:
            return _worker_rights(user.agents)
        case Role.SUBMITTER:
            return _client_rights("orchestrator.submit")
        case Role.OPERATOR:
            # Commands go to their queue through the default exchange.
            return _client_rights("orchestrator.submit", "amq.default")
        case Role.ADMINISTRATOR:
            return Rights(".*", ".*", ".*")
        case _:
            assert_never(user.role)


def policies(major_version: int) -> list[Definitions]:
    """Return how long messages may come back, and where they go then.

    Quorum queues drop what a limit makes them give up, unless it is dead-lettered; with `at-least-once` not even a
    crash loses it. A message that comes back often is poison, or has met many crashes: both are for a person to see.
    """
    kept = {
        "delivery-limit": DELIVERY_LIMIT,
        "dead-letter-exchange": DEAD_LETTERS_EXCHANGE,
        "dead-letter-strategy": "at-least-once",
        "overflow": "reject-publish",
    }
    work = _pattern(RESULTS_QUEUE.name, COMMANDS_QUEUE.name, others=(r"agent\..+",))
    found = [
        _policy("forkjoin-work", work, kept),
        _policy("forkjoin-runs", _pattern(RUNS_QUEUE.name), {**kept, "max-length": MAX_WAITING_RUNS}),
    ]
    if major_version >= 4:
        # From 4.0 on the limit is 20 unless another is set, and -1 means none. On 3.x it drops at the first return.
        found.append(_policy("forkjoin-dead-letters", _pattern(DEAD_LETTERS_QUEUE.name), {"delivery-limit": -1}))
    return found


def password_hash(password: str, salt: bytes | None = None) -> str:
    """Return a password as RabbitMQ keeps it: rabbit_password_hashing_sha256."""
    salt = secrets.token_bytes(4) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _worker_rights(agents: Sequence[str]) -> Rights:
    served = "|".join(map(re.escape, sorted(agents)))
    own = r"orchestrator\.worker\..+"
    return Rights(
        configure=f"^{own}$",
        write=_pattern(RESULTS_EXCHANGE, WORKERS_EXCHANGE, DEAD_LETTERS_EXCHANGE, others=(own,)),
        read=_pattern(WORKERS_EXCHANGE, others=(rf"agent\.({served})", own)),
        topics={
            RESULTS_EXCHANGE: (rf"^result\.({served})$", _NOBODY),
            WORKERS_EXCHANGE: (rf"^(asked\.({served})|answer\..+)$", rf"^(cancelled|asked\.({served})|answer\..+)$"),
        },
    )


def _client_rights(*exchanges: str) -> Rights:
    own = r"orchestrator\.(reply|watch)\..+"
    return Rights(
        configure=f"^{own}$",
        write=_pattern(*exchanges, others=(r"orchestrator\.watch\..+",)),  # to bind it
        read=_pattern("orchestrator.events", others=(own,)),
    )


def _pattern(*names: str, others: Iterable[str] = ()) -> str:
    return f"^({'|'.join((*map(re.escape, names), *others))})$"


def _policy(name: str, pattern: str, definition: Definitions) -> Definitions:
    return {"name": name, "pattern": pattern, "apply-to": "queues", "priority": 0, "definition": definition}


def _user(user: User, password: str | None) -> Definitions:
    return {
        "name": user.name,
        "password_hash": "" if password is None else password_hash(password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["administrator"] if user.role is Role.ADMINISTRATOR else [],
    }


def _exchange(exchange: Exchange, vhost: str) -> Definitions:
    return {
        "name": exchange.name,
        "vhost": vhost,
        "type": ExchangeKind(exchange.kind).value,
        "durable": True,
        "auto_delete": False,
        "internal": False,
        "arguments": {},
    }


def _queue(queue: Queue, vhost: str) -> Definitions:
    arguments = queue_arguments(queue)
    return {"name": queue.name, "vhost": vhost, "durable": True, "auto_delete": False, "arguments": arguments}


def _bindings(queue: Queue, vhost: str) -> list[Definitions]:
    return [
        {
            "source": binding.exchange,
            "vhost": vhost,
            "destination": queue.name,
            "destination_type": "queue",
            "routing_key": binding.routing_key,
            "arguments": {},
        }
        for binding in queue.bindings
    ]
