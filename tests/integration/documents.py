"""Workflow documents for tests, written briefly."""

from collections.abc import Mapping, Sequence
from typing import Any

Document = dict[str, Any]


def agent(agent_name: str = "echo", **fields: Any) -> Document:
    """Return an agent step; what is not given keeps its default."""
    return {"type": "agent", "agent_name": agent_name, **fields}


def block(branches: Sequence[str], **fields: Any) -> Document:
    """Return a parallel step."""
    return {"type": "parallel", "parallel_steps": list(branches), **fields}


def loop(*body: str, **config: Any) -> Document:
    """Return a loop step over the items of the run's input; it is sequential unless told otherwise."""
    return {"type": "loop", "loop_config": {"collection": "${workflow.input}", "loop_body": list(body), **config}}


def choice(expression: str, **paths: str) -> Document:
    """Return a conditional step."""
    return {"type": "conditional", "condition": {"expression": expression}, **paths}


def workflow(steps: Mapping[str, Document], **fields: Any) -> Document:
    """Return a document that starts at the first of *steps*."""
    return {"name": "tested", "version": "1.0", "start_step": next(iter(steps)), "steps": dict(steps), **fields}


def one_block(branches: int, *, agent_name: str = "echo", **fields: Any) -> Document:
    """Return a document of one block, called ``block``; its branches ``b0``, ``b1``, ... get their number as input."""
    names = [f"b{number}" for number in range(branches)]
    steps = {name: agent(agent_name, input_mapping={"n": number}) for number, name in enumerate(names)}
    return workflow({"block": block(names, **fields), **steps})
