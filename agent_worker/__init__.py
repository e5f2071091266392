"""The service that runs agents: it consumes tasks and reports results."""

from agent_worker.context import AgentContext
from agent_worker.errors import AgentFailed, RetryLater
from agent_worker.registry import AgentRegistry

__all__ = ["AgentContext", "AgentFailed", "AgentRegistry", "RetryLater"]
