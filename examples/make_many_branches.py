"""Write many_branches.json: 200 branches, each of which counts the primes among 5,000 numbers, then their sum.

Run it again after a change: `python examples/make_many_branches.py`.
"""

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("many_branches.json")


def many_branches(branches: int = 200, numbers: int = 5_000, max_parallelism: int = 20) -> dict[str, Any]:
    """Return the workflow document; together its branches look at the numbers from 0 to branches * numbers."""
    steps = [_branch(index, numbers) for index in range(branches)]
    block = {
        "id": "count-primes",
        "type": "parallel",
        "parallel_steps": [step["id"] for step in steps],
        "max_parallelism": max_parallelism,
        "next_step": "add-up",
    }
    total = {
        "id": "add-up",
        "type": "agent",
        "agent_name": "add-up",
        "input_mapping": {"parts": "${count-primes.output}"},
    }
    return {
        "workflow_id": "many-branches",
        "name": "Many Branches",
        "version": "1.0",
        "description": f"Counts the primes below {branches * numbers:,}, {max_parallelism} branches at a time.",
        "start_step": block["id"],
        "steps": {step["id"]: step for step in [block, *steps, total]},
    }


def _branch(index: int, numbers: int) -> dict[str, Any]:
    return {
        "id": f"range-{index:03}",
        "type": "agent",
        "agent_name": "primes",
        "input_mapping": {"start": index * numbers, "stop": (index + 1) * numbers},
    }


def as_text(workflow: dict[str, Any]) -> str:
    """Return the document as the file holds it: one step on a line."""
    steps = ",\n".join(f"    {json.dumps(name)}: {json.dumps(step)}" for name, step in workflow["steps"].items())
    head = json.dumps({key: value for key, value in workflow.items() if key != "steps"}, indent=2)
    return head.removesuffix("\n}") + ',\n  "steps": {\n' + steps + "\n  }\n}\n"


if __name__ == "__main__":
    TARGET.write_text(as_text(many_branches()), encoding="utf-8")
    print(f"wrote {TARGET.name}")
