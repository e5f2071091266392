"""How a service opens its tracing, and closes it in the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import structlog
from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider

from messaging.settings import ServiceSettings, SettingsInvalid

if TYPE_CHECKING:
    from messaging.tracing.sdk import Exporter

CLOSE_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_tracing(settings: ServiceSettings, service: str, instance: str) -> "AsyncIterator[Exporter | None]":
    """Yield what exports spans, where the settings want it; at the end, export what waits.

    Spans of other libraries in the process go the same way, unless somebody has seen to them before.

    Raises:
        SettingsInvalid: The packages for it are missing.
    """
    if not settings.tracing:
        yield None
        return
    try:
        from messaging.tracing.sdk import Exporter
    except ModuleNotFoundError as missing:
        message = f"FORKJOIN_TRACING is set, which needs {missing.name}: pip install 'forkjoin[tracing]'"
        raise SettingsInvalid(message) from missing
    exporter = Exporter(service, instance)
    if not is_recorded():
        exporter.use_for_agents()
    log.info("Spans are exported", action="tracing_on", service=service)
    try:
        yield exporter
    finally:
        # In a thread, for a collector that does not answer is waited for.
        await asyncio.to_thread(exporter.close, CLOSE_SECONDS)


def is_recorded() -> bool:
    """Whether somebody has set up an SDK in this process."""
    return not isinstance(get_tracer_provider(), ProxyTracerProvider)
