"""The arithmetic of the benchmarks, and what they write, from samples that nobody measured."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks.bench_messaging import Cost
from tests.benchmarks.goals import figures
from tests.benchmarks.idle import Idle
from tests.benchmarks.loads import Group, Load, all_loads
from tests.benchmarks.machine import this_machine
from tests.benchmarks.measurement import Failure, Percentiles, Role, Sample, Spread, Usage, percentile, refills
from tests.benchmarks.meter import Meter
from tests.benchmarks.plot import draw
from tests.benchmarks.profiling import profile_table
from tests.benchmarks.report import show
from tests.benchmarks.results import Results
from tests.benchmarks.summary import summarise
from tests.benchmarks.systems.port import WrongResults, check

BLOCK = Load(Group.BLOCK, 1000)
LATENCY = Load(Group.LATENCY, 10, runs=100, one_by_one=True)
REFERENCE = "bare aio-pika"


def sample(system: str, rate: float, *, number: int = 1, load: Load = BLOCK, times: tuple[float, ...] = ()) -> Sample:
    usage = Usage({Role.WORKERS: load.total * number * 1e-4}, {Role.WORKERS: number * 10_000_000})
    return Sample(system, load.name, number, load.total, load.total / rate, times, usage)


def results() -> Results:
    samples = [
        *(sample(REFERENCE, rate, number=number) for number, rate in [(1, 1000.0), (2, 2000.0), (3, 1500.0)]),
        *(sample("forkjoin", rate, number=number) for number, rate in [(1, 3000.0), (2, 4000.0), (3, 6000.0)]),
        sample("forkjoin", 900.0, load=LATENCY, times=tuple(n / 1000 for n in range(1, 101))),
    ]
    failures = [Failure("snail", BLOCK.name, 1, "not done within 120 s")]
    return Results(
        date="2026-01-01T00:00:00+00:00",
        machine=this_machine(),
        servers=["RabbitMQ: here"],
        systems={"forkjoin": "defaults", REFERENCE: "plain"},
        left_out={"celery-redis": "there is no Redis"},
        rounds=3,
        reference=REFERENCE,
        samples=samples,
        failures=failures,
        rows=summarise([BLOCK, LATENCY], samples, failures, REFERENCE),
        idle=Idle(10.0, {Role.ORCHESTRATOR: 0.004, Role.WORKERS: 0.02}, 1.5),
        messages={"memory": (Cost(1.0, 2.0), Cost(3.0, 4.0))},
    )


def printed(shown: Results) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(shown, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_percentile_is_a_value_that_was_measured_and_that_so_many_do_not_exceed() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0
    assert Percentiles.of([3.0, 1.0, 2.0]) == Percentiles(2.0, 3.0, 3.0, 3.0)


def test_a_spread_holds_the_median_and_both_ends() -> None:
    assert Spread.of([5.0, 1.0, 3.0]) == Spread(3.0, 1.0, 5.0)


def test_a_ratio_is_to_the_reference_in_the_same_round_and_not_to_its_median() -> None:
    row = next(row for row in results().rows if row.system == "forkjoin" and row.load == BLOCK)
    assert row.ratio == pytest.approx(3.0)  # of 3, 2 and 4; the medians would give 4000 / 1500
    assert row.rate is not None
    assert (row.rate.median, row.rate.lowest, row.rate.highest) == pytest.approx((4000, 3000, 6000))


def test_a_row_adds_up_cpu_over_all_rounds_and_keeps_the_highest_peak_of_memory() -> None:
    row = next(row for row in results().rows if row.system == "forkjoin" and row.load == BLOCK)
    assert row.cpu == {Role.WORKERS: pytest.approx(200.0)}
    assert row.peak_bytes == {Role.WORKERS: 30_000_000}


def test_a_role_that_could_not_be_seen_in_one_round_has_no_figure() -> None:
    blind = Sample("forkjoin", BLOCK.name, 2, 1000, 1.0)
    (row,) = summarise([BLOCK], [sample("forkjoin", 1000.0), blind], [], REFERENCE)
    assert row.cpu == {}


def test_a_system_without_a_round_of_the_reference_has_no_ratio() -> None:
    (row,) = summarise([BLOCK], [sample("forkjoin", 1000.0)], [], REFERENCE)
    assert row.ratio is None


def test_a_refill_is_from_an_end_to_the_start_that_it_made_possible() -> None:
    # Two slots: the third branch starts 1 s after the first end, the fourth 2 s after the second.
    spans = [(0.0, 10.0), (0.0, 20.0), (11.0, 30.0), (22.0, 40.0)]
    assert refills(reversed(spans), 2) == [1.0, 2.0]
    assert refills(spans, 4) == []


def test_results_that_are_missing_or_of_another_branch_are_told() -> None:
    right = [BLOCK.given(branch) for branch in range(BLOCK.branches)]
    check(right, BLOCK)
    with pytest.raises(WrongResults, match="999 results of 1000"):
        check(right[1:], BLOCK)
    with pytest.raises(WrongResults, match="branch 0: given"):
        check([right[1], *right[1:]], BLOCK)


def test_the_table_shows_a_system_that_failed_with_its_reason() -> None:
    text = printed(results())
    assert "snail" in text
    assert "0 of 3" in text
    assert "snail FAILED: not done within 120 s" in text
    assert "celery-redis is left out: there is no Redis" in text


def test_a_machine_that_others_use_is_told() -> None:
    quiet = results()
    noisy = [replace(one, usage=replace(one.usage, foreign=0.3)) for one in quiet.samples]
    assert "Others used 30% of this machine" in printed(replace(quiet, samples=noisy))
    assert "Others used" not in printed(quiet)


def test_the_json_holds_every_sample_row_and_failure(tmp_path: Path) -> None:
    results().write(tmp_path / "results.json")
    read = json.loads((tmp_path / "results.json").read_text())
    assert len(read["samples"]) == 7
    assert read["failures"] == [
        {"system": "snail", "load": "block-1000", "round": 1, "reason": "not done within 120 s"}
    ]
    assert [(row["system"], row["load"]) for row in read["rows"]] == [
        (REFERENCE, "block-1000"),
        ("forkjoin", "block-1000"),
        ("snail", "block-1000"),
        ("forkjoin", "latency-100x10"),
    ]
    assert read["machine"]["cores"] >= 1
    assert read["messages"]["memory"]["receive"]["wall"] == 3.0


def test_both_plots_are_drawn_with_a_line_for_each_system_that_has_samples(tmp_path: Path) -> None:
    assert [file.name for file in draw(results(), tmp_path)] == ["throughput.svg", "latency.svg"]
    assert all("</svg>" in (tmp_path / name).read_text() for name in ("throughput.svg", "latency.svg"))


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    empty = Results("", this_machine(), (), {}, {}, 3, REFERENCE)
    assert draw(empty, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_goal_is_reached_or_not_and_one_that_was_not_measured_is_not_listed() -> None:
    found = {figure.name: figure for figure in results().figures}
    assert found["1 run, of 1,000 branches: ratio to bare request/reply"].reached
    assert not found["a single run of 10 branches, p50"].reached
    assert found["idle, orchestrator: share of a core"].reached
    assert not found["idle, workers: share of a core"].reached
    assert figures([], None) == []


def test_the_goals_name_loads_that_there_are() -> None:
    loads = all_loads(quick=False, large=True)
    samples = [
        sample(system, 1000.0, load=load, times=(0.001,) if load.one_by_one or load.naps else ())
        for load in loads
        for system in ("forkjoin", "forkjoin, 100,000 runs stored", REFERENCE)
    ]
    assert len(figures(summarise(loads, samples, [], REFERENCE), None)) == 10


def test_a_profile_counts_own_and_all_samples_of_a_function() -> None:
    text = profile_table(["main;work;spin 2", "main;work;work;spin 1", "main;work 1"])
    assert "4 samples" in text
    assert "  75.0%   75.0%  spin" in text
    assert "  25.0%  100.0%  work" in text  # which calls itself, and is counted once


def test_the_meter_counts_this_process_alone_and_no_role_without_processes() -> None:
    meter = Meter({Role.CLIENT: [os.getpid()], Role.REDIS: []})
    meter.start()
    sum(number * number for number in range(2_000_000))
    usage = meter.stop()
    assert 0.0 <= usage.foreign < 1.0
    assert set(usage.cpu_seconds) == set(usage.peak_bytes) == {Role.CLIENT}
    assert usage.cpu_seconds[Role.CLIENT] > 0
    assert usage.peak_bytes[Role.CLIENT] > 1_000_000
