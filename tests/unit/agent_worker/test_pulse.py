import asyncio
import threading

from agent_worker.pulse import AttemptPulse, PulseTiming
from schemas.statuses import ReportStatus

SILENT = PulseTiming(started_after=3_600, heartbeat_interval=3_600)


async def test_a_beat_that_is_overtaken_by_the_end_is_not_sent() -> None:
    sent: list[ReportStatus] = []
    pulse = AttemptPulse(sent.append, SILENT)
    pulse.beat()
    pulse.stop()
    await asyncio.sleep(0)
    assert sent == []


async def test_the_first_sign_of_life_is_started() -> None:
    sent: list[ReportStatus] = []
    pulse = AttemptPulse(sent.append, SILENT)
    pulse.beat()
    await asyncio.sleep(0)
    assert sent == [ReportStatus.STARTED, ReportStatus.HEARTBEAT]
    pulse.stop()


def test_a_beat_from_a_thread_that_outlived_the_event_loop_is_harmless() -> None:
    sent: list[ReportStatus] = []

    async def attempt() -> AttemptPulse:
        return AttemptPulse(sent.append, SILENT)

    pulse = asyncio.run(attempt())
    thread = threading.Thread(target=pulse.beat)
    thread.start()
    thread.join()
    assert pulse.over
    assert sent == []
