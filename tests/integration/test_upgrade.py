"""An upgrade: what the version before has sent is understood, and a migration passes under runs that go on.

`messages/` holds a message of each kind as a version wrote it. A file there never changes: a later version that can no
longer take one in has broken the promise that two versions work side by side.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from alembic.config import Config

from messaging import topology
from messaging.port import OutgoingMessage, PublishOutcome
from orchestrator.service.notices import GateNotice, GateTicket
from orchestrator.storage import schema
from orchestrator.storage.migrations import versions
from orchestrator.storage.schema import check_schema, head, migrate
from schemas.codec import decode
from schemas.messages import MESSAGES, RunEvent
from tests.integration.documents import agent, one_block, workflow
from tests.integration.system import System
from tests.services.waiting import eventually

VERSIONS = sorted((Path(__file__).parent / "messages").glob("*.json"))
HEAD = head()
HELD = workflow({"one": agent("held")})


@pytest.fixture(params=VERSIONS, ids=lambda path: path.stem)
def earlier(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The messages of one version."""
    found: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return found


async def sent(system: System, earlier: dict[str, Any], name: str, exchange: str, key: str, **ids: UUID) -> None:
    """Publish a message as that version did."""
    body = json.dumps(earlier[name])
    for placeholder, identity in ids.items():
        body = body.replace(f'"{placeholder}"', f'"{identity}"')
    message = OutgoingMessage(exchange, key, name.partition(" ")[0], str(uuid4()), body.encode())
    assert await system.broker.publish([message]) == [PublishOutcome.CONFIRMED]


async def queued(system: System) -> tuple[UUID, UUID]:
    """Return a run with a task that nobody works on, and the task."""
    await system.broker.declare([], [topology.agent_queue("held")])
    run_id = await system.submit(HELD)
    await system.step_is(run_id, "one", "QUEUED")
    return run_id, (await system.task_ids(run_id))["one"]


async def test_a_request_of_an_earlier_version_becomes_a_run(system: System, earlier: dict[str, Any]) -> None:
    async def echo(task: dict[str, Any]) -> dict[str, Any]:
        return task

    await system.start_replica()
    await system.start_worker(echo)
    run_id = uuid4()
    await sent(system, earlier, "RunRequest", topology.SUBMIT_EXCHANGE, topology.RUNS_KEY, RUN=run_id)
    assert await system.ended(run_id) == "COMPLETED"


@pytest.mark.parametrize(("name", "ends"), [("AgentResult completed", "COMPLETED"), ("AgentResult failed", "FAILED")])
async def test_reports_of_an_earlier_version_count(
    system: System, earlier: dict[str, Any], name: str, ends: str
) -> None:
    await system.start_replica()
    run_id, task_id = await queued(system)
    where = (topology.RESULTS_EXCHANGE, topology.result_key("held"))
    await sent(system, earlier, "AgentResult started", *where, RUN=run_id, TASK=task_id)
    await system.step_is(run_id, "one", "RUNNING")
    await sent(system, earlier, name, *where, RUN=run_id, TASK=task_id)
    assert await system.ended(run_id) == ends


async def test_commands_of_an_earlier_version_are_carried_out(system: System, earlier: dict[str, Any]) -> None:
    await system.start_replica()
    run_id, _ = await queued(system)
    await sent(system, earlier, "CancelRun", "", topology.COMMANDS_QUEUE.name, RUN=run_id)
    assert await system.ended(run_id) == "CANCELLED"
    new = uuid4()
    await sent(system, earlier, "RetryRun", "", topology.COMMANDS_QUEUE.name, RUN=run_id, NEW=new)
    await system.step_is(new, "one", "QUEUED")


async def test_a_task_of_an_earlier_version_is_worked_on(system: System, earlier: dict[str, Any]) -> None:
    taken: list[dict[str, Any]] = []

    async def echo(task: dict[str, Any]) -> None:
        taken.append(task)

    await system.start_replica()
    await system.start_worker(echo)
    await sent(system, earlier, "AgentTask", topology.TASKS_EXCHANGE, "echo", RUN=uuid4(), TASK=uuid4())
    await eventually(lambda: taken == [{"said": "hi"}])


def test_every_message_of_an_earlier_version_can_be_read(earlier: dict[str, Any]) -> None:
    models = {model.__name__: model for model in (*MESSAGES, GateTicket, GateNotice)}
    ids = {name: str(UUID(int=number)) for number, name in enumerate(("RUN", "TASK", "NEW"), 1)}
    for name, body in earlier.items():
        text = json.dumps(body)
        for placeholder, identity in ids.items():
            text = text.replace(f'"{placeholder}"', f'"{identity}"')
        decode(models[name.partition(" ")[0]], text.encode())
    assert {name.partition(" ")[0] for name in earlier} == models.keys() - {RunEvent.__name__}  # nobody of us reads it


NEXT_VERSION = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade():
    for table in ("runs", "step_executions", "outbox", "gates"):
        op.add_column(table, sa.Column("new", sa.Text(), nullable=True))
        op.create_index(f"ix_{{table}}_new", table, ["new"])
"""


@contextmanager
def next_version(folder: Path) -> Iterator[None]:
    """Have migrations be those of a version that comes after this one, and only expands."""
    (folder / "v9999_next.py").write_text(NEXT_VERSION.format(head=HEAD))
    config_here = schema._config

    def config() -> Config:
        config = config_here()
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", f"{versions.__path__[0]}\n{folder}")
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "_config", config)
        forget_revisions()
        yield
    forget_revisions()


def forget_revisions() -> None:
    schema.head.cache_clear()
    schema._known.cache_clear()


async def test_a_migration_passes_under_runs_of_the_version_before_that_go_on(system: System, tmp_path: Path) -> None:
    async def echo(task: dict[str, Any]) -> dict[str, Any]:
        return task

    await system.start_replica()
    limited = await system.submit(one_block(40, max_parallelism=2))
    waits, task = await queued(system)
    worker = await system.start_worker(echo)
    open_branches = "SELECT 1 FROM step_executions WHERE run_id = $1 AND status = 'COMPLETED'"
    await eventually(lambda: system.fetch(open_branches, limited))

    with next_version(tmp_path):
        assert await migrate(system.database.engine) == (HEAD, "9999")

    assert await system.ended(limited) == "COMPLETED"
    await check_schema(system.database.engine)  # so that one may start again
    await system.start_replica()
    assert (await system.run(one_block(3))).status == "COMPLETED"
    assert await system.status(waits) == "RUNNING"
    assert task in (await system.task_ids(waits)).values()
    assert worker.ready
