"""The health of a process: what is in trouble, since when, and one line for each change."""

import asyncio
from datetime import UTC, datetime

from structlog.testing import capture_logs

from messaging.health import HealthBook, HealthStatus
from messaging.memory import MemoryBroker
from tests.services.waiting import eventually


def test_a_process_without_trouble_is_ok() -> None:
    assert HealthBook().health.status is HealthStatus.OK


def test_each_trouble_is_news_once_and_so_is_its_end() -> None:
    book, before = HealthBook(), datetime.now(UTC)
    with capture_logs() as lines:
        assert book.trouble("database", "out of reach")
        assert not book.trouble("database", "still out of reach")
        assert book.trouble("broker", "out of reach")
        [first, second] = book.health.troubles
        assert book.well("database")
        assert not book.well("database")
        assert book.well("broker")
    assert book.health.status is HealthStatus.OK
    assert book.outages == {"database": 1, "broker": 1}
    assert (first.part, first.reason, second.part) == ("database", "out of reach", "broker")
    assert before <= first.since <= datetime.now(UTC)
    assert [(line["action"], line["status"], len(line["reasons"])) for line in lines] == [
        ("health_changed", "degraded", 1),
        ("health_changed", "degraded", 2),
        ("health_changed", "degraded", 1),
        ("health_changed", "ok", 0),
    ]
    assert lines[0]["reasons"][0].startswith("database: out of reach, since 20")


async def test_a_lost_connection_is_seen_though_nobody_asks() -> None:
    broker, book = MemoryBroker(), HealthBook()
    await broker.connect()
    watching = asyncio.create_task(book.watch(broker))
    await asyncio.sleep(0)
    assert book.health.status is HealthStatus.OK
    broker.server.stop()
    await eventually(lambda: book.health.status is HealthStatus.DEGRADED)
    broker.server.start()
    await eventually(lambda: book.health.status is HealthStatus.OK)
    watching.cancel()
    await broker.close()
