"""An agent that blocks the event loop of its worker, as an agent's author may do by mistake."""

import time
from pathlib import Path
from typing import Any

from agent_worker import AgentRegistry

agents = AgentRegistry()


@agents.agent("stuck")
async def stuck(input: dict[str, Any]) -> Any:
    """Block until the file that the input names is there."""
    block(Path(input["until"]))  # that is the mistake
    return input


def block(until: Path) -> None:
    while not until.exists():
        time.sleep(0.05)
