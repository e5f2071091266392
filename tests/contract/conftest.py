"""The broker under test, once for each adapter."""

from collections.abc import AsyncIterator

import pytest

from messaging.port import Broker
from tests.contract.backends import Backend, MemoryBackend, MeteredBackend, RabbitmqBackend


@pytest.fixture(params=["memory", "metered", "rabbitmq"])
def amqp_address(request: pytest.FixtureRequest) -> str | None:
    """The URL of a fresh vhost, or None for the in-memory adapter."""
    return request.getfixturevalue("amqp_url") if request.param == "rabbitmq" else None


@pytest.fixture
async def backend(request: pytest.FixtureRequest, amqp_address: str | None) -> AsyncIterator[Backend]:
    backend: Backend
    if amqp_address is None:
        metered = "metered" in request.node.callspec.params.values()
        backend = MeteredBackend() if metered else MemoryBackend()
    else:
        backend = RabbitmqBackend(amqp_address)
        await backend.start()
    yield backend
    await backend.close()


@pytest.fixture
async def broker(backend: Backend) -> Broker:
    """A connected client."""
    return await backend.client()


@pytest.fixture
async def other(backend: Backend) -> Broker:
    """A second client of the same broker."""
    return await backend.client()
