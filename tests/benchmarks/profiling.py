"""Where the time goes: py-spy on processes that run already.

py-spy samples from outside, so it needs no change in how a process is started and costs it little. What it needs is
the right to look: root, or on Linux ``sysctl kernel.yama.ptrace_scope=0``.
"""

import collections
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_RATE: Final = 200  # per second
_SHOWN: Final = 40
_STOP_SECONDS: Final = 60.0
_COMMAND: Final = Path(sys.executable).with_name("py-spy")


class Profiler:
    """A py-spy for each process that is attached; writes ``<name>.folded`` and ``<name>.txt``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, subprocess.Popen[str]] = {}

    def attach(self, name: str, pid: int) -> None:
        """Sample a process until `stop`, or until it ends."""
        options = ["--rate", str(_RATE), "--format", "raw", "--duration", "unlimited"]
        command = [str(_COMMAND), "record", "--pid", str(pid), *options, "--output", str(self._folded(name))]
        self._running[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def stop(self) -> list[str]:
        """Stop all; return a line for each: where its profile is, or why there is none."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        lines = [self._finish(name, process) for name, process in self._running.items()]
        self._running = {}
        return lines

    def _finish(self, name: str, process: "subprocess.Popen[str]") -> str:
        try:
            _, said = process.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        folded = self._folded(name)
        if not folded.exists():
            return f"{name}: no profile: {said.strip()[-300:]}"
        text = folded.with_suffix(".txt")
        text.write_text(profile_table(folded.read_text().splitlines()))
        return f"{name}: {text}, and {folded} for speedscope.app or flamegraph.pl"

    def _folded(self, name: str) -> Path:
        return self._directory / f"{name}.folded"


def profile_table(stacks: Iterable[str]) -> str:
    """Return the functions in which most samples are, from lines such as ``outer;inner 12``.

    *own* counts samples in the function itself, *all* also those in what it calls.
    """
    own: collections.Counter[str] = collections.Counter()
    everything: collections.Counter[str] = collections.Counter()
    for line in stacks:
        stack, _, samples = line.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(samples)
        for frame in set(frames):
            everything[frame] += int(samples)
    total = max(1, own.total())
    rows = [
        f"{own[frame] / total:7.1%} {everything[frame] / total:7.1%}  {frame}" for frame, _ in own.most_common(_SHOWN)
    ]
    return "\n".join([f"{total} samples while it used CPU", "    own     all  function", *rows, ""])
