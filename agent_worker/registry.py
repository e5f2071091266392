"""Which agents a worker has, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from agent_worker.errors import AgentInvalid
from agent_worker.signature import AgentSignature, is_async, read_signature
from schemas.names import agent_name_problem

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Agent:
    """A registered function and how to call it."""

    name: str
    function: Callable[..., Any]
    signature: AgentSignature
    is_async: bool  # else it runs in a thread


class AgentRegistry:
    """The agents of one worker.

    ```python
    agents = AgentRegistry()

    @agents.agent("research")
    async def research(input: dict, context: AgentContext) -> dict: ...
    ```
    """

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The registered names, in the order of their registration."""
        return tuple(self._agents)

    def get(self, name: str) -> Agent | None:
        """Return the agent called *name*, or None."""
        return self._agents.get(name)

    def agent(self, name: str) -> Callable[[F], F]:
        """Register the decorated function, sync or async, as the agent *name*; it is returned unchanged.

        Its first parameter is the input. Annotated with a pydantic model (or another type that pydantic reads), it
        is given that; with dict, a JSON object; with Any or nothing, any JSON value. A parameter annotated
        `AgentContext`, wherever it stands, is given the attempt's context. What the function returns, a JSON value
        or a pydantic model, is the output.

        Raises:
            AgentInvalid: The name is taken or not allowed, or the function cannot be an agent.
        """
        self._require_name(name)

        def register(function: F) -> F:
            self._require_free(name)
            self._agents[name] = _agent(name, function)
            return function

        return register

    def _require_name(self, name: str) -> None:
        # @agents.agent without parentheses passes the function itself
        if not isinstance(name, str):
            raise AgentInvalid('an agent needs a name: write `@agents.agent("research")`')
        if (problem := agent_name_problem(name)) is not None:
            raise AgentInvalid(f'"{name}" cannot name an agent: {problem}')
        self._require_free(name)

    def _require_free(self, name: str) -> None:
        if (taken := self._agents.get(name)) is not None:
            raise AgentInvalid(f'the agent "{name}" is registered already, by {_place(taken.function)}; choose another')


def _agent(name: str, function: Callable[..., Any]) -> Agent:
    try:
        return Agent(name, function, read_signature(function), is_async(function))
    except AgentInvalid as error:
        raise AgentInvalid(f'{_place(function)} cannot be the agent "{name}": {error}') from error.__cause__


def _place(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", None)
    return f"{getattr(function, '__module__', '?')}.{name}" if name else repr(function)
