"""On what the figures were measured: without it they mean nothing."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil

from tests.acceptance.cluster import ROOT

_PACKAGES: Final = (
    "aio-pika", "aiormq", "asyncpg", "celery", "kombu", "psycopg", "pydantic", "redis", "sqlalchemy", "uvloop",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A machine and what is installed on it.

    Attributes:
        commit: Of the repository, with a ``+`` when files differ from it; None outside of one.
    """

    processor: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    packages: dict[str, str]
    commit: str | None

    def __str__(self) -> str:
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        return f"{self.processor}, {self.cores} cores, {memory}, {self.system}, Python {self.python}"


def this_machine() -> Machine:
    """Return the machine that this runs on."""
    return Machine(
        _processor(),
        os.cpu_count() or 1,
        int(psutil.virtual_memory().total),
        f"{platform.system()} {platform.release()}",
        platform.python_version(),
        {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        _commit(),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}+" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
