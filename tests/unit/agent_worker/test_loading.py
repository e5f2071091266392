import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_worker.errors import NoAgents, RegistryNotFound
from agent_worker.loading import load_registry

MODULE = """
from agent_worker import AgentRegistry

class Holder:
    inner = AgentRegistry()

agents = AgentRegistry()
empty = AgentRegistry()
other = 5

@agents.agent("research")
@Holder.inner.agent("write")
def research(input): ...
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes modules into the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    write("my_agents", MODULE)
    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.usefixtures("module")
def test_a_registry_is_found_in_the_working_directory() -> None:
    assert load_registry("my_agents:agents").names == ("research",)
    assert load_registry("my_agents:Holder.inner").names == ("write",)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("my_agents", r'"my_agents" does not name a registry: give MODULE:REGISTRY, for example my_agents:agents'),
        (":agents", "does not name a registry"),
        ("my_agents:", "does not name a registry"),
        ("nowhere:agents", r'there is no module "nowhere" in .*; give MODULE:REGISTRY'),
        ("my_agents.deeper:agents", r'there is no module "my_agents.deeper"'),
        (".my_agents:agents", "is not the full name of a module"),
        ("my_agents:agent", r'"agent" does not exist .*its registries are: my_agents:agents, my_agents:empty'),
        ("my_agents:other", r'"other" is a int, not an AgentRegistry .*its registries are: my_agents:agents'),
        ("json:dumps", "it has no AgentRegistry at all"),
    ],
)
def test_a_target_that_leads_nowhere_is_refused_with_what_would_be_right(target: str, told: str) -> None:
    with pytest.raises(RegistryNotFound, match=told):
        load_registry(target)


@pytest.mark.usefixtures("module")
def test_an_empty_registry_is_refused() -> None:
    with pytest.raises(NoAgents, match=r'register one with `@empty.agent\("name"\)`'):
        load_registry("my_agents:empty")


def test_an_import_that_fails_inside_the_module_is_not_mistaken_for_a_missing_module(
    module: Callable[[str, str], None],
) -> None:
    module("broken", "import a_package_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_registry("broken:agents")
