"""Fixtures for every test: RabbitMQ, Postgres, and waiting for conditions. Services start when first asked for."""

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.services import postgres as postgres_sources
from tests.services import rabbitmq as rabbitmq_sources
from tests.services.postgres import Postgres
from tests.services.rabbitmq import RabbitMQ
from tests.services.sources import Announce, Unavailable
from tests.services.waiting import eventually as wait_eventually
from tests.summary import note, noted

Eventually = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="session")
def rabbitmq(request: pytest.FixtureRequest) -> Iterator[RabbitMQ]:
    """A RabbitMQ for the whole session; use `amqp_url` unless the test stops or cuts the broker."""
    service = _take(request.config, "RabbitMQ", rabbitmq_sources.take)
    yield service
    service.remove()


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ) -> Iterator[str]:
    """The URL of a fresh vhost."""
    url = rabbitmq.new_vhost()
    yield url
    rabbitmq.drop_vhost(url)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A Postgres for the whole session; use `database_url` unless the test stops or cuts it."""
    service = _take(request.config, "Postgres", postgres_sources.take)
    yield service
    service.remove()


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    """The ``postgresql://`` URL of a fresh, empty database."""
    url = postgres.new_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture
def eventually() -> Eventually:
    """``await eventually(condition, timeout=60)`` waits until a sync or async condition is true and returns it."""
    return wait_eventually


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say once more what the tests ran against, and what they measured."""
    for section, lines in noted(config).items():
        terminalreporter.section(section)
        for line in lines:
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the lines over, in a process of a parallel run."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["noted"] = noted(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over the lines of a process that has ended; those of one that died are lost with it."""
    for section, lines in getattr(node, "workeroutput", {}).get("noted", {}).items():
        for line in lines:
            note(node.config, section, line)


def _take(config: pytest.Config, name: str, take: Callable[[Announce], Any]) -> Any:
    started = time.monotonic()
    missing = ""
    try:
        service = take(lambda line: _show(config, line))
    except Unavailable as reason:
        missing = str(reason)
    if missing:
        pytest.fail(missing, pytrace=False)
    line = f"{name}: {service.origin}, ready after {time.monotonic() - started:.1f} s"
    note(config, "services", line)
    _show(config, line)
    return service


def _show(config: pytest.Config, line: str) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or capture is None:
        return
    with capture.global_and_fixture_disabled():
        reporter.ensure_newline()
        reporter.write_line(line)
