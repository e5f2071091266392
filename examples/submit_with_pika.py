"""Submit a run and wait for its result, with nothing of forkjoin: JSON over AMQP, by way of pika.

python examples/submit_with_pika.py
"""

import json
import os
import sys
import uuid
from pathlib import Path

import pika

HERE = Path(__file__).resolve().parent

run_id = str(uuid.uuid4())
request = {
    "version": 1,
    "run_id": run_id,  # chosen here, so that the same request may be sent again safely
    "workflow": json.loads((HERE / "parallel_workflow_example.json").read_text(encoding="utf-8")),
    "input": json.loads((HERE / "parallel_workflow_input.json").read_text(encoding="utf-8")),
    "labels": {"submitted-with": "pika"},
}

url = os.environ.get("FORKJOIN_AMQP_URL", "amqp://guest:guest@localhost:5672/")
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()  # basic_publish then returns when the broker has the message on disk
replies = channel.queue_declare("", exclusive=True).method.queue
channel.basic_publish(
    exchange="orchestrator.submit",
    routing_key="orchestrator.runs",
    body=json.dumps(request).encode(),
    properties=pika.BasicProperties(
        content_type="application/json",
        type="RunRequest",
        message_id=str(uuid.uuid4()),
        delivery_mode=2,
        reply_to=replies,
        correlation_id=run_id,
    ),
    mandatory=True,  # raises UnroutableError where no orchestrator has ever run
)
print(f"submitted run {run_id}", file=sys.stderr)

method, properties, body = next(channel.consume(replies, inactivity_timeout=60))
if method is None:
    sys.exit("no result within 60 seconds: is an orchestrator running, and a worker with the example agents?")
assert properties.correlation_id == run_id
channel.basic_ack(method.delivery_tag)
connection.close()

result = json.loads(body)
if result["status"] != "COMPLETED":
    sys.exit(f"{result['status']}: {result['error']['message']} [{result['error']['code']}]")
print(json.dumps(result["output"], indent=2))
