"""What the endpoint asks of a service, and how a service opens it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from messaging.monitoring.condition import Condition
from messaging.monitoring.instruments import Instrument
from messaging.monitoring.loop_lag import LoopLag
from messaging.settings import ServiceSettings, SettingsInvalid


class Monitored(Protocol):
    """A service that can be asked how it is."""

    async def condition(self) -> Condition:
        """Return the condition that it is in; takes a few seconds at most."""

    async def instruments(self) -> Sequence[Instrument]:
        """Return its numbers; takes a few seconds at most."""


@asynccontextmanager
async def open_endpoint(settings: ServiceSettings, port: int, monitored: Monitored, lag: LoopLag) -> AsyncIterator[int]:
    """Answer at the settings' host and at *port* for as long as this is entered, and yield the port.

    Raises:
        SettingsInvalid: The packages for it are missing, or nobody can listen there.
    """
    try:
        from messaging.monitoring.endpoint import listening
    except ModuleNotFoundError as missing:
        message = f"FORKJOIN_HTTP_PORT is set, which needs {missing.name}: pip install 'forkjoin[monitoring]'"
        raise SettingsInvalid(message) from missing
    async with AsyncExitStack() as until_closed:
        try:
            opened = await until_closed.enter_async_context(listening(settings.http_host, port, monitored))
        except OSError as error:
            where = f"{settings.http_host}, port {port}"
            raise SettingsInvalid(f"FORKJOIN_HTTP_PORT: cannot listen at {where}: {error.strerror or error}") from error
        measuring = asyncio.create_task(lag.run(), name="loop lag")
        try:
            yield opened
        finally:
            measuring.cancel()
            await asyncio.wait([measuring])
