"""Servers that the tests start themselves, and of which none outlives them."""

import contextlib
import os
import pwd
import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.services.waiting import wait_until

# Below the range from which the kernel takes ports for outgoing connections. Above it, a client that keeps trying to
# reach a stopped server on this host would now and then be given the server's own port, connect to itself and hold it.
_PORTS = range(20_000, 32_000)

# Reads until the tests' end of the pipe is closed, as it is even when they are killed.
_GUARD = 'read -r _; kill -s KILL -- "-$1"; rm -rf -- "$2"'


def free_ports(count: int) -> list[int]:
    """Return *count* different TCP ports on which nobody listens."""
    with contextlib.ExitStack() as held:
        return [_hold_port(held) for _ in range(count)]


def _hold_port(held: contextlib.ExitStack) -> int:
    while True:
        candidate = held.enter_context(socket.socket())
        with contextlib.suppress(OSError):
            candidate.bind(("127.0.0.1", random.choice(_PORTS)))
            return int(candidate.getsockname()[1])


def accepts_connections(port: int) -> bool:
    """Whether somebody listens on this port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def temporary_directory(purpose: str) -> Path:
    """Make a directory for a server's data; the server's owner removes it."""
    return Path(tempfile.mkdtemp(prefix=f"forkjoin-{purpose}-"))


class ServerDied(Exception):
    """A server that a test started ended by itself, or never became ready; holds the end of its log."""


@dataclass
class Server:
    """A server process in a session of its own, with its log in a file."""

    name: str
    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None  # run as this user; only root may say so
    stop_signal: signal.Signals = signal.SIGTERM
    _process: subprocess.Popen[bytes] | None = None
    _guard: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.directory / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """Its process id, while it runs."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, ready: Callable[[], object], *, seconds: float = 60) -> None:
        """Start it and wait until *ready* is true.

        Raises:
            ServerDied: It ended first, or was not ready within *seconds*.
        """
        self._spawn()
        try:
            wait_until(lambda: not self.running or ready(), f"{self.name} is ready", seconds=seconds)
        except TimeoutError as late:
            self.kill()
            raise ServerDied(f"{late}; its log ends with\n{self._log_tail()}") from None
        if not self.running:
            raise ServerDied(f"{self.name} ended while starting; its log ends with\n{self._log_tail()}")

    def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env=_neutral_environment() | dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self.user,
                group=None if self.user is None else pwd.getpwnam(self.user).pw_gid,
                extra_groups=None if self.user is None else [],
            )
        guard = ["sh", "-c", _GUARD, "guard", str(self._process.pid), str(self.directory)]
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)

    def stop(self, how: signal.Signals | None = None, *, seconds: float = 30) -> None:
        """End it in an orderly way, by force when that takes too long; nothing happens when it does not run."""
        if self._process is None:
            return
        family = self._family()
        self._process.send_signal(how or self.stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)
        self._end(family)

    def kill(self) -> None:
        """SIGKILL it and all its children; nothing happens when it does not run."""
        if self._process is not None:
            self._end(self._family())

    def _family(self) -> list[psutil.Process]:
        # By descent, not by process group: Postgres puts each backend, and Erlang each port program, into its own.
        assert self._process is not None
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _end(self, family: Sequence[psutil.Process]) -> None:
        assert self._process is not None
        assert self._guard is not None
        self._guard.kill()  # before the process id may be somebody else's
        self._guard.communicate()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until(lambda: not any(map(_alive, family)), f"{self.name} has ended", seconds=10)
        self._process.wait(timeout=10)
        self._process = None

    def _log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _neutral_environment() -> dict[str, str]:
    # A setting for somebody else's broker or database, such as RABBITMQ_DEFAULT_USER, must not reach ours.
    return {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_", "PG"))}


def _alive(process: psutil.Process) -> bool:
    # A killed grandchild stays a zombie until init collects it, which is not ours to wait for.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
