"""Everything in one process: in-memory broker, embedded Postgres, one replica and one worker.

The parts are the real ones; only the adapters beneath differ. This is the one module where orchestrator and worker
meet.
"""

import importlib.util
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import structlog

from agent_worker.errors import WorkerConfigError
from agent_worker.loading import load_registry
from agent_worker.options import WorkerOptions
from agent_worker.registry import AgentRegistry
from agent_worker.worker import Worker
from messaging.memory import MemoryBroker, MemoryServer
from messaging.tracing.opening import open_tracing
from orchestrator.bootstrap import running_replica
from orchestrator.client import Client
from orchestrator.engine.inputs import CancelRequested
from orchestrator.errors import AgentsMissing, WrongUse
from orchestrator.service.replica import Replica
from orchestrator.settings import Settings
from orchestrator.storage.database import Database
from orchestrator.storage.definitions import register_workflow
from orchestrator.storage.embedded import embedded_postgres, sole_owner
from orchestrator.storage.queries import unfinished_runs
from orchestrator.storage.schema import migrate
from schemas.workflow import AgentStep, Workflow

log = structlog.get_logger(__name__)


@asynccontextmanager
async def embedded_service(
    settings: Settings,
    agents: AgentRegistry,
    concurrency: int,
    registered: Sequence[tuple[Workflow, Mapping[str, Any]]] = (),
) -> AsyncIterator[Client]:
    """Run orchestrator and worker here, on the data directory of the settings, and yield a client.

    Args:
        settings: Where the data directory is.
        agents: What the worker offers.
        concurrency: Attempts of each agent at once.
        registered: Workflows with their documents, to be registered first.

    Raises:
        WrongUse: The embedded Postgres is not installed, or another process runs workflows on the directory.
        DatabaseUnavailable: Postgres does not start.
        SchemaMismatch: The directory was written by a newer version.
        SettingsInvalid: Spans are to be exported, and the packages for that are missing.
    """
    server = MemoryServer()
    async with (
        open_tracing(settings, "forkjoin-run", settings.replica_id) as spans,
        _database(settings) as database,
        _connected(server, "orchestrator") as broker,
        running_replica(settings, database, broker, spans=spans) as replica,
    ):
        await _end_orphans(database, replica, "the process that ran it ended before it was finished")
        for workflow, document in registered:
            await register_workflow(database, workflow, document)
        async with _worker(server, agents, concurrency), _connected(server, "client") as client:
            yield Client(client)
            # Of a run that was cancelled or failed: the message that says so would end with this process.
            await _end_orphans(database, replica, "the run whose step it carried out has ended")


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    with embedded_postgres(settings.data_dir) as url:
        database = Database(url, steady_plans=True)
        try:
            async with sole_owner(database):
                await migrate(database.engine)
                yield database
        finally:
            await database.close()


@asynccontextmanager
async def _connected(server: MemoryServer, name: str) -> AsyncIterator[MemoryBroker]:
    broker = MemoryBroker(server, name=name)
    await broker.connect()
    try:
        yield broker
    finally:
        await broker.close()


@asynccontextmanager
async def _worker(server: MemoryServer, agents: AgentRegistry, concurrency: int) -> AsyncIterator[None]:
    async with _connected(server, "worker") as broker:
        worker = Worker(broker, agents, WorkerOptions(concurrency=concurrency))
        await worker.start()
        try:
            yield
        finally:
            # Every run has ended; what still runs belongs to a cancelled one, and nobody waits for it.
            await worker.close()


async def _end_orphans(database: Database, replica: Replica, reason: str) -> None:
    """Cancel runs that nobody will finish: those of an earlier process that died, whose tasks were in its memory."""
    orphans = await unfinished_runs(database)
    if orphans:
        log.warning("Runs that nobody would finish are cancelled", action="orphans_cancelled", runs=len(orphans))
        await replica.driver.drive([CancelRequested(run_id, reason) for run_id in orphans])


def find_agents(target: str | None, file: Path) -> AgentRegistry:
    """Return the registry that *target*, ``module:attribute``, names, or the `agents` in the agents.py beside *file*.

    Raises:
        WrongUse: There is none, or its module cannot be imported; says what would be right.
    """
    try:
        return load_registry(target) if target is not None else _agents_beside(file)
    except WrongUse:
        raise
    except WorkerConfigError as error:
        raise WrongUse(str(error)) from error
    except Exception as error:  # whatever the module raises while it is imported
        source = target.partition(":")[0] if target is not None else "agents.py"
        raise WrongUse(f"the agents cannot be imported from {source}: {_imported(error)}") from error


def _agents_beside(file: Path) -> AgentRegistry:
    beside = file.resolve().parent / "agents.py"
    if not beside.is_file():
        raise WrongUse(f"say where the agents are: --agents MODULE:REGISTRY, or put an agents.py beside {file.name}")
    found = getattr(_import_file(beside), "agents", None)
    if not isinstance(found, AgentRegistry):
        raise WrongUse(f"{beside.name} beside {file.name} has no AgentRegistry named `agents`")
    if not found.names:
        raise WrongUse(f"the registry in {beside.name} beside {file.name} has no agents")
    return found


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, "a file that ends in .py has a loader"
    assert spec.loader is not None
    sys.path.insert(0, str(path.parent))  # its own imports may lie beside it
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # pydantic looks its types up there
    spec.loader.exec_module(module)
    return module


def _imported(error: Exception) -> str:
    """Return what went wrong, and the last line of a file at which it did."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})" if trace is not None else ""
    return f"{type(error).__name__}: {error}{where}"


def check_agents(workflow: Workflow, agents: AgentRegistry) -> None:
    """Make sure that every agent that the workflow names is there. Raises AgentsMissing."""
    named = {step.agent_name for step in workflow.steps.values() if isinstance(step, AgentStep)}
    missing = sorted(named - set(agents.names))
    if missing:
        raise AgentsMissing(
            f"the workflow names agents that the registry lacks: {', '.join(missing)}; "
            f"it has: {', '.join(sorted(agents.names))}"
        )
