"""The in-memory adapter of the broker port: RabbitMQ's semantics in one process, deterministic and without I/O."""

from messaging.memory.broker import MemoryBroker
from messaging.memory.server import MemoryServer

__all__ = ["MemoryBroker", "MemoryServer"]
