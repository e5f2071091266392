"""Live progress of a run on stderr: a picture that changes on a terminal, a line for each change elsewhere."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import typer
from rich.console import Console, Group, RenderableType
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
SHOWN_BRANCHES: Final = 10  # of a block; of a larger one, the first of those that run or failed

_STAGES: Final = list(StepStatus)  # in the order in which a step passes them
_TELLING: Final = frozenset({StepStatus.RUNNING, StepStatus.FAILED})
_BAR_WIDTH: Final = 30


@dataclass(slots=True)
class Seen:
    """The last that was heard of a step."""

    event: StepEvent
    started: datetime | None = None


@dataclass(slots=True)
class Picture:
    """What the events so far add up to."""

    run: Seen | None = None
    steps: dict[str, Seen] = field(default_factory=dict)  # that are nobody's branches
    branches: dict[str, dict[str, Seen]] = field(default_factory=dict)  # by block

    def add(self, event: StepEvent) -> None:
        """Take an event in. One that is behind what is known is left out: events of two replicas may overtake."""
        if event.step_id is None:
            self.run = _newer(self.run, event)
            return
        siblings = self.steps
        if event.parent_step_id is not None:
            siblings = self.branches.setdefault(event.parent_step_id, {})
        siblings[event.step_id] = _newer(siblings.get(event.step_id), event)


def _newer(known: Seen | None, event: StepEvent) -> Seen:
    if known is not None and _stage(event) < _stage(known.event):
        return known
    started = known.started if known is not None else None
    return Seen(event, event.at if event.status is StepStatus.RUNNING else started)


def _stage(event: StepEvent) -> tuple[int, int]:
    return event.attempt, _STAGES.index(event.status)


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

    with Live(console=console, refresh_per_second=8, get_renderable=lambda: draw(picture)):
        yield show


def event_line(event: StepEvent) -> str:
    """Return one status change as a line of text."""
    what = "run" if event.step_id is None else event.step_id
    if event.parent_step_id is not None:
        branch = branch_of(what, event.branch_name)
        what = f"{event.parent_step_id} / {f'{branch} / ' if branch is not None else ''}{what}"
    error = f"  {event.error.code}: {_one_line(event.error.message)}" if event.error is not None else ""
    return f"{event.at:%H:%M:%S.%f}"[:-3] + f"  {event.status:<9}  {what}{error}"


def branch_of(step_id: str, branch_name: str | None) -> str | None:
    """Return the name of a step's branch, unless the step's id says it already."""
    told = branch_name in {None, step_id} or step_id.endswith(f"[{branch_name}]")
    return None if told else branch_name


def _write_lines(messages: Iterable[RunEvent]) -> None:
    for message in messages:
        for event in message.events:
            typer.echo(event_line(event), err=True)


def draw(picture: Picture) -> RenderableType:
    """Return the picture for a terminal: the steps, the run, and why it failed."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()  # the one that gives way where the terminal is narrow
    _add_steps(table, picture, list(picture.steps.items()), depth=0)
    if picture.run is not None:
        table.add_row(Text("run", style="bold"), _status(picture.run.event), _duration(picture.run))
    return Group(table)


def _add_steps(table: Table, picture: Picture, steps: Iterable[tuple[str, Seen]], depth: int) -> None:
    """Add a row for each step, and below a block those of its branches that are shown."""
    for step_id, seen in steps:
        branches = picture.branches.get(step_id, {})
        table.add_row("  " * depth + step_id, _status(seen.event), _bar(branches) if branches else _account(seen))
        _add_steps(table, picture, _shown(branches), depth + 1)


def _shown(branches: dict[str, Seen]) -> list[tuple[str, Seen]]:
    if len(branches) <= SHOWN_BRANCHES:
        return list(branches.items())
    return [(key, seen) for key, seen in branches.items() if seen.event.status in _TELLING][:SHOWN_BRANCHES]


def _status(event: StepEvent) -> Text:
    return Text(event.status, style=STYLES[event.status])


def _account(seen: Seen) -> Text:
    text = Text(_duration(seen), no_wrap=True, overflow="ellipsis")
    if seen.event.error is not None:
        text.append(f"  {_one_line(seen.event.error.message)}", style="red")
    return text


def _bar(branches: dict[str, Seen]) -> RenderableType:
    steps = [seen.event for seen in branches.values() if seen.event.status is not StepStatus.SKIPPED]
    last = {event.branch_name: event.status for event in steps}  # of each branch, the step that it has got to
    counts = Counter(last.values())
    ended = sum(count for status, count in counts.items() if status.is_final)
    others = [
        f"{counts[status]} {status.lower()}"
        for status in (StepStatus.RUNNING, StepStatus.QUEUED, StepStatus.PENDING, StepStatus.FAILED)
        if counts[status]
    ]
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=len(last), completed=ended, width=_BAR_WIDTH)
    grid.add_row(bar, f"{ended}/{len(last)}", Text(", ".join(others), style="dim"))
    return grid


def _duration(seen: Seen) -> str:
    if seen.started is None:
        return ""
    end = seen.event.at if seen.event.status.is_final else datetime.now(seen.started.tzinfo)
    return f"{max((end - seen.started).total_seconds(), 0):.1f} s"


def _one_line(message: str) -> str:
    return " ".join(message.split())
