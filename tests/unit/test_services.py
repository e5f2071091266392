"""The fixtures' own machinery, with harmless processes in the place of brokers and databases."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.services import debian, postgres, rabbitmq
from tests.services.containers import require_docker
from tests.services.processes import Server, ServerDied, accepts_connections, free_ports
from tests.services.sources import Announce, Unavailable, first_available
from tests.services.waiting import eventually, wait_until

ROOT = Path(__file__).resolve().parents[2]


def silent(line: str) -> None:
    """Announce nothing."""


def absent(reason: str) -> object:
    def source(announce: Announce) -> str:
        raise Unavailable(reason)

    return source


class TestSources:
    def test_the_first_source_that_has_the_service_is_taken_and_later_ones_are_not_asked(self) -> None:
        asked = []

        def second(announce: Announce) -> str:
            asked.append("second")
            return "from the second"

        def third(announce: Announce) -> str:
            asked.append("third")
            return "from the third"

        assert first_available("X", [absent("no first"), second, third], silent) == "from the second"
        assert asked == ["second"]

    def test_when_no_source_has_it_every_reason_is_told(self) -> None:
        with pytest.raises(Unavailable, match=r"these tests need X(.|\n)*no first(.|\n)*no second"):
            first_available("X", [absent("no first"), absent("no second")], silent)

    def test_a_broker_that_was_named_but_is_not_there_is_an_error_without_the_password(self, monkeypatch) -> None:
        [port] = free_ports(1)
        monkeypatch.setenv("FORKJOIN_TEST_AMQP_URL", f"amqp://me:secret@127.0.0.1:{port}/")
        monkeypatch.setenv("FORKJOIN_TEST_MANAGEMENT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}, which does not take connections") as caught:
            rabbitmq.take(silent)
        assert "secret" not in str(caught.value)

    def test_a_database_that_was_named_but_is_not_there_is_an_error_without_the_password(self, monkeypatch) -> None:
        [port] = free_ports(1)
        monkeypatch.setenv("FORKJOIN_TEST_DATABASE_URL", f"postgresql+asyncpg://me:secret@127.0.0.1:{port}/x")
        with pytest.raises(Unavailable, match=f"Postgres at 127.0.0.1:{port} does not answer") as caught:
            postgres.take(silent)
        assert "secret" not in str(caught.value)


class TestDocker:
    def test_a_missing_engine_passes_on_without_an_error(self, monkeypatch, tmp_path) -> None:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
        with pytest.raises(Unavailable, match="no Docker engine answers"):
            require_docker()

    def test_an_engine_that_accepts_and_never_answers_passes_on_too(self, monkeypatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent_engine:
            monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{silent_engine.getsockname()[1]}")
            with pytest.raises(Unavailable, match=r"read timeout=1\)"):
                require_docker()


class TestInstallation:
    def test_whoever_is_not_root_is_told_what_to_do(self, monkeypatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(Unavailable, match=r"apt-get install rabbitmq-server.*FORKJOIN_TEST_AMQP_URL"):
            debian.install_rabbitmq(silent)

    def test_no_service_may_start_while_packages_are_installed(self, tmp_path) -> None:
        policy = tmp_path / "policy-rc.d"
        with debian.services_stay_off(policy):
            assert subprocess.run([policy, "rabbitmq-server", "start"]).returncode == 101
        assert not policy.exists()

    def test_a_policy_that_was_there_stays(self, tmp_path) -> None:
        policy = tmp_path / "policy-rc.d"
        policy.write_text("the administrator's")
        with debian.services_stay_off(policy):
            assert policy.read_text() == "the administrator's"
        assert policy.read_text() == "the administrator's"

    def test_a_failed_installation_says_why(self, monkeypatch, tmp_path) -> None:
        fake = tmp_path / "apt-get"
        fake.write_text('#!/bin/sh\necho "E: no network to $2" >&2\nexit 100\n')
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(debian, "POLICY", tmp_path / "policy-rc.d")
        with pytest.raises(Unavailable, match="`apt-get update` failed: E: no network to update"):
            debian.install_rabbitmq(silent)
        assert not (tmp_path / "policy-rc.d").exists()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that listens, has a child, and says so."""
    [port] = free_ports(1)
    source = f"""
        import signal, socket, subprocess, sys, threading
        signal.signal(signal.SIGTERM, lambda *_: (print("in order", flush=True), sys.exit()))
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        listener = socket.create_server(("127.0.0.1", {port}))
        print("ready", flush=True)
        threading.Event().wait()
    """
    server = Server("listener", [sys.executable, "-c", textwrap.dedent(source)], tmp_path)
    server.start(lambda: accepts_connections(port))
    yield server
    server.kill()


def family(server: Server) -> list[psutil.Process]:
    parent = psutil.Process(server.pid)
    return [parent, *parent.children(recursive=True)]


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


class TestServers:
    def test_a_server_runs_from_start_until_stop(self, server) -> None:
        assert server.running
        server.stop()
        assert not server.running

    def test_stop_lets_the_server_end_in_order_and_takes_its_children_along(self, server) -> None:
        processes = family(server)
        assert len(processes) == 2
        server.stop()
        assert "in order" in server.log.read_text()
        assert all(map(ended, processes))

    def test_kill_gives_the_server_no_time_and_takes_its_children_along(self, server) -> None:
        processes = family(server)
        server.kill()
        assert "in order" not in server.log.read_text()
        assert all(map(ended, processes))

    def test_it_can_be_started_again_after_stop_and_after_kill(self, server) -> None:
        for end in (server.stop, server.kill):
            end()
            server.start(lambda: server.log.read_text().endswith("ready\n"))
            assert server.running

    def test_one_that_dies_while_starting_shows_its_log(self, tmp_path) -> None:
        server = Server("broken", [sys.executable, "-c", "raise SystemExit('no such luck')"], tmp_path)
        with pytest.raises(ServerDied, match=r"broken ended while starting(.|\n)*no such luck"):
            server.start(lambda: False)
        server.kill()

    def test_one_that_is_never_ready_is_ended_and_shows_its_log(self, tmp_path) -> None:
        server = Server("slow", ["sh", "-c", "echo still thinking; exec sleep 600"], tmp_path)
        with pytest.raises(ServerDied, match=r"slow is ready: not within 0.3 s(.|\n)*still thinking"):
            server.start(lambda: False, seconds=0.3)
        assert not server.running

    def test_none_outlives_tests_that_are_killed(self, tmp_path) -> None:
        data = tmp_path / "data"
        data.mkdir()
        source = f"""
            import os, signal
            from pathlib import Path
            from tests.services.processes import Server
            server = Server("orphan", ["sleep", "600"], Path({str(data)!r}))
            server.start(lambda: True)
            print(server.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """
        tests = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(source)], cwd=ROOT, capture_output=True, text=True
        )
        assert tests.returncode == -signal.SIGKILL, tests.stderr
        orphan = int(tests.stdout)
        wait_until(lambda: not psutil.pid_exists(orphan) or ended(psutil.Process(orphan)), "it ended", seconds=10)
        wait_until(lambda: not data.exists(), "its data is deleted", seconds=10)

    def test_ports_are_different_free_and_not_those_of_outgoing_connections(self) -> None:
        ports = free_ports(20)
        assert len(set(ports)) == 20
        assert not any(map(accepts_connections, ports))
        assert max(ports) < 32_768


class TestEventually:
    async def test_it_returns_the_first_true_value_of_a_sync_condition(self) -> None:
        values = iter([0, None, "", "here"])
        assert await eventually(lambda: next(values)) == "here"

    async def test_it_awaits_an_async_condition(self) -> None:
        values = iter([False, 7])

        async def condition() -> object:
            return next(values)

        assert await eventually(condition) == 7

    async def test_a_lambda_may_return_something_to_await(self) -> None:
        async def condition(value: int) -> int:
            return value

        assert await eventually(lambda: condition(3)) == 3

    async def test_it_fails_with_the_condition_and_its_last_value(self) -> None:
        with pytest.raises(AssertionError, match=r"eventually\(lambda: \[\].*within 0.05 s; it last gave \[\]"):
            await eventually(lambda: [], timeout=0.05)  # noqa: PIE807

    async def test_a_condition_that_hangs_is_cut_off(self) -> None:
        async def hang() -> None:
            await eventually(lambda: False, timeout=60)

        with pytest.raises(AssertionError, match=r"hang was not true within 0.05 s; it last gave 'nothing"):
            await eventually(hang, timeout=0.05)

    async def test_what_the_condition_raises_is_raised_at_once(self) -> None:
        def broken() -> None:
            raise TimeoutError("the condition's own")

        with pytest.raises(TimeoutError, match="the condition's own"):
            await eventually(broken)
