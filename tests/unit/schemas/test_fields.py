"""The README lists every field of a workflow document with its default."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from schemas.workflow import (
    AgentStep,
    Condition,
    ConditionalStep,
    ForkBranch,
    ForkJoinConfig,
    ForkJoinStep,
    LoopConfig,
    LoopStep,
    ParallelStep,
    Retry,
    RetryStrategy,
    SubWorkflowStep,
    Workflow,
)

README = (Path(__file__).resolve().parents[3] / "schemas/README.md").read_text(encoding="utf-8")
FIELDS = README.partition("## Fields")[2].partition("\n## ")[0]


STEPS = [AgentStep, SubWorkflowStep, ParallelStep, ForkJoinStep, LoopStep, ConditionalStep, Condition]


@pytest.mark.parametrize("part", [*STEPS, ForkJoinConfig, ForkBranch, LoopConfig, Retry, RetryStrategy])
def test_each_field_of_a_step_is_in_the_readme(part: Any) -> None:
    missing = [field.name for field in dataclasses.fields(part) if f"`{field.name}`" not in FIELDS]
    assert missing == []


def test_each_field_of_a_workflow_is_in_the_readme() -> None:
    assert [name for name in Workflow.model_fields if f"`{name}`" not in FIELDS] == []


@pytest.mark.parametrize("part", [Retry, RetryStrategy])
def test_the_defaults_are_those_of_the_readme(part: Any) -> None:
    section = FIELDS.partition("Of `retry_strategy`")[2 if part is RetryStrategy else 0].partition("Of `retry`")
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", section[0] if part is RetryStrategy else section[2], re.M))
    for field in dataclasses.fields(part):
        given = field.default
        value = given.get_default(call_default_factory=True) if isinstance(given, FieldInfo) else given
        assert json.loads(rows[field.name].strip("`")) == value, field.name
