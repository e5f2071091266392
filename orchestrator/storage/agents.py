"""Which agents there are, what is under way for each of them, and how they are limited.

No index tells agents apart, so both looks go by way of the runs. Open attempts are in unfinished runs only, and all of
them are counted. The agents of runs that have ended are looked for in the newest runs, up to a number of steps.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from orchestrator.engine.agent_limit import AgentLimit
from orchestrator.storage.database import Database, Row
from schemas.statuses import StepStatus

RECENT: Final = timedelta(hours=24)  # since a run was requested whose agents are known, though it has ended
RECENT_STEPS: Final = 100_000  # looked at for them, those of the newest runs first: a tenth of a second

_OPEN: Final = """
    SELECT s.agent_name, s.status, s.worker_id, s.task_id IN (
        SELECT task_id FROM outbox WHERE held_at IS NOT NULL
    ) IS TRUE AS held, count(*) AS number
    FROM runs AS r JOIN step_executions AS s ON s.run_id = r.id
    WHERE r.status = 'RUNNING' AND s.status IN ('PENDING', 'QUEUED', 'RUNNING') AND s.agent_name IS NOT NULL
    GROUP BY s.agent_name, s.status, s.worker_id, held
"""
# The inner LIMIT makes the planner go from run to run, so that the outer one can stop it. Rows are filtered outside of
# both, for those that are filtered inside would be read and not counted.
_RECENT: Final = """
    SELECT DISTINCT agent_name FROM (
        SELECT s.agent_name, s.attempt
        FROM runs AS r CROSS JOIN LATERAL (
            SELECT agent_name, attempt FROM step_executions WHERE run_id = r.id LIMIT $2
        ) AS s
        WHERE r.created_at > now() - $1::interval ORDER BY r.created_at DESC LIMIT $2
    ) AS newest
    WHERE agent_name IS NOT NULL AND attempt > 0
"""
_LIMITS: Final = """
    SELECT agent_name, max_concurrency, rate_per_second FROM agent_limits
    WHERE max_concurrency IS NOT NULL OR rate_per_second IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class BusyWorker:
    """A worker, and how many attempts of one agent it runs."""

    worker_id: str
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentActivity:
    """An agent, with its open attempts by what has become of them."""

    agent_name: str
    limit: AgentLimit | None = None
    waiting: int = 0  # their tasks are held back by the limit
    queued: int  # their tasks are with RabbitMQ, or about to be
    running: int
    pending: int  # they wait for a slot of their block, or for the time of the next attempt
    workers: Sequence[BusyWorker]  # of those that run, the busiest first


async def list_agents(database: Database, *, recent_steps: int = RECENT_STEPS) -> Sequence[AgentActivity]:
    """Return the agents with open attempts or a limit, and those that had attempts in recent runs, by name.

    Args:
        database: Where the runs are.
        recent_steps: How many steps of recent runs are looked at; agents that only older ones name are left out.
    """
    async with database.connection() as connection:
        counted = await connection.fetch(_OPEN)
        recent = await connection.fetch(_RECENT, RECENT, recent_steps)
        limits = {name: AgentLimit(*limit) for name, *limit in await connection.fetch(_LIMITS)}
    by_agent: defaultdict[str, list[Row]] = defaultdict(list)
    for row in counted:
        by_agent[row["agent_name"]].append(row)
    names = by_agent.keys() | {row["agent_name"] for row in recent} | limits.keys()
    return [_activity(name, by_agent[name], limits.get(name)) for name in sorted(names)]


def _activity(agent_name: str, counted: Iterable[Row], limit: AgentLimit | None) -> AgentActivity:
    statuses: Counter[str] = Counter()
    workers: Counter[str] = Counter()
    waiting = 0
    for row in counted:
        if row["held"]:
            waiting += row["number"]
            continue
        statuses[row["status"]] += row["number"]
        if row["status"] == StepStatus.RUNNING and row["worker_id"] is not None:
            workers[row["worker_id"]] += row["number"]
    busiest = sorted(workers.items(), key=lambda worker: (-worker[1], worker[0]))
    return AgentActivity(
        agent_name=agent_name,
        limit=limit,
        waiting=waiting,
        queued=statuses[StepStatus.QUEUED],
        running=statuses[StepStatus.RUNNING],
        pending=statuses[StepStatus.PENDING],
        workers=[BusyWorker(*worker) for worker in busiest],
    )
