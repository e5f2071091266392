"""The client of the Celery chords, in a process of its own: it blocks, and must be killed when it blocks for ever.

It reads a line of JSON for each load from stdin and answers with a line on stdout.
"""

import json
import os
import sys
import time
from typing import Any

from celery import chord, group
from celery.result import AsyncResult

from tests.benchmarks.loads import Load
from tests.benchmarks.systems.celery_app import app, collect, echo
from tests.benchmarks.systems.port import WrongResults, check

_POLL_SECONDS = float(os.environ["BENCH_CHORD_SECONDS"])
_WORKERS_SECONDS = 60.0


def main(workers: int) -> None:
    """Say when all workers are there, then do loads until stdin ends."""
    deadline = time.monotonic() + _WORKERS_SECONDS
    while len(app.control.ping(timeout=0.5)) < workers:
        if time.monotonic() > deadline:
            sys.exit(f"{workers} Celery workers were not there within {_WORKERS_SECONDS:g} s")
    _answer({"ready": True})
    for line in sys.stdin:
        _answer(_done(Load(**json.loads(line))))


def _done(load: Load) -> dict[str, Any]:
    try:
        times = [_exchange(load, 1) for _ in range(load.runs)] if load.one_by_one else []
        return {"wall_seconds": sum(times) if times else _exchange(load, load.runs), "times": times}
    except WrongResults as wrong:
        return {"wrong": str(wrong)}
    except Exception as failure:  # whatever Celery, its broker or its backend raises belongs into the table
        return {"wrong": f"{type(failure).__name__}: {failure}"}


def _exchange(load: Load, runs: int) -> float:
    headers = [[echo.s(**load.given(branch)) for branch in range(load.branches)] for _ in range(runs)]
    started = time.perf_counter()
    joins: list[AsyncResult[Any]] = [_submit(header) for header in headers]
    results = [join.get(timeout=load.seconds, interval=_POLL_SECONDS) for join in joins]
    elapsed = time.perf_counter() - started
    for result, join in zip(results, joins, strict=True):
        check(result, load)
        _stop_listening(join)
    return elapsed


def _submit(header: list[Any]) -> AsyncResult[Any]:
    # Called the usual way, a chord is first looked at after a second, whatever the settings say.
    tasks, body = group(header), collect.s()
    return chord(tasks, body).run(tasks, body, (), app=app, countdown=_POLL_SECONDS, interval=_POLL_SECONDS)


def _stop_listening(join: AsyncResult[Any]) -> None:
    # The Redis backend subscribes to each task of a header, and stays subscribed: later chords would pay for it.
    consumer = getattr(app.backend, "result_consumer", None)
    if consumer is not None and join.parent is not None:
        for member in join.parent.results:
            consumer.cancel_for(member.id)


def _answer(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
