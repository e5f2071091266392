import asyncio
import math
import threading
from collections.abc import Callable
from typing import Any

from agent_worker.pulse import AttemptPulse, PulseTiming, Rhythm
from schemas.statuses import ReportStatus

SILENT = PulseTiming(started_after=3_600, heartbeat_interval=3_600)


async def test_a_beat_that_is_overtaken_by_the_end_is_not_sent() -> None:
    sent: list[ReportStatus] = []
    pulse = AttemptPulse(sent.append, Rhythm(SILENT))
    pulse.beat()
    pulse.stop()
    await asyncio.sleep(0)
    assert sent == []


async def test_the_first_sign_of_life_is_started() -> None:
    sent: list[ReportStatus] = []
    pulse = AttemptPulse(sent.append, Rhythm(SILENT))
    pulse.beat()
    await asyncio.sleep(0)
    assert sent == [ReportStatus.STARTED, ReportStatus.HEARTBEAT]
    pulse.stop()


async def test_each_pulse_is_told_when_it_is_due_also_while_another_beats(eventually: Callable[..., Any]) -> None:
    rhythm = Rhythm(PulseTiming(started_after=0.001, heartbeat_interval=3_600))
    sent: list[tuple[int, ReportStatus]] = []
    pulses = [AttemptPulse(lambda status, n=n: sent.append((n, status)), rhythm) for n in range(3)]  # type: ignore[misc]
    pulses[1].stop()
    await eventually(lambda: len(sent) == 2)
    pulses.append(AttemptPulse(lambda status: sent.append((3, status)), rhythm))  # long before the next heartbeat
    await eventually(lambda: len(sent) == 3)
    assert sent == [(n, ReportStatus.STARTED) for n in (0, 2, 3)]
    for pulse in pulses:
        pulse.stop()


async def test_an_attempt_that_may_be_silent_for_less_time_beats_more_often(eventually: Callable[..., Any]) -> None:
    rhythm = Rhythm(PulseTiming(started_after=0.001, heartbeat_interval=3_600))
    sent: list[str] = []
    pulses = [
        AttemptPulse(lambda status, n=name: sent.append(n), rhythm, silence)  # type: ignore[misc]
        for name, silence in (("patient", math.inf), ("hasty", 0.001), ("slow", 7_200.0))
    ]
    await eventually(lambda: sent.count("hasty") >= 4)
    assert (sent.count("patient"), sent.count("slow")) == (1, 1)
    for pulse in pulses:
        pulse.stop()
    await eventually(lambda: rhythm._timer is None)


async def test_a_pulse_that_begins_when_all_others_have_ended_is_told_too(eventually: Callable[..., Any]) -> None:
    rhythm = Rhythm(PulseTiming(started_after=0.001, heartbeat_interval=0.001))
    sent: list[ReportStatus] = []
    short = AttemptPulse(sent.append, rhythm)
    short.stop()
    assert rhythm._timer is not None
    await eventually(lambda: rhythm._timer is None)  # an idle worker has nothing to wake up for
    assert sent == []
    pulse = AttemptPulse(sent.append, rhythm)
    await eventually(lambda: len(sent) >= 3)
    assert sent[:3] == [ReportStatus.STARTED, ReportStatus.HEARTBEAT, ReportStatus.HEARTBEAT]
    pulse.stop()
    said = len(sent)
    await eventually(lambda: rhythm._timer is None)
    assert len(sent) == said


async def test_a_pulse_that_cannot_be_told_keeps_nobody_else_from_being_told(eventually: Callable[..., Any]) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    rhythm = Rhythm(PulseTiming(started_after=0.001, heartbeat_interval=3_600))
    sent: list[ReportStatus] = []

    def broken(status: ReportStatus) -> None:
        raise ZeroDivisionError("a bug")

    pulses = [AttemptPulse(broken, rhythm), AttemptPulse(sent.append, rhythm)]
    await eventually(lambda: sent)
    assert [type(error) for error in reported] == [ZeroDivisionError]
    for pulse in pulses:
        pulse.stop()


def test_a_beat_from_a_thread_that_outlived_the_event_loop_is_harmless() -> None:
    sent: list[ReportStatus] = []

    async def attempt() -> AttemptPulse:
        return AttemptPulse(sent.append, Rhythm(SILENT))

    pulse = asyncio.run(attempt())
    thread = threading.Thread(target=pulse.beat)
    thread.start()
    thread.join()
    assert pulse.over
    assert sent == []
