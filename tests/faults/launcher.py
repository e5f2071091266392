"""Runs a real command in which one thing goes wrong: ``python -m tests.faults.launcher FAULT N serve|worker …``.

*FAULT* is a crash point (`messaging.crash_points`), after a colon perhaps with the kind of what the passage is about:
``outbox.published:GateTicket``. The process ends itself with SIGKILL at the *N*-th passage. Or it is an operation that
succeeds and says the opposite for the *N*-th time (`tests.faults.lies`), as ``lie.commit``. ``none 0`` is no fault.

Tests call `launch` instead: it forks the process from one that has imported everything already, and so is faster.
"""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from agent_worker.reporter import Report
from messaging.crash_points import CRASH_POINTS, CrashPoint, arm
from orchestrator.storage.changes import OutboxRow
from tests.acceptance.cluster import Cluster, Service
from tests.faults.lies import LIES

NO_FAULT = "none"

# An ack is written at the end of the present turn of the event loop; before that it would die with the process.
_AFTER_THIS_TURN = frozenset({"intake.acked", "gate.tickets_acked", "worker.acked"})
_PRELOADED = ["orchestrator.cli.app", "orchestrator.bootstrap", "agent_worker.cli", "tests.acceptance.journal_agents"]

_inputs: ContextVar[frozenset[str]] = ContextVar("_inputs", default=frozenset())


@dataclass
class Death:
    """Ends this process at the *passage*-th passage of *point* that is about *kind* (any, where it is empty)."""

    point: CrashPoint
    kind: str
    passage: int

    def __call__(self, point: CrashPoint, about: object) -> None:
        """Count a passage."""
        kinds = kinds_of(about)
        if point == "transaction.locked":
            _inputs.set(kinds)  # of this task: its transaction is written and committed in it too
        elif point == "transaction.written":
            kinds = _inputs.get()
        if point == self.point and (self.kind in kinds or not self.kind) and not _is_empty(about):
            self.passage -= 1
            if self.passage == 0:
                self._die()

    def _die(self) -> None:
        if self.point in _AFTER_THIS_TURN:
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGKILL)
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def kinds_of(about: object) -> frozenset[str]:
    """Return the names of the kinds of what a passage is about."""
    if isinstance(about, str) or not isinstance(about, Collection):
        return frozenset() if about is None else frozenset({_kind(about)})
    return frozenset(map(_kind, about))


def _kind(one: object) -> str:
    match one:
        case str():
            return one
        case OutboxRow():
            return one.type
        case Report():
            return "result" if one.final else "sign of life"
        case _:
            return type(one).__name__


def _is_empty(about: object) -> bool:
    return isinstance(about, Collection) and not about


def prepare(fault: str, number: int) -> None:
    """Make *fault* happen in this process for the *number*-th time."""
    name, _, kind = fault.partition(":")
    if name in LIES:
        LIES[name](number)
    elif name != NO_FAULT:
        [point] = [point for point in CRASH_POINTS if point == name]
        arm(Death(point, kind, number))


def run(fault: str, number: int, command: str, arguments: Sequence[str]) -> None:
    """Run ``forkjoin serve`` or ``forkjoin-worker`` in this process, with a fault."""
    prepare(fault, number)
    match command:
        case "serve":
            from orchestrator.cli.app import app

            app(["serve", *arguments], prog_name="forkjoin")
        case "worker":
            from agent_worker.cli import app as worker

            worker(list(arguments), prog_name="forkjoin-worker")
        case _:
            raise SystemExit(f"unknown command {command!r}: it is serve or worker")


class Forked:
    """A forked process, with as much of `subprocess.Popen` as a `Service` asks for."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit code."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("a forked service", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL it."""
        self.send_signal(signal.SIGKILL)


def launch(
    cluster: Cluster, command: str, *arguments: str, fault: str = NO_FAULT, number: int = 0, **environment: str
) -> Service:
    """Fork a service of the cluster, and do not wait for anything."""
    log = cluster.directory / f"service-{len(cluster.services)}.log"
    log.touch()  # the test may read it before the process writes it
    process = _forkserver().Process(
        target=_run_forked,
        args=(str(log), {**cluster.environment, **environment}, fault, number, command, arguments),
    )
    process.start()
    handle: Any = Forked(process)
    service = Service(handle, log)
    cluster.services.append(service)
    return service


def _forkserver() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_PRELOADED])
    return context


def _run_forked(
    log: str, environment: Mapping[str, str], fault: str, number: int, command: str, arguments: Sequence[str]
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    run(fault, number, command, arguments)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
