"""Celery chords on RabbitMQ, with their results in Postgres or in Redis."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.acceptance.cluster import ROOT
from tests.benchmarks.loads import Group, Load
from tests.benchmarks.measurement import Role
from tests.benchmarks.servers import Servers
from tests.benchmarks.systems.port import Outcome, WrongResults

WORKERS = 2
_APP = "tests.benchmarks.systems.celery_app"
_LARGEST = 10_000
_SECONDS_TO_START = 90.0
_LINE_BYTES = 2**20


@dataclass(frozen=True)
class Backend:
    """Where results are stored, and the settings that serve Celery best with it.

    Attributes:
        queue_type: Of RabbitMQ.
        chord_seconds: Between two looks at an unfinished chord, where the backend has to be asked.
    """

    name: str
    queue_type: str
    chord_seconds: float


# A quorum queue's delays are whole seconds: on one, the shorter wait for a chord's next look would be none at all.
POSTGRES = Backend("Postgres", "classic", 0.05)
REDIS = Backend("Redis", "quorum", 0.05)


class CeleryChord:
    """Two worker processes and a client process; the chord's body returns what the header returned."""

    def __init__(self, servers: Servers, backend: Backend) -> None:
        self._servers = servers
        self._backend = backend
        self._amqp_url: str | None = None
        self._database_url: str | None = None
        self._directory: Path | None = None
        self._workers: list[asyncio.subprocess.Process] = []
        self._client: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        """What it is called, with its backend."""
        return f"Celery chord, {self._backend.name}"

    @property
    def settings(self) -> str:
        """How it is set up."""
        return (
            f"RabbitMQ broker, results and join in {self._backend.name}; {WORKERS} worker processes, pool solo, "
            f"prefetch 100; {self._backend.queue_type} durable queue, persistent, publisher confirms, acks late; "
            f"an unfinished chord is looked at every {self._backend.chord_seconds:g} s"
        )

    def takes(self, load: Load) -> bool:
        """Whether it is plain work of a size that ends in this life."""
        return load.group in (Group.BLOCK, Group.RUNS, Group.LATENCY) and load.branches <= _LARGEST

    def processes(self) -> Mapping[Role, Sequence[int]]:
        """Return the processes of client and workers; their children belong to them."""
        client = [] if self._client is None else [self._client.pid]
        return {Role.CLIENT: client, Role.WORKERS: [worker.pid for worker in self._workers]}

    async def start(self) -> None:
        """Start workers and client on a fresh vhost, and a fresh database where results go there."""
        self._amqp_url = self._servers.rabbitmq.new_vhost()
        self._directory = Path(tempfile.mkdtemp(prefix="forkjoin-bench-celery-"))
        environment = self._environment()
        self._workers = [await self._start_worker(number, environment) for number in range(WORKERS)]
        self._client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.benchmarks.systems.celery_client", str(WORKERS)),
            cwd=ROOT,
            env=environment,
            limit=_LINE_BYTES,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(_SECONDS_TO_START):
            await self._answer()

    async def run(self, load: Load) -> Outcome:
        """Let the client do the load."""
        assert self._client is not None
        assert self._client.stdin is not None
        self._client.stdin.write(json.dumps(asdict(load)).encode() + b"\n")
        answer = await self._answer()
        if "wrong" in answer:
            raise WrongResults(answer["wrong"])
        return Outcome(answer["wall_seconds"], tuple(answer["times"]))

    async def stop(self) -> None:
        """Kill the processes, and delete the vhost and the database."""
        for process in [*self._workers, *([self._client] if self._client else [])]:
            _kill_family(process.pid)
            await process.wait()
        self._workers, self._client = [], None
        if self._amqp_url is not None:
            self._servers.rabbitmq.drop_vhost(self._amqp_url)
        if self._database_url is not None:
            self._servers.postgres.drop_database(self._database_url)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        assert self._amqp_url is not None
        return {
            **os.environ,
            "BENCH_AMQP_URL": self._amqp_url,
            "BENCH_RESULT_BACKEND": self._result_backend(),
            "BENCH_QUEUE_TYPE": self._backend.queue_type,
            "BENCH_CHORD_SECONDS": str(self._backend.chord_seconds),
        }

    def _result_backend(self) -> str:
        if self._backend is REDIS:
            assert self._servers.redis_url is not None, "there is no Redis, so nothing may ask for it"
            return self._servers.redis_url
        self._database_url = self._servers.postgres.new_database()
        return "db+" + self._database_url.replace("postgresql://", "postgresql+psycopg://")

    async def _start_worker(self, number: int, environment: dict[str, str]) -> asyncio.subprocess.Process:
        assert self._directory is not None
        options = ("--pool", "solo", "--without-gossip", "--without-mingle", "--loglevel", "WARNING")
        with (self._directory / f"worker-{number}.log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "celery", "--app", _APP, "worker", "--hostname", f"bench{number}@%h", *options),
                cwd=ROOT,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def _answer(self) -> dict[str, Any]:
        assert self._client is not None
        assert self._client.stdout is not None
        line = await self._client.stdout.readline()
        if not line:
            raise WrongResults(f"the client process ended with {await self._client.wait()}; {self._worker_log()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _worker_log(self) -> str:
        assert self._directory is not None
        text = (self._directory / "worker-0.log").read_text(errors="replace").strip()
        return f"a worker's log ends with: {text[-500:]}" if text else "the workers logged nothing"


def _kill_family(pid: int) -> None:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                member.send_signal(signal.SIGKILL)
