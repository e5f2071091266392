"""The command ``forkjoin-worker``; the one place where a worker is wired together."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Final

import structlog
import typer

from agent_worker.errors import WorkerConfigError
from agent_worker.loading import load_registry
from agent_worker.monitoring import WorkerMonitor
from agent_worker.registry import AgentRegistry
from agent_worker.settings import WorkerSettings
from agent_worker.worker import Worker
from messaging.limits import MAX_PREFETCH
from messaging.monitoring.metered_broker import MeteredBroker
from messaging.monitoring.monitored import open_endpoint
from messaging.port import Broker, BrokerError
from messaging.rabbitmq import RabbitmqBroker, broker_of
from messaging.settings import SettingsInvalid
from messaging.telemetry import LogFormat, LogLevel, configure_logging
from messaging.tracing.opening import open_tracing

CLOSE_TIMEOUT: Final = 5.0  # seconds for the broker connection, then for everything else that may linger

_FAILED: Final = 1
_WRONG_USAGE: Final = 2

log = structlog.get_logger(__name__)

_HELP = """Run agents: take their tasks from RabbitMQ and report the results.

MODULE:REGISTRY names your agents: [bold]my_agents:agents[/bold] for a file my_agents.py in this directory with

    from agent_worker import AgentRegistry

    agents = AgentRegistry()

    @agents.agent("research")
    async def research(input: dict) -> dict:
        return {"found": input["topic"]}

Start as many workers as you like. SIGTERM or Ctrl-C finishes what runs and exits with 0; a second one gives it back to
the queue and exits at once. Exit code 1: the broker refused us, or a bug. Exit code 2: wrong usage or settings.
"""

_EPILOG = "Environment variables:\n\n" + "\n\n".join(
    f"[bold]{name}[/bold]  {what}" for name, what in WorkerSettings.variables()
)

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.command(help=_HELP, epilog=_EPILOG)
def work(
    target: Annotated[str, typer.Argument(metavar="MODULE:REGISTRY", help="The AgentRegistry to serve.")],
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_PREFETCH, help="Attempts of each agent at once in this process. Default: 10."),
    ] = None,
    log_level: Annotated[LogLevel | None, typer.Option(case_sensitive=False, help="Default: INFO.")] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="Default: console on a terminal, else json.")] = None,
) -> None:
    """Run a worker until it is told to stop."""
    try:
        settings = WorkerSettings.load(worker_concurrency=concurrency, log_level=log_level, log_format=log_format)
        configure_logging(settings.log_level, settings.log_format)
        registry = load_registry(target)
    except (SettingsInvalid, WorkerConfigError) as error:
        typer.echo(f"forkjoin-worker: {error}", err=True)
        raise typer.Exit(_WRONG_USAGE) from None
    raise typer.Exit(asyncio.run(serve(registry, settings)))


def main() -> None:
    """Run the command."""
    app(prog_name="forkjoin-worker")


async def serve(registry: AgentRegistry, settings: WorkerSettings) -> int:
    """Work until a signal says to stop, and return the exit code."""
    # The scheme, checked by the settings, decides on the adapter; amqp and amqps are what there is.
    broker = broker_of(settings, settings.worker_id)
    structlog.contextvars.bind_contextvars(worker_id=settings.worker_id)
    code = _FAILED
    try:
        async with (
            open_tracing(settings, "forkjoin-worker", settings.worker_id),
            _worker(broker, registry, settings) as worker,
        ):
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, worker.stop)
            await worker.run_until_stopped()
        code = 0
    except SettingsInvalid as error:
        typer.echo(f"forkjoin-worker: {error}", err=True)
        return _WRONG_USAGE
    except BrokerError as error:
        log.error("The worker cannot go on", action="worker_failed", error=str(error))
    finally:
        await _close(broker)
        _exit_at_latest(CLOSE_TIMEOUT, code)
    log.info("The worker has stopped", action="worker_stopped")
    return code


@asynccontextmanager
async def _worker(broker: RabbitmqBroker, registry: AgentRegistry, settings: WorkerSettings) -> AsyncIterator[Worker]:
    """Yield the worker; where a port is set, count what it does, and answer for it there."""
    options = settings.options()
    if settings.http_port is None:
        yield Worker(broker, registry, options)
        return
    monitor = WorkerMonitor(broker, lambda: broker.reconnects, options.concurrency)
    metered = MeteredBroker(broker, monitor.meter.broker)
    worker = Worker(metered, registry, options, book=monitor.book, observer=monitor.attempts.ended)
    monitor.watch(worker)
    async with open_endpoint(settings, settings.http_port, monitor, monitor.meter.loop_lag):
        yield worker


async def _close(broker: Broker) -> None:
    try:
        await asyncio.wait_for(broker.close(), CLOSE_TIMEOUT)
    except TimeoutError:
        log.warning("The broker did not close the connection in time", action="close_timed_out")


def _exit_at_latest(seconds: float, code: int) -> None:
    """End the process even if agents' tasks ignore their cancellation, or threads of theirs do not end."""
    timer = threading.Timer(seconds, _exit_now, (code,))
    timer.daemon = True
    timer.start()


def _exit_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
