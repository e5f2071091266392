"""What Postgres tells: its settings, its clock, and what lies in our tables."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from orchestrator.doctor.findings import Finding, ok, problem, warning
from orchestrator.engine.compilation import compile_plan
from orchestrator.engine.plan import AgentPlan
from orchestrator.storage.database import Connection, Database
from orchestrator.storage.rows import to_value
from orchestrator.storage.schema import head, schema_difference
from schemas.errors import WorkflowInvalid
from schemas.validation import parse_workflow

OLDEST_TESTED: Final = 170_000  # as Postgres counts versions
CLOCKS_APART: Final = timedelta(seconds=2)
OUTBOX_AGE: Final = timedelta(minutes=1)
RESERVED: Final = 10  # connections for people, backups and monitoring
DEFINITIONS: Final = 200  # the newest: their steps say how long agents may take

_DURABLE: Final = ("fsync", "synchronous_commit", "full_page_writes")
_SETTINGS: Final = ("server_version_num", "server_version", "max_connections", *_DURABLE)
_WAITING: Final = """
    SELECT (SELECT now() - min(due_at) FROM outbox WHERE due_at < now()) AS oldest_unsent,
        (SELECT count(*) FROM dead_letters) AS dead_letters,
        (SELECT count(*) FROM runs WHERE status IN ('PENDING', 'RUNNING')) AS open_runs
"""
_IN_USE: Final = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
_DEFINITIONS: Final = "SELECT document::text AS document FROM workflows ORDER BY created_at DESC LIMIT $1"


@dataclass(frozen=True, slots=True)
class Content:
    """What lies in a database whose schema goes with this version."""

    oldest_unsent: timedelta | None  # for so long the oldest message that is due has been
    dead_letters: int
    open_runs: int
    longest_timeout: float | None  # seconds, of all agent steps; infinite: some have no limit; None: there are none


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What was asked of Postgres."""

    settings: Mapping[str, str]
    in_use: int  # connections, of all its clients
    apart: timedelta  # its clock from ours
    schema_difference: str | None
    content: Content | None  # None where the schema is another


async def ask_database(database: Database) -> DatabaseFacts:
    """Look at a database. Raises what connecting raises."""
    difference = await schema_difference(database)
    async with database.connection() as connection:
        settings = {name: await connection.fetchval("SELECT current_setting($1)", name) for name in _SETTINGS}
        in_use = await connection.fetchval(_IN_USE)
        before = datetime.now(UTC)
        theirs: datetime = await connection.fetchval("SELECT clock_timestamp()")
        apart = theirs - (before + (datetime.now(UTC) - before) / 2)
        content = None if difference is not None else await _content(connection)
    return DatabaseFacts(settings, in_use, apart, difference, content)


def examine_database(facts: DatabaseFacts, pool_size: int) -> Iterator[Finding]:
    """Yield what the facts mean."""
    yield _version(facts.settings)
    yield _schema(facts.schema_difference)
    yield from _durability(facts.settings)
    yield _connections(int(facts.settings["max_connections"]), facts.in_use, pool_size)
    yield _clock(facts.apart)
    if facts.content is not None:
        yield _outbox(facts.content)
        yield _dead_letters(facts.content.dead_letters)


def _version(settings: Mapping[str, str]) -> Finding:
    seen = f"PostgreSQL {settings['server_version']}"
    if int(settings["server_version_num"]) < OLDEST_TESTED:
        return warning("database_version", seen, "the tests run against PostgreSQL 17 and 18; upgrade when you can")
    return ok("database_version", seen)


def _schema(difference: str | None) -> Finding:
    if difference is None:
        return ok("database_schema", f"the schema goes with this version, which knows {head()}")
    seen, _, advice = difference.rpartition(": ")
    return problem("database_schema", seen, advice)


def _durability(settings: Mapping[str, str]) -> Iterator[Finding]:
    off = [name for name in _DURABLE if settings[name] == "off"]
    if off:
        yield problem(
            "database_durability",
            f"{', '.join(off)} off: what was committed may be lost when the machine stops",
            "turn it on; a run may otherwise never end, or a branch count twice",
        )
    else:
        yield ok("database_durability", "commits are durable")


def _connections(most: int, in_use: int, pool_size: int) -> Finding:
    room = (most - RESERVED) // pool_size
    seen = (
        f"max_connections is {most}: room for {max(room, 0)} orchestrators of {pool_size} connections each; "
        f"{in_use} are in use"
    )
    if room < 1:
        return problem("database_connections", seen, "raise max_connections, or lower FORKJOIN_DATABASE_POOL_SIZE")
    if room < 2:
        return warning("database_connections", seen, "raise max_connections before you start a second orchestrator")
    if most - RESERVED - in_use < pool_size:
        return warning("database_connections", seen, "raise max_connections before you start another orchestrator")
    return ok("database_connections", seen)


def _clock(apart: timedelta) -> Finding:
    seconds = apart.total_seconds()
    seen = f"the database's clock is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"
    if abs(apart) > CLOCKS_APART:
        return warning("clock", seen, "let NTP set both: times in queue and running are told wrongly")
    return ok("clock", seen)


def _outbox(content: Content) -> Finding:
    age = content.oldest_unsent
    if age is None or age < OUTBOX_AGE:
        return ok("outbox", f"messages are sent in time; {content.open_runs} runs are open")
    return problem(
        "outbox",
        f"a message has waited for {age.total_seconds():.0f} s to be sent",
        "is an orchestrator running, and does it reach RabbitMQ? Its /readyz and its log say so",
    )


def _dead_letters(count: int) -> Finding:
    if count == 0:
        return ok("dead_letters", "there are no dead letters")
    advice = "look at them with `forkjoin dead-letters list`, then replay or drop them"
    return warning("dead_letters", f"{count} dead letters wait for somebody", advice)


async def _content(connection: Connection) -> Content:
    found = await connection.fetchrow(_WAITING)
    assert found is not None, "it asks for one row"
    oldest_unsent, dead_letters, open_runs = found
    return Content(oldest_unsent, dead_letters, open_runs, await _longest_timeout(connection))


async def _longest_timeout(connection: Connection) -> float | None:
    rows = await connection.fetch(_DEFINITIONS, DEFINITIONS)
    return max((seconds for row in rows for seconds in _timeouts(to_value(row["document"]))), default=None)


def _timeouts(document: Mapping[str, Any]) -> Iterator[float]:
    """Yield how long an attempt of each agent step may take, as the engine has it; infinite without a limit."""
    try:
        plan = compile_plan(parse_workflow(document))
    except WorkflowInvalid:  # a newer version took it: we cannot tell its limits
        yield math.inf
        return
    for step in plan.steps.values():
        if isinstance(step, AgentPlan):
            yield math.inf if step.limits.attempt is None else step.limits.attempt
