"""Runs, workflows and agents as tables and trees, for people."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from messaging.port import QueueDepth
from messaging.topology import agent_queue
from orchestrator.cli.limits import limit_words
from orchestrator.cli.progress import STYLES, branch_of
from orchestrator.cli.terminal import harmless
from orchestrator.cli.waiting import WaitingFor, words
from orchestrator.engine.agent_limit import AgentLimit
from orchestrator.storage.agents import AgentActivity, BusyWorker
from orchestrator.storage.definitions import RegisteredWorkflow
from orchestrator.storage.queries import AttemptView, ChildView, RunDetails, RunSummary, StepView
from schemas.display import cut
from schemas.messages import RunEvent, StepEvent
from schemas.statuses import StepStatus

SHOWN_BRANCHES: Final = 50  # of a block; of a larger one those that did not simply complete
SHOWN_WORKERS: Final = 5  # of an agent, the busiest

_console: Final = Console(highlight=False)
if not _console.is_terminal:
    _console.width = 10_000  # a file or another program has no margin at which ids should be cut


def runs_table(runs: Sequence[RunSummary]) -> None:
    """Print a line for each run, with a column for labels where one of them has any."""
    if not runs:
        _console.print("no runs")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True, min_width=36)  # whole, so that it can be copied
    labelled, below = any(run.labels for run in runs), any(run.parent_run_id is not None for run in runs)
    others = [*(["labels"] if labelled else []), *(["belongs to"] if below else [])]
    for title in ("workflow", "status", "requested (UTC)", "duration", *others):
        table.add_column(title, overflow="fold")
    for run in runs:
        table.add_row(
            str(run.run_id),
            escape(run.workflow_id),
            _styled(run.status.value),
            f"{run.created_at:%Y-%m-%d %H:%M:%S}",
            _duration(run.started_at, run.finished_at),
            *([_labels(run.labels)] if labelled else []),
            *([str(run.parent_run_id or "")] if below else []),
        )
    _console.print(table)


def workflows_table(workflows: Sequence[RegisteredWorkflow]) -> None:
    """Print a line for each registered workflow."""
    if not workflows:
        _console.print("no workflows")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("workflow", "version", "registered (UTC)"):
        table.add_column(title, overflow="fold")
    for workflow in workflows:
        registered = f"{workflow.registered_at:%Y-%m-%d %H:%M:%S}"
        table.add_row(harmless(workflow.workflow_id), harmless(workflow.version), registered)
    _console.print(table)


def agents_table(agents: Sequence[AgentActivity], depths: Mapping[str, QueueDepth | None]) -> None:
    """Print a line for each agent, with its queue as far as *depths* tells; where it tells nothing, without queues.

    Limits have columns where one of the agents has one.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("agent", overflow="fold")
    if depths:
        table.add_column("queue", overflow="fold")
        _add_counts(table, "ready", "consumers")
    limited = any(agent.limit is not None or agent.waiting for agent in agents)
    if limited:
        table.add_column("limit", overflow="fold")
        _add_counts(table, "waiting")
    _add_counts(table, StepStatus.QUEUED, StepStatus.RUNNING, StepStatus.PENDING)
    table.add_column("workers", overflow="fold")
    for agent in agents:
        table.add_row(
            harmless(agent.agent_name),
            *(_queue(agent.agent_name, depths) if depths else ()),
            *((_limit(agent.limit), str(agent.waiting)) if limited else ()),
            *(str(number) for number in (agent.queued, agent.running, agent.pending)),
            _workers(agent.workers),
        )
    _console.print(table)


def _add_counts(table: Table, *titles: str) -> None:
    for title in titles:
        table.add_column(title, no_wrap=True, justify="right")


def run_tree(details: RunDetails, waiting: Mapping[str, WaitingFor], *, all_branches: bool) -> None:
    """Print a run with the tree of its steps; *waiting* says by step id what the unfinished ones wait for."""
    summary = details.summary
    duration = _duration(summary.started_at, summary.finished_at)
    _console.print(
        f"run {summary.run_id}  {_styled(summary.status.value)}  {duration}\n"
        f"workflow {escape(summary.workflow_id)} {escape(summary.workflow_version)}, "
        f"requested {summary.created_at:%Y-%m-%d %H:%M:%S} UTC"
    )
    if summary.retry_of is not None:
        _console.print(f"retry of {summary.retry_of}")
    if summary.retried_as:
        _console.print(f"retried as {', '.join(map(str, summary.retried_as))}")
    if summary.parent_run_id is not None:
        above = escape(summary.parent_step_id or "")
        _console.print(f"carries out step {above} of run {summary.parent_run_id}")
    if summary.trace_id is not None:
        _console.print(f"trace {summary.trace_id}")
    if details.error is not None:
        _console.print(f"[red]{escape(details.error.message)}[/red] \\[{details.error.code}]")
    tree = Tree("", hide_root=True)
    branches = _by_block(details.steps)
    for step in details.steps:
        if step.parent_step_id is None:
            _add_step(tree, step, branches, waiting, all_branches=all_branches)
    _console.print(tree)  # not soft_wrap: a tree would be cut off at the margin


def events_of(details: RunDetails) -> list[RunEvent]:
    """Return what is stored of a run as events, for whoever begins to watch in the middle."""
    run_id = details.summary.run_id
    return [RunEvent(run_id=run_id, events=[event]) for step in details.steps for event in _events(run_id, step)]


def _events(run_id: UUID, step: StepView) -> Iterable[StepEvent]:
    times = [(StepStatus.RUNNING, step.started_at), (step.status, step.finished_at)]
    known = [(status, at) for status, at in times if at is not None]
    for status, at in known or [(step.status, step.queued_at or step.created_at)]:
        yield StepEvent(
            step_id=step.step_id,
            parent_step_id=step.parent_step_id,
            branch_name=step.branch_name,
            status=status,
            attempt=step.attempt,
            at=at,
            error=step.error if status.is_final else None,
        )


def _by_block(steps: Sequence[StepView]) -> dict[str, list[StepView]]:
    branches: dict[str, list[StepView]] = {}
    for step in steps:
        if step.parent_step_id is not None:
            branches.setdefault(step.parent_step_id, []).append(step)
    return branches


def _add_branches(
    node: Tree,
    branches: Sequence[StepView],
    by_block: Mapping[str, Sequence[StepView]],
    waiting: Mapping[str, WaitingFor],
    *,
    all_branches: bool,
) -> None:
    shown = branches
    if len(branches) > SHOWN_BRANCHES and not all_branches:
        plain = {StepStatus.COMPLETED, StepStatus.PENDING}
        shown = [branch for branch in branches if branch.status not in plain][:SHOWN_BRANCHES]
    for branch in shown:
        _add_step(node, branch, by_block, waiting, all_branches=all_branches)
    if len(shown) < len(branches):
        node.add(f"[dim]… and {len(branches) - len(shown)} more branches (--all shows them)[/dim]")


def _add_step(
    node: Tree,
    step: StepView,
    by_block: Mapping[str, Sequence[StepView]],
    waiting: Mapping[str, WaitingFor],
    *,
    all_branches: bool,
) -> None:
    line = node.add(_line(step, waiting))
    for earlier in step.earlier_attempts:
        tried = line.add(_earlier_line(earlier))
        if earlier.child is not None:
            tried.add(_child_line(earlier.child))
    if step.child is not None:
        line.add(_child_line(step.child))
    _add_branches(line, by_block.get(step.step_id, ()), by_block, waiting, all_branches=all_branches)


def _earlier_line(earlier: AttemptView) -> str:
    parts = [f"attempt {earlier.attempt}", _duration(earlier.started_at, earlier.finished_at)]
    if earlier.worker_id is not None:
        parts.append(f"on {escape(earlier.worker_id)}")
    parts.append(f"{escape(earlier.error.message)} \\[{earlier.error.code}]")
    return "[dim]" + "  ".join(part for part in parts if part) + "[/dim]"


def _child_line(child: ChildView) -> str:
    return f"run {child.run_id}  {_styled(child.status.value)}"


def _line(step: StepView, waiting: Mapping[str, WaitingFor]) -> str:
    branch = branch_of(step.step_id, step.branch_name)
    within = f"{escape(branch)} / " if branch is not None else ""
    parts = [f"{within}[bold]{escape(step.step_id)}[/bold]", _styled(step.status.value)]
    duration = _duration(step.started_at, step.finished_at)
    if duration:
        parts.append(duration)
    if step.branches_total is not None:
        ended = step.branches_total - (step.branches_open or 0)
        limit = f", at most {step.max_parallelism} at once" if step.max_parallelism is not None else ""
        what = "iterations" if step.join_policy is None else "branches"
        parts.append(f"{ended} of {step.branches_total} {what} ended{limit}")
    if step.agent_name is not None:
        parts.append(f"[dim]{escape(step.agent_name)}[/dim]")
    if step.sub_workflow_id is not None:
        version = f" {harmless(step.sub_workflow_version)}" if step.sub_workflow_version is not None else ""
        parts.append(f"[dim]workflow {harmless(step.sub_workflow_id)}{version}[/dim]")
    if step.worker_id is not None and step.status.is_final:
        parts.append(f"[dim]on {escape(step.worker_id)}[/dim]")
    if step.attempt > 1:
        parts.append(f"attempt {step.attempt}")
    if (awaited := waiting.get(step.step_id)) is not None and step.branches_total is None:
        parts.append(f"[yellow]waits for {escape(words(awaited))}[/yellow]")
    if step.error is not None:
        parts.append(f"[red]{escape(step.error.message)}[/red] \\[{step.error.code}]")
    return "  ".join(parts)


def _queue(agent_name: str, depths: Mapping[str, QueueDepth | None]) -> tuple[str, str, str]:
    """Return the queue's name, its ready tasks and its consumers, or why there are none to show."""
    if agent_name not in depths:
        return "not asked", "", ""
    depth = depths[agent_name]
    if depth is None:
        return "no queue", "", ""
    return harmless(agent_queue(agent_name).name), str(depth.ready), str(depth.consumers)


def _limit(limit: AgentLimit | None) -> str:
    return limit_words(limit) if limit is not None else "none"


def _workers(workers: Sequence[BusyWorker]) -> str:
    shown = [f"{harmless(worker.worker_id)} ({worker.running})" for worker in workers[:SHOWN_WORKERS]]
    more = len(workers) - len(shown)
    return ", ".join([*shown, *([f"… and {more} more"] if more else [])])


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(harmless(cut(" ".join(f"{key}={value}".split()))) for key, value in labels.items())


def _styled(status: str) -> str:
    style = STYLES[StepStatus(status)]
    return f"[{style}]{status}[/{style}]"


def _duration(started: datetime | None, finished: datetime | None) -> str:
    if started is None:
        return ""
    seconds = max(((finished or datetime.now(UTC)) - started).total_seconds(), 0)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"
