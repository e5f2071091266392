"""Runs, workflows and agents as tables: made to be read, and to be copied from."""

import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from rich.console import Console

from messaging.port import QueueDepth
from orchestrator.cli import tables
from orchestrator.cli.waiting import Slot
from orchestrator.engine.agent_limit import AgentLimit
from orchestrator.storage.agents import AgentActivity, BusyWorker
from orchestrator.storage.definitions import RegisteredWorkflow
from orchestrator.storage.queries import AttemptView, ChildView, RunDetails, RunSummary, StepView
from schemas.messages import ErrorInfo
from schemas.statuses import RunStatus, StepStatus

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    """Where the tables go: a terminal that is rather narrow."""
    console = Console(file=io.StringIO(), width=60, highlight=False)
    monkeypatch.setattr(tables, "_console", console)
    return console


def summary(status: RunStatus = RunStatus.COMPLETED, **labels: str) -> RunSummary:
    return RunSummary(
        run_id=uuid4(),
        workflow_id="a workflow with quite a long name for a table",
        workflow_version="1.0",
        status=status,
        labels=labels,
        created_at=NOW,
        started_at=NOW,
        finished_at=NOW,
    )


def step(step_id: str, status: StepStatus, error: str | None = None, parent: str | None = None) -> StepView:
    return StepView(
        step_id=step_id,
        parent_step_id=parent,
        branch_name=step_id if parent is not None else None,
        status=status,
        agent_name="echo",
        attempt=1,
        worker_id=None,
        max_parallelism=None,
        branches_total=None,
        branches_open=None,
        branches_failed=None,
        branches_dispatched=None,
        created_at=NOW,
        queued_at=NOW,
        started_at=NOW,
        finished_at=NOW,
        error=ErrorInfo(code="agent_error", message=error) if error is not None else None,
        unroutable_since=None,
    )


def activity(agent_name: str, **fields: Any) -> AgentActivity:
    return AgentActivity(**{"agent_name": agent_name, "queued": 0, "running": 0, "pending": 0, "workers": []} | fields)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_ids_are_whole_however_narrow_the_terminal_is(console: Console) -> None:
    runs = [summary(), summary()]
    tables.runs_table(runs)
    assert [run.run_id for run in runs] == [
        UUID(line[:36]) for line in written(console).splitlines() if line[:8].strip() and not line.startswith("run ")
    ]


def test_without_runs_it_says_so(console: Console) -> None:
    tables.runs_table([])
    assert written(console) == "no runs\n"


def test_a_run_is_shown_with_those_that_it_retries_and_that_retry_it(console: Console) -> None:
    first, second, third = uuid4(), uuid4(), uuid4()
    run = replace(summary(RunStatus.FAILED), retry_of=first, retried_as=[second, third])
    tables.run_tree(RunDetails(run, None, None, None, []), {}, all_branches=False)
    shown = " ".join(written(console).split())
    assert f"UTC retry of {first} retried as {second}, {third}" in shown


def test_a_run_that_is_traced_is_shown_with_its_trace(console: Console) -> None:
    run = replace(summary(), trace_id="0af7651916cd43dd8448eb211c80319c")
    tables.run_tree(RunDetails(run, None, None, None, []), {}, all_branches=False)
    assert "trace 0af7651916cd43dd8448eb211c80319c" in written(console).splitlines()


def test_labels_have_a_column_where_any_run_has_some(console: Console) -> None:
    console.width = 200
    tables.runs_table([summary()])
    assert "labels" not in written(console)

    tables.runs_table([summary(), summary(team="search", env="live")])
    header, without, labelled = written(console).splitlines()[-3:]
    assert header.rstrip().endswith("duration  labels")
    assert without.rstrip().endswith("0 ms")
    assert labelled.rstrip().endswith("0 ms      team=search, env=live")


def test_labels_are_one_short_line_each_and_tell_the_terminal_nothing(console: Console) -> None:
    console.width = 300
    tables.runs_table([summary(a="x\n[red]y\x1b[31m", b="z" * 500)])
    [_, line] = written(console).splitlines()
    assert line.rstrip().endswith(f"a=x [red]y\\x1b[31m, b={'z' * 98}...")


def test_registered_workflows_have_a_line_each(console: Console) -> None:
    tables.workflows_table([RegisteredWorkflow("[b]", "2.0", NOW), RegisteredWorkflow("[b]", "1\x1b", NOW)])
    header, *lines = written(console).splitlines()
    assert header.split() == ["workflow", "version", "registered", "(UTC)"]
    assert [line.split() for line in lines] == [
        ["[b]", "2.0", "2026-01-02", "03:04:05"], ["[b]", "1\\x1b", "2026-01-02", "03:04:05"]
    ]  # fmt: skip


def test_without_registered_workflows_it_says_so(console: Console) -> None:
    tables.workflows_table([])
    assert written(console) == "no workflows\n"


def test_agents_have_a_line_each_with_queue_attempts_and_workers(console: Console) -> None:
    console.width = 200
    busy = activity("nap", queued=1, running=3, pending=4, workers=[BusyWorker("w-1", 2), BusyWorker("w-2", 1)])
    tables.agents_table([busy, activity("nobody"), activity("late")], {"nap": QueueDepth(5, 6), "nobody": None})
    lines = [re.split(" {2,}", line.strip()) for line in written(console).splitlines()]
    assert lines == [
        ["agent", "queue", "ready", "consumers", "QUEUED", "RUNNING", "PENDING", "workers"],
        ["nap", "agent.nap", "5", "6", "1", "3", "4", "w-1 (2), w-2 (1)"],
        ["nobody", "no queue", "0", "0", "0"],
        ["late", "not asked", "0", "0", "0"],
    ]


def test_where_an_agent_is_limited_there_are_columns_for_it(console: Console) -> None:
    console.width = 100
    tables.agents_table([activity("nap", limit=AgentLimit(3, 10.0), waiting=7, running=3), activity("free")], {})

    assert [re.split(" {2,}", line.strip()) for line in written(console).splitlines()] == [
        ["agent", "limit", "waiting", "QUEUED", "RUNNING", "PENDING", "workers"],
        ["nap", "3 at once, 10/s", "7", "0", "3", "0"],
        ["free", "none", "0", "0", "0", "0"],
    ]


def test_where_no_queue_is_known_agents_have_no_columns_for_it(console: Console) -> None:
    tables.agents_table([activity("nap", running=1, workers=[BusyWorker("w-1", 1)])], {})
    lines = [re.split(" {2,}", line.strip()) for line in written(console).splitlines()]
    assert lines == [["agent", "QUEUED", "RUNNING", "PENDING", "workers"], ["nap", "0", "1", "0", "w-1 (1)"]]


def test_of_many_workers_the_first_are_named_and_none_speaks_to_the_terminal(console: Console) -> None:
    console.width = 300
    workers = [BusyWorker(f"[b]{number}\x1b", 1) for number in range(tables.SHOWN_WORKERS + 2)]
    tables.agents_table([activity("nap", workers=workers)], {})
    [_, line] = written(console).splitlines()
    assert line.rstrip().endswith("[b]4\\x1b (1), … and 2 more")


def test_branches_stand_below_their_block_and_text_of_agents_is_no_markup(console: Console) -> None:
    steps = [
        step("block", StepStatus.FAILED, "1 of 1 branches failed"),
        step("b", StepStatus.FAILED, "[red]no[/red]", "block"),
    ]
    tables.run_tree(RunDetails(summary(RunStatus.FAILED), None, None, None, steps), {}, all_branches=False)
    lines = [line for line in written(console).splitlines() if "FAILED" in line][1:]
    assert lines[0].startswith("block  FAILED")
    assert lines[1].startswith("└── b  FAILED")
    assert lines[1].endswith("[red]no[/red] [agent_error]")


def test_an_unfinished_step_says_what_it_waits_for(console: Console) -> None:
    steps = [step("a", StepStatus.PENDING, parent="block"), step("block", StepStatus.RUNNING)]
    details = RunDetails(summary(RunStatus.RUNNING), None, None, None, steps)
    tables.run_tree(details, {"a": Slot(taken=2, limit=2)}, all_branches=False)
    assert "waits for a slot of its gate (2 of 2 taken)" in " ".join(written(console).split())


def test_of_a_large_block_the_quiet_branches_are_counted_unless_all_are_asked_for(console: Console) -> None:
    branches = [step(f"b{n}", StepStatus.COMPLETED, parent="block") for n in range(tables.SHOWN_BRANCHES + 1)]
    details = RunDetails(summary(), None, None, None, [step("block", StepStatus.COMPLETED), *branches])
    tables.run_tree(details, {}, all_branches=False)
    assert f"and {len(branches)} more branches (--all shows them)" in written(console)
    tables.run_tree(details, {}, all_branches=True)
    assert written(console).count("── b") == len(branches)


def test_a_step_and_the_runs_that_carry_it_out_are_shown_together(console: Console) -> None:
    console.width = 200
    first, second = (ChildView(UUID(int=number), status) for number, status in enumerate(RunStatus, 1) if number < 3)
    earlier = AttemptView(
        attempt=1,
        worker_id=None,
        queued_at=NOW,
        started_at=NOW,
        finished_at=NOW,
        retry_at=NOW,
        error=ErrorInfo(code="sub_workflow_failed", message="no luck"),
        child=first,
    )
    below = {"agent_name": None, "sub_workflow_id": "be[low]", "sub_workflow_version": "2.0", "child": second}
    shown = replace(step("calls", StepStatus.RUNNING), attempt=2, earlier_attempts=[earlier], **below)
    above = replace(summary(), parent_run_id=UUID(int=9), parent_step_id="x[1]")

    tables.run_tree(RunDetails(above, None, None, None, [shown]), {}, all_branches=False)

    lines = [line.strip() for line in written(console).splitlines()]
    assert f"carries out step x[1] of run {UUID(int=9)}" in lines
    assert "workflow be[low] 2.0" in lines[3]
    assert lines[4].startswith("├── attempt 1")
    assert lines[5:7] == [f"│   └── run {first.run_id}  {first.status}", f"└── run {second.run_id}  {second.status}"]


def test_runs_of_sub_workflows_are_listed_with_the_run_that_they_belong_to(console: Console) -> None:
    console.width = 200
    above = summary()
    below = replace(summary(), parent_run_id=above.run_id, parent_step_id="calls")

    tables.runs_table([below, above])

    header, first, second = written(console).splitlines()
    assert header.split()[-2:] == ["belongs", "to"]
    assert first.count(str(above.run_id)) == 1
    assert second.split()[0] == str(above.run_id)
