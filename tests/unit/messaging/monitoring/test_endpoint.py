"""The HTTP port: what it answers, and when nobody can have it."""

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import pytest

from messaging.health import Trouble
from messaging.monitoring.condition import Condition, Phase
from messaging.monitoring.instruments import Count, Instrument
from messaging.monitoring.loop_lag import LoopLag
from messaging.monitoring.monitored import open_endpoint
from messaging.settings import ServiceSettings, SettingsInvalid
from tests.conftest import Eventually
from tests.services.http import Answer, ask, asked


class Service:
    """Says of itself what a test wants."""

    def __init__(self, condition: Condition | None = None) -> None:
        self.now = condition if condition is not None else Condition(Phase.WORKING)
        self.count = Count("forkjoin_seen", "What was seen.")

    async def condition(self) -> Condition:
        return self.now

    async def instruments(self) -> Sequence[Instrument]:
        return [self.count]


@asynccontextmanager
async def opened(service: Service, lag: LoopLag | None = None, **settings: object) -> AsyncIterator[int]:
    async with open_endpoint(ServiceSettings(**settings), 0, service, lag or LoopLag()) as port:
        yield port


async def test_a_process_lives_whatever_else_is_wrong() -> None:
    trouble = Trouble("broker", datetime.now(UTC), "out of reach")
    for condition in (Condition(Phase.STARTING), Condition(Phase.WORKING, (trouble,)), Condition(Phase.STOPPING)):
        async with opened(Service(condition)) as port:
            assert await asked(port, "/livez") == Answer(200, "ok\n", "text/plain; charset=utf-8")


async def test_readiness_is_a_status_and_says_what_is_wrong() -> None:
    service = Service()
    async with opened(service) as port:
        ready = await asked(port, "/readyz")
        service.now = Condition(Phase.WORKING, (Trouble("database", datetime.now(UTC), "out of reach"),))
        degraded = await asked(port, "/readyz")
        service.now = Condition(Phase.STOPPING)
        draining = await asked(port, "/readyz")
    assert (ready.status, ready.json) == (200, {"status": "ok", "troubles": []})
    assert (degraded.status, degraded.json["status"]) == (503, "degraded")
    assert [trouble["part"] for trouble in degraded.json["troubles"]] == ["database"]
    assert (draining.status, draining.json) == (503, {"status": "draining", "troubles": []})


async def test_the_numbers_are_those_of_the_moment() -> None:
    service = Service()
    async with opened(service) as port:
        service.count.add(2)
        first = await asked(port, "/metrics")
        service.count.add(3)
        second = await asked(port, "/metrics")
    assert [answer.samples["forkjoin_seen_total",] for answer in (first, second)] == [2, 5]
    assert first.status == 200


async def test_nothing_else_is_answered() -> None:
    async with opened(Service()) as port:
        assert (await asked(port, "/")).status == 404
        assert (await asked(port, "/metrics/../etc/passwd")).status == 404


async def test_a_service_without_the_broken_part_says_so_in_an_answer_of_its_own() -> None:
    class Broken(Service):
        async def condition(self) -> Condition:
            raise RuntimeError("a bug")

    async with opened(Broken()) as port:
        assert (await asked(port, "/readyz")).status == 500
        assert (await asked(port, "/livez")).status == 200


def stuck_while_somebody_asks(port: int, seconds: float) -> None:
    """Ask in a thread, and give the event loop no turn until the answer is there, or too late."""
    with ThreadPoolExecutor() as threads:
        threads.submit(ask, port, "/livez", seconds=seconds).result()


async def test_a_loop_that_is_stuck_does_not_answer() -> None:
    async with opened(Service()) as port:
        with pytest.raises(TimeoutError):
            stuck_while_somebody_asks(port, seconds=0.2)


async def test_the_lag_of_the_loop_is_measured_while_the_port_is_open(eventually: Eventually) -> None:
    lag = LoopLag()
    async with opened(Service(), lag) as port:
        await eventually(lambda: sum(lag.seconds.tallies[()].counts) > 0)
        seen = sum(lag.seconds.tallies[()].counts)
        with suppress(TimeoutError):
            stuck_while_somebody_asks(port, seconds=0.8)
        await eventually(lambda: sum(lag.seconds.tallies[()].counts) > seen)
    assert lag.seconds.tallies[()].sum > 0.4


async def test_the_port_is_closed_at_the_end_and_signals_are_left_alone() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    async with opened(Service()) as port:
        await asked(port, "/livez")
        assert {number: signal.getsignal(number) for number in handlers} == handlers
    with pytest.raises(OSError, match="refused"):
        await asked(port, "/livez")


async def test_a_port_that_somebody_else_has_is_told_of_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsInvalid, match=f"FORKJOIN_HTTP_PORT: cannot listen at 127.0.0.1, port {port}: "):
            async with open_endpoint(ServiceSettings(), port, Service(), LoopLag()):
                pass


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
async def test_two_colons_mean_every_address_of_both_families() -> None:
    async with opened(Service(), http_host="::") as port:
        assert (await asked(port, "/livez")).status == 200


def test_a_service_without_a_port_imports_nothing_of_it() -> None:
    code = (
        "import sys, agent_worker.cli, orchestrator.bootstrap\n"
        "print(sorted({'starlette', 'uvicorn', 'prometheus_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


async def test_a_port_without_its_packages_is_told_of_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "messaging.monitoring.endpoint", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SettingsInvalid, match=r"needs uvicorn: pip install 'forkjoin\[monitoring\]'"):
        async with opened(Service()):
            pass
