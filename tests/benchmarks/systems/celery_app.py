"""The Celery application, as client and workers import it. All settings are here; README.md says why they are so."""

import os
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

QUEUE = "bench"
_TYPE = os.environ["BENCH_QUEUE_TYPE"]

app = Celery("bench", broker=os.environ["BENCH_AMQP_URL"], backend=os.environ["BENCH_RESULT_BACKEND"])
app.conf.update(
    task_queues=[Queue(QUEUE, Exchange(QUEUE, "topic"), QUEUE, queue_arguments={"x-queue-type": _TYPE})],
    task_default_queue=QUEUE,
    task_default_exchange=QUEUE,
    task_default_exchange_type="topic",
    task_default_routing_key=QUEUE,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=100,
    worker_send_task_events=False,
    result_chord_retry_interval=float(os.environ["BENCH_CHORD_SECONDS"]),
    result_chord_join_timeout=120.0,
    database_engine_options={"pool_pre_ping": False},
    result_expires=3600,
    result_serializer="json",
    task_serializer="json",
    accept_content=["json"],
)
if hasattr(app.backend, "session_manager"):
    # Else a process that is no prefork child connects to Postgres anew for each result that it stores or looks at.
    app.backend.session_manager.forked = True


@app.task(name="echo")
def echo(n: int, text: str) -> dict[str, Any]:
    return {"n": n, "text": text}


@app.task(name="collect")
def collect(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return results
