"""Progress: what events add up to, and how it looks."""

import io
from datetime import UTC, datetime, timedelta
from uuid import UUID

from rich.console import Console

from orchestrator.cli.progress import SHOWN_BRANCHES, Picture, draw, event_line, progress
from schemas.messages import ErrorInfo, RunEvent, StepEvent
from schemas.statuses import StepStatus

START = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
RUN = UUID(int=1)


def event(
    step_id: str | None, status: StepStatus, *, block: str | None = None, after: float = 0, error: str | None = None
) -> StepEvent:
    return StepEvent(
        step_id=step_id,
        parent_step_id=block,
        branch_name=step_id if block is not None else None,
        status=status,
        attempt=1,
        at=START + timedelta(seconds=after),
        error=ErrorInfo(code="agent_error", message=error) if error is not None else None,
    )


def shown(*events: StepEvent, width: int = 100) -> list[str]:
    picture = Picture()
    for each in events:
        picture.add(each)
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(draw(picture))
    return [line.rstrip() for line in captured.get().splitlines()]


def block_of(count: int, status: StepStatus) -> list[StepEvent]:
    return [event("block", StepStatus.RUNNING), *(event(f"b{n}", status, block="block") for n in range(count))]


def test_a_change_is_one_line_also_when_its_error_has_several() -> None:
    failed = event("a", StepStatus.FAILED, block="block", error="no paper\n  and no [ink]")
    assert event_line(failed) == "03:04:05.678  FAILED     block / a  agent_error: no paper and no [ink]"
    assert event_line(event(None, StepStatus.RUNNING)) == "03:04:05.678  RUNNING    run"


def test_each_step_has_its_status_and_how_long_it_took() -> None:
    lines = shown(
        event(None, StepStatus.RUNNING),
        event("a", StepStatus.RUNNING),
        event("a", StepStatus.COMPLETED, after=1.25),
        event(None, StepStatus.COMPLETED, after=2.5),
    )
    assert [line.split() for line in lines] == [["a", "COMPLETED", "1.2", "s"], ["run", "COMPLETED", "2.5", "s"]]


def test_a_failed_step_says_why_on_one_line_that_fits_the_terminal() -> None:
    [line] = shown(event("a", StepStatus.FAILED, error="no paper\n" + "at all " * 50), width=60)
    assert "FAILED" in line
    assert "no paper at all" in line
    assert line.endswith("…")
    assert len(line) <= 60


def test_what_is_behind_what_is_known_is_left_out() -> None:
    ended = event("a", StepStatus.COMPLETED)
    late = event("a", StepStatus.RUNNING, after=1)  # a clock that is fast does not make it news
    assert [line.split()[:2] for line in shown(ended, late)] == [["a", "COMPLETED"]]


def test_blocks_within_blocks_stand_below_each_other_with_their_branches() -> None:
    lines = shown(
        event("outer", StepStatus.RUNNING),
        event("inner", StepStatus.RUNNING, block="outer"),
        event("x", StepStatus.COMPLETED, block="inner"),
        event("y", StepStatus.QUEUED, block="inner"),
    )
    assert [line.split()[0] for line in lines] == ["outer", "inner", "x", "y"]
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 4]
    assert lines[1].endswith("1/2 1 queued")


def test_a_branch_of_several_steps_counts_once_and_by_the_step_that_it_has_got_to() -> None:
    def step(step_id: str, branch: str, status: StepStatus) -> StepEvent:
        return event(step_id, status, block="loop").model_copy(update={"branch_name": branch})

    lines = shown(
        event("loop", StepStatus.RUNNING),
        step("x[0]", "0", StepStatus.COMPLETED),
        step("y[0]", "0", StepStatus.RUNNING),
        step("z[0]", "0", StepStatus.SKIPPED),
        step("x[1]", "1", StepStatus.COMPLETED),
    )
    assert lines[0].endswith("1/2 1 running")


def test_the_branches_of_a_small_block_all_stand_below_it() -> None:
    lines = shown(*block_of(SHOWN_BRANCHES, StepStatus.QUEUED))
    assert lines[0].startswith("block")
    assert lines[0].endswith(f"0/{SHOWN_BRANCHES} {SHOWN_BRANCHES} queued")
    assert [line.split() for line in lines[1:]] == [[f"b{n}", "QUEUED"] for n in range(SHOWN_BRANCHES)]


def test_of_a_large_block_those_that_run_or_failed_are_shown_and_the_others_counted() -> None:
    lines = shown(
        *block_of(100, StepStatus.PENDING),
        event("b7", StepStatus.RUNNING, block="block"),
        event("b8", StepStatus.FAILED, block="block", error="no ink"),
        event("b9", StepStatus.COMPLETED, block="block"),
    )
    assert lines[0].endswith("2/100 1 running, 97 pending, 1 failed")
    assert [line.split()[0] for line in lines[1:]] == ["b7", "b8"]


def test_elsewhere_than_on_a_terminal_each_change_is_a_line(capsys) -> None:
    with progress(Console(file=io.StringIO())) as show:
        show([RunEvent(run_id=RUN, events=[event("a", StepStatus.QUEUED), event("a", StepStatus.RUNNING)])])
    written = capsys.readouterr()
    assert written.out == ""
    assert [line.split()[1:] for line in written.err.splitlines()] == [["QUEUED", "a"], ["RUNNING", "a"]]
