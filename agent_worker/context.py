"""What an agent may know and do beside its input."""

from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Protocol
from uuid import UUID

import structlog
from structlog.typing import FilteringBoundLogger


class Sent:
    """What `AgentContext.heartbeat` returns: awaiting it gives the event loop a turn, and so does nobody harm."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        yield


class Pulse(Protocol):
    """Where heartbeats go; an attempt has one while it runs."""

    @property
    def over(self) -> bool:
        """Whether the attempt has ended for the worker."""

    @property
    def cancelled(self) -> bool:
        """Whether that is because its run was cancelled."""

    def beat(self) -> None:
        """Report that the attempt lives. Safe to call from any thread."""


class _NoPulse:
    """For contexts that no worker made, as in an agent's own tests."""

    over = False
    cancelled = False

    def beat(self) -> None:
        """Report to nobody."""


_NO_PULSE: Final = _NoPulse()
_SENT: Final = Sent()


@dataclass(frozen=True)
class AgentContext:
    """One attempt, as its agent sees it.

    Annotate a parameter of the agent with this class to be given it. Only the first three fields are needed to make
    one by hand, to call an agent in a test.
    """

    agent_name: str
    run_id: UUID
    step_id: str
    task_id: UUID | None = None  # random for each attempt
    attempt: int = 1  # counted from 1
    parent_step_id: str | None = None  # the block, for a branch
    branch_name: str | None = None
    worker_id: str = "local"
    pulse: Pulse = field(default=_NO_PULSE, repr=False, compare=False)

    @cached_property
    def logger(self) -> FilteringBoundLogger:
        """A structlog logger that carries this attempt's ids into every line."""
        names = ("agent_name", "run_id", "step_id", "parent_step_id", "branch_name", "attempt", "task_id", "worker_id")
        fields = {name: getattr(self, name) for name in names}
        logger: FilteringBoundLogger = structlog.get_logger("agent_worker.agent")
        return logger.bind(**{name: _plain(value) for name, value in fields.items() if value is not None})

    @property
    def over(self) -> bool:
        """Whether the attempt has ended for the worker: what the agent still does is lost.

        It ends by a timeout, by the cancellation of its run, or with the worker. A thread cannot be killed, so a sync
        agent that works long should look at this and return.
        """
        return self.pulse.over

    @property
    def cancelled(self) -> bool:
        """Whether it has ended because its run was cancelled. Then it is `over` too, and the task does not come again.

        An async agent that catches a CancelledError learns here whether that was why.
        """
        return self.pulse.cancelled

    def heartbeat(self) -> Sent:
        """Report that the attempt lives, at most once a second however often it is called.

        Works in both kinds of agents: ``await context.heartbeat()`` in an async one, ``context.heartbeat()`` in a
        sync one. It never waits for the broker. The worker sends heartbeats of its own too, so an agent needs this
        only to be seen more often.
        """
        self.pulse.beat()
        return _SENT


def _plain(value: object) -> object:
    return str(value) if isinstance(value, UUID) else value
