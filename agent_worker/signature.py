"""How a function takes its input: read once, when the agent is registered, so that no task meets a surprise."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import TypeAdapter

from agent_worker.context import AgentContext
from agent_worker.errors import AgentInvalid
from schemas.codec import dump_json

_RIGHT = "an agent takes its input and, if it wants one, a parameter annotated AgentContext"
_SPREAD = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


@dataclass(frozen=True, slots=True)
class AgentSignature:
    """Which parameters an agent function has."""

    input_name: str
    read_input: Callable[[Any], Any] | None  # raises ValidationError; None: the input is passed on as it is
    context_name: str | None
    positional: tuple[str, ...]  # the parameters that cannot be passed by name, in order

    def arguments(self, value: Any, context: AgentContext | None) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and the named arguments for one call."""
        named = {self.input_name: value}
        if self.context_name is not None:
            named[self.context_name] = context
        return [named.pop(name) for name in self.positional], named


def read_signature(function: Callable[..., Any]) -> AgentSignature:
    """Return how *function* takes its input and its context.

    Raises:
        AgentInvalid: It cannot be an agent; says why and what would be right.
    """
    _require_function(function)
    parameters = [p for p in _parameters(function) if p.kind not in _SPREAD]
    types = {parameter.name: _annotation(function, parameter) for parameter in parameters}
    contexts = [p for p in parameters if _is_context(types[p.name])]
    inputs = [p for p in parameters if p not in contexts]
    _require_one_input(inputs, contexts)
    used = inputs[:1] + contexts
    return AgentSignature(
        input_name=inputs[0].name,
        read_input=_input_reader(inputs[0].name, types[inputs[0].name]),
        context_name=contexts[0].name if contexts else None,
        positional=tuple(p.name for p in parameters if p in used and p.kind is p.POSITIONAL_ONLY),
    )


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling *function* gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _require_function(function: Callable[..., Any]) -> None:
    if inspect.isclass(function) or not callable(function):
        raise AgentInvalid(f"{function!r} is not a function; decorate a function, sync or async")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise AgentInvalid("a generator cannot be an agent; collect what it yields and return it as one value")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise AgentInvalid(f"the signature of {function!r} cannot be read; wrap it in a function: {_RIGHT}") from error


def _require_one_input(inputs: list[inspect.Parameter], contexts: list[inspect.Parameter]) -> None:
    if not inputs:
        raise AgentInvalid(f"there is no parameter for the input; {_RIGHT}, as in `def agent(input: dict)`")
    if len(contexts) > 1:
        names = " and ".join(f"`{p.name}`" for p in contexts)
        raise AgentInvalid(f"{names} are both annotated AgentContext; one is enough")
    unfilled = [f"`{p.name}`" for p in inputs[1:] if p.default is p.empty]
    if unfilled:
        raise AgentInvalid(
            f"nothing would fill the parameter {', '.join(unfilled)}; {_RIGHT}. "
            "Put several values into one dict or one pydantic model"
        )


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return the type that the parameter is annotated with; ``from __future__ import annotations`` makes it text."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, _names_seen_by(function))  # noqa: S307 - the module's own source, as typing does it
    except Exception as error:
        raise AgentInvalid(
            f"the annotation of `{parameter.name}`, {annotation!r}, cannot be resolved ({error}); "
            "import the type at the top of the module, not under TYPE_CHECKING or inside a function"
        ) from error


def _names_seen_by(function: Callable[..., Any]) -> dict[str, Any]:
    inner = inspect.unwrap(function)
    inner = inner if hasattr(inner, "__globals__") else getattr(type(inner), "__call__", inner)  # noqa: B004
    enclosed = inspect.getclosurevars(inner).nonlocals if inspect.isfunction(inner) else {}
    return {**getattr(inner, "__globals__", {}), **enclosed}


def _is_context(annotation: Any) -> bool:
    if get_origin(annotation) in (Annotated, Union, UnionType):  # Annotated[AgentContext, ...], AgentContext | None
        return any(_is_context(part) for part in get_args(annotation))
    return inspect.isclass(annotation) and issubclass(annotation, AgentContext)


def _input_reader(name: str, annotation: Any) -> Callable[[Any], Any] | None:
    if annotation in (Any, object):
        return None
    adapter = _type_adapter(name, annotation)
    if annotation in (dict, dict[str, Any]):  # what JSON objects are already
        return lambda value: value if type(value) is dict else adapter.validate_python(value)
    # As JSON, not as Python values: a strict model must still read a UUID or a time from a string.
    return lambda value: adapter.validate_json(dump_json(value))


def _type_adapter(name: str, annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except Exception as error:  # pydantic raises many kinds here, for whatever it finds inside the type
        raise AgentInvalid(
            f"the input cannot be read into `{name}: {annotation!r}` ({_first_line(error)}); "
            "annotate it with dict, Any or a pydantic model"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
