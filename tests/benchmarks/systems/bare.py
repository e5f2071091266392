"""Bare request/reply with aio-pika, as its documentation shows it: the reference of all ratios.

It forks and joins nothing and stores nothing: each branch is a request, each result a reply. Whatever an orchestrator
adds costs, unless its messaging is better than this.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from pamqp.common import Arguments

from tests.acceptance.cluster import ROOT
from tests.benchmarks.loads import Group, Load
from tests.benchmarks.measurement import Role
from tests.benchmarks.systems.port import Outcome, check
from tests.services.rabbitmq import RabbitMQ

WORKERS = 2
_REQUESTS, _REPLIES = "bench.requests", "bench.replies"
_PREFETCH = 100
_UNCONFIRMED = 500
_QUORUM: Arguments = {"x-queue-type": "quorum"}
_LARGEST = 10_000
_SECONDS_TO_START = 30.0


class Bare:
    """One caller, in this process, and two worker processes."""

    name = "bare aio-pika"
    settings = (
        f"aio-pika request/reply; {WORKERS} worker processes; uvloop; quorum queues, persistent, publisher confirms, "
        f"an ack each after the reply is confirmed; prefetch {_PREFETCH}, at most {_UNCONFIRMED} requests unconfirmed"
    )

    def __init__(self, rabbitmq: RabbitMQ) -> None:
        self._rabbitmq = rabbitmq
        self._url: str | None = None
        self._connection: aio_pika.abc.AbstractConnection | None = None
        self._workers: list[subprocess.Popen[bytes]] = []
        self._replies: list[AbstractIncomingMessage] = []
        self._wanted = 0
        self._all_there = asyncio.Event()

    def takes(self, load: Load) -> bool:
        """Whether it is plain work of a size that bears repeating."""
        return load.group in (Group.BLOCK, Group.RUNS, Group.LATENCY) and load.branches <= _LARGEST

    def processes(self) -> Mapping[Role, Sequence[int]]:
        """Return the workers' processes."""
        return {Role.WORKERS: [worker.pid for worker in self._workers]}

    async def start(self) -> None:
        """Declare both queues and start the workers."""
        self._url = self._rabbitmq.new_vhost()
        self._connection = await aio_pika.connect(self._url, timeout=_SECONDS_TO_START)
        self._publishing, consuming = await self._connection.channel(), await self._connection.channel()
        await consuming.set_qos(_UNCONFIRMED)
        await self._publishing.declare_queue(_REQUESTS, durable=True, arguments=_QUORUM)
        replies = await consuming.declare_queue(_REPLIES, durable=True, arguments=_QUORUM)
        await replies.consume(self._take_reply)
        self._workers = [self._start_worker() for _ in range(WORKERS)]
        async with asyncio.timeout(_SECONDS_TO_START):
            await asyncio.gather(*(asyncio.to_thread(_wait_until_ready, worker) for worker in self._workers))

    async def run(self, load: Load) -> Outcome:
        """Send the requests of all branches and wait for their replies; a run is a group of them."""
        body = [json.dumps(load.given(branch)).encode() for branch in range(load.branches)]
        if load.one_by_one:
            times = [await self._exchange(load, body, 1) for _ in range(load.runs)]
            return Outcome(sum(times), tuple(times))
        return Outcome(await self._exchange(load, body, load.runs))

    async def stop(self) -> None:
        """Kill the workers and delete the vhost."""
        for worker in self._workers:
            worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()
        self._workers = []
        if self._connection is not None:
            await self._connection.close()
        if self._url is not None:
            self._rabbitmq.drop_vhost(self._url)

    async def _exchange(self, load: Load, bodies: list[bytes], runs: int) -> float:
        self._replies, self._wanted = [], len(bodies) * runs
        self._all_there.clear()
        room = asyncio.Semaphore(_UNCONFIRMED)
        started = time.perf_counter()
        requests = [self._request(f"{run}/{n}", body, room) for run in range(runs) for n, body in enumerate(bodies)]
        await asyncio.gather(*requests)
        await self._all_there.wait()
        elapsed = time.perf_counter() - started
        by_number = {reply.correlation_id: json.loads(reply.body) for reply in self._replies}
        for run in range(runs):
            check([by_number[f"{run}/{n}"] for n in range(len(bodies)) if f"{run}/{n}" in by_number], load)
        return elapsed

    async def _request(self, number: str, body: bytes, room: asyncio.Semaphore) -> None:
        message = aio_pika.Message(body, delivery_mode=2, correlation_id=number, reply_to=_REPLIES)
        async with room:
            await self._publishing.default_exchange.publish(message, _REQUESTS, mandatory=True)

    async def _take_reply(self, reply: AbstractIncomingMessage) -> None:
        await reply.ack()
        self._replies.append(reply)
        if len(self._replies) == self._wanted:
            self._all_there.set()

    def _start_worker(self) -> "subprocess.Popen[bytes]":
        assert self._url is not None
        module = "tests.benchmarks.systems.bare_worker"
        command = [sys.executable, "-m", module, self._url, _REQUESTS, str(_PREFETCH)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def _wait_until_ready(worker: "subprocess.Popen[bytes]") -> None:
    assert worker.stdout is not None
    assert worker.stdout.readline(), f"a bare worker ended with {worker.wait()}; its error is above"
