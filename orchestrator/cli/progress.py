"""Live progress of a run on stderr: a picture that changes on a terminal, a line for each change elsewhere."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from schemas.messages import RunEvent, StepEvent
from schemas.statuses import StepStatus

Show = Callable[[Iterable[RunEvent]], None]

STYLES: Final = {
    StepStatus.PENDING: "dim",
    StepStatus.QUEUED: "cyan",
    StepStatus.RUNNING: "yellow",
    StepStatus.COMPLETED: "green",
    StepStatus.FAILED: "bold red",
    StepStatus.CANCELLED: "magenta",
    StepStatus.SKIPPED: "dim",
}
SHOWN_BRANCHES: Final = 20  # of a block; of a larger one, those that run or failed


@dataclass(slots=True)
class Seen:
    """The last that was heard of a step."""

    event: StepEvent
    started: datetime | None = None


@dataclass(slots=True)
class Picture:
    """What the events so far add up to."""

    steps: dict[str, Seen] = field(default_factory=dict)
    branches: dict[str, dict[str, Seen]] = field(default_factory=dict)

    def add(self, event: StepEvent) -> None:
        """Take an event in. One that is older than what is known is left out: replicas' events may overtake."""
        if event.step_id is None:
            return
        known = self.steps.get(event.step_id)
        if known is not None and (known.event.status.is_final or event.at < known.event.at):
            return
        started = event.at if event.status is StepStatus.RUNNING else known.started if known is not None else None
        seen = Seen(event, started)
        self.steps[event.step_id] = seen
        if event.parent_step_id is not None:
            self.branches.setdefault(event.parent_step_id, {})[event.step_id] = seen


@contextmanager
def progress(console: Console) -> Iterator[Show]:
    """Yield what takes events in and shows them, in the way that suits where *console* goes."""
    if not console.is_terminal:
        yield _write_lines
        return
    picture = Picture()

    def show(messages: Iterable[RunEvent]) -> None:
        for message in messages:
            for event in message.events:
                picture.add(event)

    with Live(console=console, refresh_per_second=8, get_renderable=lambda: _draw(picture)):
        yield show


def event_line(event: StepEvent) -> str:
    """Return one status change as a line of text."""
    what = "run" if event.step_id is None else event.step_id
    if event.parent_step_id is not None:
        what = f"{event.parent_step_id} / {what}"
    error = f"  {event.error.code}: {event.error.message}" if event.error is not None else ""
    return f"{event.at:%H:%M:%S.%f}"[:-3] + f"  {event.status:<9}  {what}{error}"


def _write_lines(messages: Iterable[RunEvent]) -> None:
    for message in messages:
        for event in message.events:
            typer.echo(event_line(event), err=True)


def _draw(picture: Picture) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for step_id, seen in list(picture.steps.items()):
        if seen.event.parent_step_id is not None:
            continue
        branches = picture.branches.get(step_id)
        table.add_row(step_id, _status(seen.event), _bar(branches) if branches else _duration(seen))
        if branches:
            _add_branches(table, branches)
    return table


def _add_branches(table: Table, branches: dict[str, Seen]) -> None:
    shown = list(branches.items())
    if len(shown) > SHOWN_BRANCHES:
        telling = {StepStatus.RUNNING, StepStatus.FAILED, StepStatus.QUEUED}
        shown = [(key, seen) for key, seen in shown if seen.event.status in telling][:SHOWN_BRANCHES]
    for step_id, seen in shown:
        table.add_row(f"  {step_id}", _status(seen.event), _duration(seen))


def _status(event: StepEvent) -> Text:
    text = Text(event.status, style=STYLES[event.status])
    if event.error is not None:
        text.append(f"  {event.error.message[:80]}", style="red")
    return text


def _bar(branches: dict[str, Seen]) -> RenderableType:
    ended = sum(seen.event.status.is_final for seen in branches.values())
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=len(branches), completed=ended, width=30), f"{ended}/{len(branches)}")
    return grid


def _duration(seen: Seen) -> str:
    if seen.started is None:
        return ""
    end = seen.event.at if seen.event.status.is_final else datetime.now(seen.started.tzinfo)
    return f"{max((end - seen.started).total_seconds(), 0):.1f} s"
