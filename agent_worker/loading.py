"""From ``module:attribute`` on the command line to a registry."""

import importlib
import os
import sys
from types import ModuleType

from agent_worker.errors import NoAgents, RegistryNotFound
from agent_worker.registry import AgentRegistry

_FORM = "give MODULE:REGISTRY, for example my_agents:agents"


def load_registry(target: str) -> AgentRegistry:
    """Return the registry that *target*, ``module:attribute``, names. The working directory is importable.

    Raises:
        RegistryNotFound: There is no such module or attribute, or it is no registry; says what there is instead.
        NoAgents: The registry is empty.
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise RegistryNotFound(f'"{target}" does not name a registry: {_FORM}')
    registry = _registry(_module(module_name), attribute)
    if not registry.names:
        raise NoAgents(f'the registry "{target}" has no agents; register one with `@{attribute}.agent("name")`')
    return registry


def _module(name: str) -> ModuleType:
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there; something that it imports is not
        raise RegistryNotFound(
            f'there is no module "{error.name}" in {here} or among the installed packages; {_FORM}'
        ) from error
    except (TypeError, ValueError) as error:  # a relative name, such as ".agents"
        raise RegistryNotFound(f'"{name}" is not the full name of a module ({error}); {_FORM}') from error


def _registry(module: ModuleType, attribute: str) -> AgentRegistry:
    missing = object()
    found: object = module
    for part in attribute.split("."):
        found = getattr(found, part, missing)
    if isinstance(found, AgentRegistry):
        return found
    problem = "does not exist" if found is missing else f"is a {type(found).__name__}, not an AgentRegistry"
    raise RegistryNotFound(f'"{attribute}" {problem} in the module "{module.__name__}"; {_what_there_is(module)}')


def _what_there_is(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, AgentRegistry)]
    if not names:
        return "it has no AgentRegistry at all; add `agents = AgentRegistry()`"
    return "its registries are: " + ", ".join(f"{module.__name__}:{name}" for name in names)
