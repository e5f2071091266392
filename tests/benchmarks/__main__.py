"""What `make bench` runs: ``python -m tests.benchmarks``. It measures, and has no verdict."""

import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from messaging.telemetry import LogFormat, LogLevel, configure_logging
from tests.benchmarks import report, servers
from tests.benchmarks.loads import Group, all_loads
from tests.benchmarks.plot import draw
from tests.benchmarks.results import Results
from tests.benchmarks.suite import Name, Options, Suite

_KNOWN_LOADS = {load.name for quick in (True, False) for load in all_loads(quick=quick, large=True)} | set(Group)


def bench(
    rounds: Annotated[int, typer.Option(min=1, help="Of each load; the systems take turns within a round.")] = 3,
    only: Annotated[list[Name] | None, typer.Option(help="Measure this system; may be repeated.")] = None,
    load: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(Group)}, or a load's name; may be repeated.")
    ] = None,
    large: Annotated[bool, typer.Option("--large", help="Also 100,000 branches, and 100,000 stored runs.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny loads, one round: does it work?")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="py-spy on an orchestrator and a worker.")] = False,
    output: Annotated[Path, typer.Option(help="A directory for results.json and the plots.")] = Path(
        "build/benchmarks"
    ),
) -> None:
    """Measure forkjoin, and other systems beside it, on this machine."""
    unknown = sorted(set(load or ()) - _KNOWN_LOADS)
    if unknown:
        raise typer.BadParameter(f"no load is named {', '.join(unknown)}; there are {', '.join(sorted(_KNOWN_LOADS))}")
    configure_logging(LogLevel.WARNING, LogFormat.CONSOLE)  # our own client's; the services log as they always do
    output.mkdir(parents=True, exist_ok=True)
    loads = tuple(load or ())
    options = Options(1 if quick else rounds, tuple(only or ()), loads, quick, large, profile, output)
    _show(_measured(options), output)


def _measured(options: Options) -> Results:
    with servers.take(_tell, redis=options.wants(Name.CELERY_REDIS)) as taken:
        return uvloop.run(Suite(options, taken, _tell).run())


def _show(results: Results, output: Path) -> None:
    report.show(results)
    file = output / "results.json"
    results.write(file)
    for written in [file, *draw(results, output)]:
        print(f"wrote {written}")


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    typer.run(bench)
