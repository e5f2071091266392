"""Documents and bodies that the tests of the contract start from."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from schemas.errors import Problem
from schemas.validation import validate_workflow

RUN = "6f1f6a52-6d0f-4d0a-9f0e-1c8d3b1f2a10"
TASK = "0b8a7c1e-52a4-4f5c-8c0d-9d3b6a4e7f21"

SAMPLE: dict[str, Any] = {
    "name": "Parallel Execution Example",
    "version": "1.0",
    "start_step": "block",
    "steps": {
        "block": {
            "type": "parallel",
            "parallel_steps": ["step-a", "step-b", "step-c"],
            "max_parallelism": 2,
            "next_step": "final-step",
            "on_failure": "report",
        },
        "step-a": {"agent_name": "research", "input_mapping": {"topic": "${workflow.input.topic}", "depth": 3}},
        "step-b": {"type": "agent", "agent_name": "research", "next_step": None, "timeout_seconds": 30},
        "step-c": {"id": "step-c", "agent_name": "review", "description": "a third opinion"},
        "final-step": {
            "agent_name": "write",
            "input_mapping": {"a": "${step-a.output.result}", "all": "${block.output}"},
        },
        "report": {"agent_name": "write", "input_mapping": {"b": "${step-b.error}", "block": "${block.error.message}"}},
    },
}

BODIES: dict[str, dict[str, Any]] = {
    "RunRequest": {
        "version": 1,
        "run_id": RUN,
        "workflow": SAMPLE,
        "input": {"topic": "otters"},
        "labels": {"team": "blue"},
    },
    "RunResult": {"version": 1, "run_id": RUN, "status": "COMPLETED", "output": {"text": "done"}, "error": None},
    "AgentTask": {
        "version": 1,
        "task_id": TASK,
        "run_id": RUN,
        "step_id": "step-a",
        "parent_step_id": "block",
        "branch_name": "step-a",
        "agent_name": "research",
        "attempt": 1,
        "input": {"topic": "otters"},
        "timeout_seconds": 30,
    },
    "AgentResult": {
        "version": 1,
        "task_id": TASK,
        "run_id": RUN,
        "status": "FAILED",
        "error": {"type": "ValueError", "message": "no such topic", "retryable": False, "details": {"topic": "x"}},
        "worker_id": "worker-1",
        "started_at": "2026-01-31T12:00:00+00:00",
        "finished_at": "2026-01-31T12:00:01.500000+00:00",
    },
    "CancelRun": {"version": 1, "run_id": RUN, "reason": "no longer needed"},
    "RetryRun": {"version": 1, "run_id": RUN, "new_run_id": TASK},
    "RunCancelled": {"version": 1, "run_id": RUN},
    "BranchesCancelled": {"version": 1, "run_id": RUN, "block_id": "block"},
    "RunEvent": {
        "version": 1,
        "run_id": RUN,
        "events": [
            {
                "step_id": "step-a",
                "parent_step_id": "block",
                "branch_name": "step-a",
                "status": "FAILED",
                "attempt": 2,
                "at": "2026-01-31T12:00:01+00:00",
                "error": {"code": "agent_error", "message": "no such topic"},
            }
        ],
    },
}


@pytest.fixture
def workflow() -> dict[str, Any]:
    """A valid document with a block of three branches, a step behind it and a failure handler."""
    return deepcopy(SAMPLE)


@pytest.fixture
def bodies() -> dict[str, dict[str, Any]]:
    """A valid body of every message."""
    return deepcopy(BODIES)


@pytest.fixture
def found() -> Callable[[object], list[tuple[str, str, str | None]]]:
    """Validate a document and return place, code and suggestion of each problem."""

    def find(document: object) -> list[tuple[str, str, str | None]]:
        return [_facts(problem) for problem in validate_workflow(document)]

    return find


def _facts(problem: Problem) -> tuple[str, str, str | None]:
    return (problem.place, problem.code, problem.suggestion)
