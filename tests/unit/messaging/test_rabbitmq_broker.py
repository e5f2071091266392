from datetime import timedelta

import pytest

from messaging.port import Queue, QueueKind
from messaging.rabbitmq import RabbitmqBroker
from messaging.rabbitmq.declaration import queue_arguments


@pytest.mark.parametrize(
    "url",
    ["http://user:the-secret@host/", "amqp:///the-secret", "user:the-secret@host", "", "amqp://u:the-secret@h:x/"],
)
def test_a_url_that_is_not_amqp_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match="amqp://user:password@host:5672/vhost") as refusal:
        RabbitmqBroker(url, name="test")
    assert "the-secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("queue", "arguments"),
    [
        (Queue("q", QueueKind.QUORUM), {"x-queue-type": "quorum"}),
        (Queue("q", QueueKind.CLASSIC), {"x-queue-type": "classic"}),
        (Queue("q", QueueKind.EXCLUSIVE), {}),
        (
            Queue("q", QueueKind.CLASSIC, expires=timedelta(hours=1)),
            {"x-queue-type": "classic", "x-expires": 3_600_000},
        ),
    ],
    ids=["quorum", "classic", "exclusive", "expiring"],
)
def test_a_queues_arguments_are_those_that_never_differ_between_brokers(
    queue: Queue, arguments: dict[str, object]
) -> None:
    assert queue_arguments(queue) == arguments
