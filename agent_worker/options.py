"""How a worker works: plain values, wherever they come from."""

import os
import secrets
import socket
from dataclasses import dataclass, field
from typing import Final

from agent_worker.execution import CANCEL_GRACE

DEFAULT_CONCURRENCY: Final = 10
DEFAULT_MAX_RESULT_BYTES: Final = 8 * 1024 * 1024  # half of what RabbitMQ 4 takes: results become part of later inputs
DEFAULT_MAX_DELIVERIES: Final = 10  # half of RabbitMQ 4's delivery limit, which drops the task without a word


def new_worker_id() -> str:
    """Return a name for this process that no other worker has."""
    return f"{socket.gethostname()[:100]}-{os.getpid()}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Options of a `Worker`; times are in seconds."""

    worker_id: str = field(default_factory=new_worker_id)
    concurrency: int = DEFAULT_CONCURRENCY  # attempts of each agent at once, so a worker holds no task it cannot start
    declare: bool = True  # False: only check that the queues exist
    report_started_after: float = 0.1
    heartbeat_interval: float = 30.0
    drain_timeout: float = 30.0
    cancel_grace: float = CANCEL_GRACE
    max_result_bytes: int = DEFAULT_MAX_RESULT_BYTES
    max_deliveries: int = DEFAULT_MAX_DELIVERIES  # a task that came back as often is failed instead of run
