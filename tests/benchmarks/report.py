"""The tables for people."""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.benchmarks.measurement import Percentiles, Role
from tests.benchmarks.results import Results
from tests.benchmarks.rounds import SLOW_SECONDS
from tests.benchmarks.summary import Row

_SHORT: Final = {Role.ORCHESTRATOR: "orch.", Role.RABBITMQ: "rabbit", Role.POSTGRES: "postgres"}
_WIDTH: Final = 170  # where no terminal says how wide it is
_NOISY: Final = 0.1  # a share of the machine that is no longer small
_NONE: Final = "–"  # noqa: RUF001 - a dash for people


def show(results: Results, console: Console | None = None) -> None:
    """Print everything."""
    console = console or wide_console()
    console.print(f"\n[bold]Benchmarks of {results.date}[/bold], commit {results.machine.commit or 'unknown'}")
    console.print(str(results.machine), highlight=False)
    for line in [*results.servers, *(f"{name}: {settings}" for name, settings in results.systems.items())]:
        console.print(f"  {line}", highlight=False, markup=False)
    for name, reason in results.left_out.items():
        console.print(f"  {name} is left out: {reason}", style="yellow", markup=False)
    if results.profiled:
        console.print("A profiler ran; these figures are for nobody.", style="yellow")
    console.print(
        f"Ratios are to {results.reference} in the same round; µs are CPU microseconds per branch; "
        f"MB are peaks. What fails, or takes longer than {SLOW_SECONDS:g} s, is not repeated."
    )
    if results.foreign > _NOISY:
        console.print(
            f"Others used {results.foreign:.0%} of this machine meanwhile; measure on a quiet one.", style="yellow"
        )
    for table in _tables(results):
        console.print()
        console.print(table)


def wide_console() -> Console:
    """Return a console that does not fold our tables when it writes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _tables(results: Results) -> list[Table]:
    candidates = [
        _messages(results),
        *_throughputs(results),
        _times(results),
        _idle(results),
        _figures(results),
    ]
    return [table for table in candidates if table.row_count]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _messages(results: Results) -> Table:
    table = _table("Microseconds per message, wall (CPU of the client)", "adapter", "publish", "receive and ack")
    for adapter, costs in results.messages.items():
        table.add_row(adapter, *(f"{cost.wall:.1f} ({cost.cpu:.1f})" for cost in costs))
    return table


def _throughputs(results: Results) -> list[Table]:
    roles = [role for role in Role if any(role in row.cpu for row in results.rows)]
    return [
        _throughput(load.title, list(rows), roles, results.rounds)
        for load, rows in groupby(results.rows, key=lambda row: row.load)
    ]


def _throughput(title: str, rows: Sequence[Row], roles: Sequence[Role], rounds: int) -> Table:
    cpu = [f"µs\n{_SHORT.get(role, role.value)}" for role in roles]
    rate = ("branches\n/s", "min to max", "ratio")
    table = _table(title, "system", "rounds", *rate, *cpu, "µs\nsum", "MB\norch.", "MB\nworkers")
    for row in rows:
        table.add_row(row.system, *_rate_cells(row, rounds), *_usage_cells(row, roles))
    failed = [f"{row.system} FAILED: {reason}" for row in rows for reason in row.reasons]
    table.caption = Text("\n".join(failed), style="red") if failed else None
    return table


def _rate_cells(row: Row, rounds: int) -> list[str]:
    if row.rate is None:
        return [f"0 of {rounds}", _NONE, _NONE, _NONE]
    return [
        str(row.rounds) if row.rounds == rounds else f"{row.rounds} of {rounds}",
        f"{row.rate.median:,.0f}",
        f"{row.rate.lowest:,.0f} to {row.rate.highest:,.0f}",
        _NONE if row.ratio is None else f"{row.ratio:.2f}",
    ]


def _usage_cells(row: Row, roles: Sequence[Role]) -> list[str]:
    shown = [f"{row.cpu[role]:.0f}" if role in row.cpu else _NONE for role in roles]
    peaks = [row.peak_bytes.get(role) for role in (Role.ORCHESTRATOR, Role.WORKERS)]
    total = f"{row.cpu_total:.0f}" if row.cpu else _NONE
    return [*shown, total, *(_NONE if peak is None else f"{peak / 1e6:.0f}" for peak in peaks)]


def _times(results: Results) -> Table:
    table = _table("Milliseconds", "what and system", "p50", "p95", "p99", "max")
    for row in results.rows:
        if row.times is not None:
            what = "refill of a freed slot" if row.load.naps else row.load.title
            table.add_row(f"{what}: {row.system}", *_milliseconds(row.times))
    return table


def _milliseconds(times: Percentiles) -> list[str]:
    return [f"{seconds * 1000:.1f}" for seconds in (times.p50, times.p95, times.p99, times.highest)]


def _idle(results: Results) -> Table:
    table = _table("Nothing to do", "what", "used")
    if results.idle is not None:
        for role, share in results.idle.cores.items():
            who = "one of the workers" if role is Role.WORKERS else role.value
            table.add_row(f"{who}: share of a core", f"{share:.2%}")
        table.add_row("database transactions per second", f"{results.idle.transactions:.2f}")
    return table


def _figures(results: Results) -> Table:
    table = _table("Goals", "figure", "measured", "goal", "")
    for figure in results.figures:
        mark = Text("reached", style="green") if figure.reached else Text("not reached", style="yellow")
        table.add_row(figure.name, figure.value, figure.goal, mark)
    return table
