"""The example documents: valid, in step with their agents, and giving the outputs that the README promises.

A few lines here stand in for orchestrator and workers: they follow `next_step` and `on_failure` and call the agents.
"""

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import TypeAdapter

from agent_worker import AgentContext, AgentFailed, RetryLater
from examples.agents import agents
from examples.make_many_branches import as_text, many_branches
from schemas.expressions import compile_expression
from schemas.references import Scope, StepOutcome, compile_template
from schemas.statuses import StepStatus
from schemas.validation import parse_workflow, validate_workflow
from schemas.workflow import AgentStep, ConditionalStep, ForkJoinStep, ParallelStep

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
WORKFLOWS = [
    "parallel_workflow_example",
    "failure_handling",
    "many_branches",
    "retries",
    "fork_join",
    "conditional",
    "nested_blocks",
    "time_limits",
    "loop",
    "sub_workflow",
    "document_analysis",
]


def load(name: str) -> Any:
    return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))


class Rehearsal:
    """Carries a workflow out, one step after the other."""

    def __init__(self, document: Any, workflow_input: Any) -> None:
        self._workflow = parse_workflow(document)
        self._input = workflow_input
        self.steps: dict[str, StepOutcome] = {}

    def output(self) -> Any:
        at: str | None = self._workflow.start_step
        behind: str | None = None
        last = None
        while at is not None:
            last = self.steps[at] = self._carry_out(at)
            step = self._workflow.steps[at]
            at = step.next_step if last.status is StepStatus.COMPLETED else step.on_failure
            if isinstance(step, ConditionalStep):
                at, behind = last.output["step"], step.next_step
            elif at is None:
                at, behind = behind, None
        assert last is not None
        assert last.status is StepStatus.COMPLETED, last.error
        return last.output

    def _carry_out(self, step_id: str) -> StepOutcome:
        step = self._workflow.steps[step_id]
        match step:
            case ConditionalStep():
                holds = compile_expression(step.condition.expression).evaluate(Scope(self._input, self.steps))
                taken = step.if_true_step if holds else step.if_false_step
                return StepOutcome(StepStatus.COMPLETED, {"result": holds, "step": taken}, None)
            case ParallelStep():
                return self._block({branch: [branch] for branch in step.parallel_steps}, len(step.parallel_steps))
            case ForkJoinStep(fork_join_config=config):
                lanes = {name: branch.steps for name, branch in config.branches.items()}
                return self._block(lanes, config.n_required or len(lanes))
            case _:
                return self._attempt(step)

    def _block(self, lanes: dict[str, list[str]], needed: int) -> StepOutcome:
        branches = {name: self._lane(lane) for name, lane in lanes.items()}
        errors = {name: outcome.error for name, outcome in branches.items() if outcome.error is not None}
        outputs = {name: outcome.output for name, outcome in branches.items()}
        completed = len(branches) - len(errors)
        return StepOutcome(StepStatus.COMPLETED if completed >= needed else StepStatus.FAILED, outputs, None, errors)

    def _lane(self, lane: list[str]) -> StepOutcome:
        for step_id in lane:
            self.steps[step_id] = last = self._carry_out(step_id)
            if last.status is StepStatus.FAILED:
                break
        return last

    def _attempt(self, step: AgentStep, attempt: int = 1) -> StepOutcome:
        agent = agents.get(step.agent_name)
        assert agent is not None, f"there is no agent {step.agent_name}"
        task = compile_template(step.input_mapping).resolve(Scope(self._input, self.steps))
        first, *others = inspect.signature(agent.function).parameters.values()
        context = [AgentContext(step.agent_name, UUID(int=1), step.id, attempt=attempt) for _ in others]
        try:
            output = agent.function(TypeAdapter(first.annotation).validate_python(task), *context)
            output = asyncio.run(output) if inspect.iscoroutine(output) else output
        except AgentFailed as failure:
            return StepOutcome(StepStatus.FAILED, None, {"code": "agent_error", "message": str(failure)})
        except (RetryLater, ConnectionError):
            return self._attempt(step, attempt + 1)
        return StepOutcome(StepStatus.COMPLETED, json.loads(json.dumps(output)), None)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_each_workflow_is_valid(name: str) -> None:
    assert validate_workflow(load(name)) == []


def test_every_workflow_in_the_directory_is_tested() -> None:
    documents = {path.stem for path in EXAMPLES.glob("*.json") if "steps" in load(path.stem)}
    assert documents == set(WORKFLOWS)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_each_step_names_an_agent_that_there_is(name: str) -> None:
    named = {step["agent_name"] for step in load(name)["steps"].values() if "agent_name" in step}
    assert named <= set(agents.names)


def test_every_agent_is_used_by_some_workflow() -> None:
    steps = [step for name in WORKFLOWS for step in load(name)["steps"].values()]
    assert {step["agent_name"] for step in steps if "agent_name" in step} == set(agents.names)


def test_the_first_example_is_the_block_that_the_specification_shows() -> None:
    document = load("parallel_workflow_example")
    block = document["steps"]["parallel-block-1"]
    assert block == {
        "id": "parallel-block-1",
        "type": "parallel",
        "parallel_steps": ["step-a", "step-b", "step-c"],
        "max_parallelism": 2,
        "next_step": "final-step",
    }
    assert document["start_step"] == "parallel-block-1"


def test_the_first_example_reports_on_its_document() -> None:
    output = Rehearsal(load("parallel_workflow_example"), load("parallel_workflow_input")).output()
    report = output["result"]["report"].splitlines()
    assert report[0] == "# About fork and join"
    assert report[4].startswith("- Keywords: queue (10), branch (7), fork (6), ")
    assert list(output["result"]["aggregated"]) == ["step-a", "step-b", "step-c"]


def test_a_document_that_is_missing_leads_to_a_partial_report() -> None:
    rehearsal = Rehearsal(load("failure_handling"), load("failure_handling_input"))
    output = rehearsal.output()
    assert "full-report" not in rehearsal.steps
    assert output["result"]["complete"] is False
    assert "- documents/not-written-yet.txt: FAILED: there is no document" in output["result"]["report"]
    assert output["result"]["report"].endswith("\n\n2 of 3 documents were read.\n")


def test_the_handler_copes_with_any_document_that_is_missing() -> None:
    for position in range(3):
        documents = ["documents/fork-join.txt", "documents/queues.txt", "documents/queues.txt"]
        documents[position] = "nope.txt"
        output = Rehearsal(load("failure_handling"), {"documents": documents}).output()
        assert "- nope.txt: FAILED: there is no document nope.txt" in output["result"]["report"]


def test_documents_that_are_all_there_lead_to_the_full_report() -> None:
    rehearsal = Rehearsal(load("failure_handling"), {"documents": ["documents/queues.txt"] * 3})
    assert rehearsal.output()["result"]["complete"] is True
    assert "partial-report" not in rehearsal.steps


def test_the_lookups_succeed_in_the_third_attempt() -> None:
    output = Rehearsal(load("retries"), None).output()
    assert {name: branch["result"]["attempt"] for name, branch in output.items()} == {"first": 3, "second": 3}
    assert output["first"]["result"]["count"] > 0


def test_two_hundred_branches_count_the_primes_below_a_million() -> None:
    output = Rehearsal(load("many_branches"), {}).output()
    assert output == {"result": {"primes": 78_498, "below": 1_000_000, "branches": 200}}


def test_the_many_branches_are_what_their_script_writes() -> None:
    assert (EXAMPLES / "many_branches.json").read_text(encoding="utf-8") == as_text(many_branches())
