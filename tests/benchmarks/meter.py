"""CPU time and peak memory of processes, read from outside."""

import contextlib
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.benchmarks.measurement import Role, Usage

_HERE = ("localhost", "127.0.0.1", "::1")


class Meter:
    """What each role's processes, and all that descend from them, use between `start` and `stop`.

    Of this process it is only itself: the servers and the systems descend from it.
    """

    def __init__(self, processes: Mapping[Role, Sequence[int]]) -> None:
        self._processes = {role: pids for role, pids in processes.items() if pids}
        self._before: dict[Role, float] = {}
        self._machine = (0.0, 0.0)

    def start(self) -> None:
        """Begin; forget earlier peaks of memory, where the kernel lets us."""
        for pids in self._processes.values():
            for process in _family(pids):
                _forget_peak(process.pid)
        self._machine = _machine_seconds()
        self._before = self._cpu()

    def stop(self) -> Usage:
        """Return what was used since `start`."""
        after = self._cpu()
        used = {role: after[role] - before for role, before in self._before.items()}
        peaks = {role: sum(map(_peak, _family(pids))) for role, pids in self._processes.items()}
        return Usage(used, peaks, self._foreign(sum(used.values())))

    def _foreign(self, ours: float) -> float:
        busy, total = (after - before for after, before in zip(_machine_seconds(), self._machine, strict=True))
        return max(0.0, busy - ours) / total if total else 0.0

    def _cpu(self) -> dict[Role, float]:
        return {role: sum(map(_cpu_seconds, _family(pids))) for role, pids in self._processes.items()}


def listener(url: str, program: str) -> list[int]:
    """Return the process of this machine that listens where *url* says, as a list of one, or none.

    Args:
        url: Of the server.
        program: How its process name must begin; who else listens, such as Docker's proxy, is not the server.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.hostname not in _HERE:
        return []
    found: list[int] = []
    with contextlib.suppress(psutil.Error):  # macOS shows foreign connections to root only
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == parts.port
            if listens and connection.pid and psutil.Process(connection.pid).name().startswith(program):
                found = [connection.pid]
    return found


def _family(pids: Sequence[int]) -> list[psutil.Process]:
    family: list[psutil.Process] = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            family += [process] if pid == os.getpid() else [process, *process.children(recursive=True)]
    return family


def _machine_seconds() -> tuple[float, float]:
    times = psutil.cpu_times()._asdict()
    # On Linux the time of guests is part of user and nice.
    total = sum(seconds for kind, seconds in times.items() if not kind.startswith("guest"))
    return total - times["idle"] - times.get("iowait", 0.0), total


def _cpu_seconds(process: psutil.Process) -> float:
    # With what its ended children used: Postgres ends a process with each connection.
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        of_children = 0.0 if process.pid == os.getpid() else times.children_user + times.children_system
        return float(times.user + times.system + of_children)
    return 0.0


def _forget_peak(pid: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): resets VmHWM


def _peak(process: psutil.Process) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)  # without /proc: what it holds now
    return 0
