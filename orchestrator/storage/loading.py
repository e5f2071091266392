"""What a transaction reads: the locked runs, and whatever decisions want to see of them.

Each function is one statement for all runs of the batch.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import takewhile
from typing import Any, Final
from uuid import UUID

from orchestrator.engine.block import DESCRIBED_FAILURES
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import (
    EarlierRun,
    FailedBranch,
    ItemKey,
    Line,
    LineKey,
    ReadyKey,
    RunState,
    RunValues,
    Wanted,
)
from orchestrator.storage.database import Connection
from orchestrator.storage.rows import RUN_COLUMNS, STEP_COLUMNS, STEP_NAMES, to_error, to_run, to_step, to_value
from schemas.references import StepOutcome
from schemas.statuses import StepStatus
from schemas.stored_json import StoredJson

# A run that somebody keeps locked for longer than replicas do ends the transaction (lock_not_available), rather than
# all others. Without parameters several statements travel together: one round trip for all three.
_BEGIN: Final = "BEGIN; SET LOCAL lock_timeout = '1s'; "
_LOCK: Final = "SELECT 1 FROM runs WHERE id IN ({ids}) ORDER BY id FOR UPDATE"

_NO_RUN: Final = ", ".join("NULL" for _ in RUN_COLUMNS.split(","))
_NO_STEP: Final = ", ".join(f"NULL AS {name}" for name in ("first", "asked", "input", "holder", *STEP_NAMES))

# The first look, after the locks were granted: a row for each run, then one for each step: those of these tasks with
# their blocks, and for blocks with a gate those who are next in line for the slots that are free, or will be when the
# ending attempts have ended. Those are told apart by `asked`. The clock is the database's, so that all replicas agree.
# The agents that are limited come along, for what is written here must heed a limit that was set before.
_FIRST_LOOK: Final = f"""
    WITH found AS (
        SELECT run_id, step_id, parent_step_id, task_id = ANY($3::uuid[]) AS ending
        FROM step_executions WHERE task_id = ANY($2::uuid[])
    ), parents AS (
        SELECT run_id, parent_step_id AS step_id, count(*) FILTER (WHERE ending) AS ending
        FROM found WHERE parent_step_id IS NOT NULL GROUP BY run_id, parent_step_id
    ), lines AS (
        SELECT p.run_id, p.step_id, b.branches_passed AS first,
            (p.ending + b.max_parallelism - b.branches_dispatched)::integer AS asked
        FROM parents p JOIN step_executions b USING (run_id, step_id)
        WHERE b.max_parallelism < b.branches_total AND b.branches_passed < b.branches_total AND p.ending > 0
    )
    SELECT clock_timestamp() AS now, (
        SELECT array_agg(agent_name) FROM agent_limits
        WHERE max_concurrency IS NOT NULL OR rate_per_second IS NOT NULL
    ) AS limited, {RUN_COLUMNS}, {_NO_STEP}
    FROM unnest($1::uuid[]) AS k(id) LEFT JOIN runs r USING (id)
    UNION ALL
    SELECT NULL, NULL, {_NO_RUN}, NULL::integer, NULL::integer, NULL::text, g.holder, {STEP_COLUMNS}
    FROM (SELECT run_id, step_id FROM found UNION SELECT run_id, step_id FROM parents) AS k
    JOIN step_executions s USING (run_id, step_id)
    LEFT JOIN gates g ON g.run_id = s.run_id AND g.block_id = s.step_id
    UNION ALL
    SELECT NULL, NULL, {_NO_RUN}, l.first, l.asked, s.input::text, NULL, {STEP_COLUMNS}
    FROM lines l CROSS JOIN LATERAL (
        SELECT * FROM step_executions AS b
        WHERE b.run_id = l.run_id AND b.parent_step_id = l.step_id AND b.position >= l.first
            AND b.status = 'PENDING'
        ORDER BY b.position LIMIT l.asked
    ) AS s
"""  # noqa: S608 - only our own column lists are put in

_STEPS_BY_KEY: Final = f"""
    WITH asked AS (
        SELECT s.run_id, s.step_id, s.parent_step_id
        FROM unnest($1::uuid[], $2::text[]) AS k(run_id, step_id)
        JOIN step_executions s USING (run_id, step_id)
    ), keys AS (
        SELECT run_id, step_id FROM asked
        UNION SELECT run_id, parent_step_id FROM asked WHERE parent_step_id IS NOT NULL
    )
    SELECT {STEP_COLUMNS}, g.holder, s.input::text AS input
    FROM keys JOIN step_executions s USING (run_id, step_id)
    LEFT JOIN gates g ON g.run_id = s.run_id AND g.block_id = s.step_id
"""  # noqa: S608

_OUTCOMES: Final = """
    SELECT s.run_id, s.step_id, s.status, s.output::text AS output, s.error::text AS error
    FROM unnest($1::uuid[], $2::text[]) AS k(run_id, step_id)
    JOIN step_executions s USING (run_id, step_id)
"""

_FAILURES: Final = """
    SELECT run_id, parent_step_id, step_id, CASE WHEN place <= $3 THEN error END AS error
    FROM (
        SELECT s.run_id, s.parent_step_id, s.step_id, s.error::text AS error, s.position,
               row_number() OVER (PARTITION BY s.run_id, s.parent_step_id ORDER BY s.position) AS place
        FROM unnest($1::uuid[], $2::text[]) AS k(run_id, block_id)
        JOIN step_executions s ON s.run_id = k.run_id AND s.parent_step_id = k.block_id
        WHERE s.status = 'FAILED'
    ) AS failed
    ORDER BY run_id, parent_step_id, position
"""

_ERRORS: Final = """
    SELECT s.run_id, s.parent_step_id, s.branch_name, s.error::text AS error
    FROM unnest($1::uuid[], $2::text[]) AS k(run_id, block_id)
    JOIN step_executions s ON s.run_id = k.run_id AND s.parent_step_id = k.block_id
    WHERE s.status = 'FAILED'
    ORDER BY s.run_id, s.parent_step_id, s.position
"""

_WAITING: Final = f"""
    SELECT k.first, k.asked, {STEP_COLUMNS}, s.input::text AS input
    FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::integer[]) AS k(run_id, block_id, first, asked)
    CROSS JOIN LATERAL (
        SELECT * FROM step_executions AS b
        WHERE b.run_id = k.run_id AND b.parent_step_id = k.block_id AND b.position >= k.first AND b.status = 'PENDING'
        ORDER BY b.position LIMIT k.asked
    ) AS s
"""  # noqa: S608

_READY: Final = f"""
    SELECT {STEP_COLUMNS}, s.input::text AS input
    FROM unnest($1::uuid[], $2::text[], $3::integer[]) AS k(run_id, block_id, asked)
    CROSS JOIN LATERAL (
        SELECT * FROM step_executions AS b
        WHERE b.run_id = k.run_id AND b.parent_step_id = k.block_id AND b.ready_at IS NOT NULL
        ORDER BY b.ready_at, b.position LIMIT k.asked
    ) AS s
"""  # noqa: S608

_ITEMS: Final = """
    SELECT run_id, loop_id, position, item::text AS item
    FROM unnest($1::uuid[], $2::text[], $3::integer[]) AS k(run_id, loop_id, position)
    JOIN loop_items USING (run_id, loop_id, position)
"""

_RUN_VALUES: Final = """
    SELECT id, input::text AS input, output::text AS output, error::text AS error
    FROM runs WHERE id = ANY($1::uuid[])
"""

# Of the steps that are nobody's branches, no more than one is open at a time.
_EARLIER: Final = f"""
    SELECT {RUN_COLUMNS}, r.error::text AS error, (
        SELECT s.step_id FROM step_executions AS s
        WHERE s.run_id = r.id AND s.parent_step_id IS NULL AND s.status = 'CANCELLED' LIMIT 1
    ) AS interrupted
    FROM runs AS r WHERE r.id = ANY($1::uuid[])
"""  # noqa: S608

LineId = tuple[UUID, str, int, int]  # run, block, first position, how many
Keys = Mapping[UUID, Collection[str]]


async def begin_and_lock(connection: Connection, ids: Collection[UUID]) -> int:
    """Begin a transaction and lock the runs in the order of their ids; return how many there are."""
    return await lock(connection, ids, before=_BEGIN)


async def lock(connection: Connection, ids: Collection[UUID], *, before: str = "") -> int:
    """Lock the runs in the order of their ids; return how many there are.

    One that came to be after the statement had begun, as while that waited for another, is not among them.
    """
    status = await connection.execute(before + _LOCK.format(ids=", ".join(f"'{run_id}'" for run_id in ids)))
    return int(status.removeprefix("SELECT "))


class Loader:
    """Brings what decisions want into the run states. `holders` tells who holds the gates of the blocks seen."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.holders: dict[tuple[UUID, str], str] = {}
        self.limited_agents: frozenset[str] = frozenset()

    async def first_look(self, wanted: Mapping[UUID, Wanted]) -> tuple[datetime, dict[UUID, RunState]]:
        """Return the database's time, and a state for each run with the tasks that are wanted of it."""
        tasks = [task for some in wanted.values() for task in some.tasks]
        ending = [task for some in wanted.values() for task in some.ending]
        rows = await self._connection.fetch(_FIRST_LOOK, list(wanted), tasks, ending)
        of_runs = list(takewhile(lambda row: row["now"] is not None, rows))
        runs = {row["run.id"]: row for row in of_runs}
        states = {run_id: RunState(to_run(runs[run_id]) if run_id in runs else None) for run_id in wanted}
        next_in_line: dict[LineId, list[StepExecution]] = {}
        for row in rows[len(of_runs) :]:
            if row["asked"] is not None:
                line = (row["run_id"], row["parent_step_id"], row["first"], row["asked"])
                next_in_line.setdefault(line, []).append(to_step(row, to_value(row["input"])))
            else:
                self._put(states, to_step(row), row["holder"])
        _put_lines(states, next_in_line)
        for run_id, some in wanted.items():
            for task in some.tasks:
                states[run_id].tasks.setdefault(task, None)
        self.limited_agents = frozenset(rows[0]["limited"] or ())
        return rows[0]["now"], states

    async def load(self, states: Mapping[UUID, RunState], wanted: Mapping[UUID, Wanted]) -> None:
        """Load all of *wanted* except plans, a statement for each kind of thing; tasks come with the first look."""
        await self._steps(states, {run: w.steps for run, w in wanted.items() if w.steps})
        await self._outcomes(states, {run: w.outcomes for run, w in wanted.items() if w.outcomes})
        await self._failures(states, {run: w.failures for run, w in wanted.items() if w.failures})
        await self._errors(states, {run: w.errors for run, w in wanted.items() if w.errors})
        await self._waiting(states, {run: w.waiting for run, w in wanted.items() if w.waiting})
        await self._ready(states, {run: w.ready for run, w in wanted.items() if w.ready})
        await self._items(states, {run: w.items for run, w in wanted.items() if w.items})
        await self._run_values(states, [run for run, w in wanted.items() if w.run_values])
        await self._earlier(states, {run: w.earlier for run, w in wanted.items() if w.earlier})

    async def _steps(self, states: Mapping[UUID, RunState], steps: Keys) -> None:
        if not steps:
            return
        for row in await self._connection.fetch(_STEPS_BY_KEY, *_columns(steps)):
            self._put(states, to_step(row, to_value(row["input"])), row["holder"])
        for run_id, some in steps.items():
            for step_id in some:
                states[run_id].steps.setdefault(step_id, None)

    async def _outcomes(self, states: Mapping[UUID, RunState], steps: Keys) -> None:
        if not steps:
            return
        for run_id, some in steps.items():
            states[run_id].outcomes.update(dict.fromkeys(some))
        for row in await self._connection.fetch(_OUTCOMES, *_columns(steps)):
            states[row["run_id"]].outcomes[row["step_id"]] = StepOutcome(
                StepStatus(row["status"]), StoredJson(row["output"]), to_value(row["error"])
            )

    async def _failures(self, states: Mapping[UUID, RunState], blocks: Keys) -> None:
        if not blocks:
            return
        found: dict[tuple[UUID, str], list[FailedBranch]] = {
            (run, block): [] for run, some in blocks.items() for block in some
        }
        for row in await self._connection.fetch(_FAILURES, *_columns(blocks), DESCRIBED_FAILURES):
            failure = FailedBranch(row["step_id"], to_error(row["error"]))
            found[row["run_id"], row["parent_step_id"]].append(failure)
        for (run_id, block_id), failures in found.items():
            states[run_id].failures[block_id] = tuple(failures)

    async def _errors(self, states: Mapping[UUID, RunState], blocks: Keys) -> None:
        if not blocks:
            return
        found: dict[tuple[UUID, str], dict[str, Any]] = {
            (run, block): {} for run, some in blocks.items() for block in some
        }
        for row in await self._connection.fetch(_ERRORS, *_columns(blocks)):
            found[row["run_id"], row["parent_step_id"]][row["branch_name"]] = to_value(row["error"])
        for (run_id, block_id), errors in found.items():
            states[run_id].errors[block_id] = errors

    async def _waiting(self, states: Mapping[UUID, RunState], lines: Mapping[UUID, Collection[LineKey]]) -> None:
        if not lines:
            return
        found: dict[LineId, list[StepExecution]] = {(run, *line): [] for run, some in lines.items() for line in some}
        for row in await self._connection.fetch(_WAITING, *(list(column) for column in zip(*found, strict=True))):
            line = (row["run_id"], row["parent_step_id"], row["first"], row["asked"])
            found[line].append(to_step(row, to_value(row["input"])))
        _put_lines(states, found)

    async def _ready(self, states: Mapping[UUID, RunState], blocks: Mapping[UUID, Collection[ReadyKey]]) -> None:
        if not blocks:
            return
        found: dict[tuple[UUID, str], list[StepExecution]] = {}
        asked = {(run, block): count for run, some in blocks.items() for block, count in some}
        keys = [(run, block, count) for (run, block), count in asked.items()]
        for row in await self._connection.fetch(_READY, *(list(column) for column in zip(*keys, strict=True))):
            step = to_step(row, to_value(row["input"]))
            found.setdefault((step.run_id, row["parent_step_id"]), []).append(step)
        for (run_id, block_id), count in asked.items():
            steps = sorted(found.get((run_id, block_id), ()), key=_ready_first)
            states[run_id].put_ready(block_id, count, steps)

    async def _items(self, states: Mapping[UUID, RunState], items: Mapping[UUID, Collection[ItemKey]]) -> None:
        if not items:
            return
        keys = [(run, *key) for run, some in items.items() for key in some]
        for row in await self._connection.fetch(_ITEMS, *(list(column) for column in zip(*keys, strict=True))):
            states[row["run_id"]].items[row["loop_id"], row["position"]] = to_value(row["item"])

    async def _run_values(self, states: Mapping[UUID, RunState], runs: Collection[UUID]) -> None:
        if not runs:
            return
        for row in await self._connection.fetch(_RUN_VALUES, runs):
            values = RunValues(to_value(row["input"]), StoredJson(row["output"]), to_error(row["error"]))
            states[row["id"]].run_values = values

    async def _earlier(self, states: Mapping[UUID, RunState], others: Mapping[UUID, Collection[UUID]]) -> None:
        if not others:
            return
        ids = {run_id for some in others.values() for run_id in some}
        found = {
            row["run.id"]: EarlierRun(replace(to_run(row), error=to_error(row["error"])), row["interrupted"])
            for row in await self._connection.fetch(_EARLIER, list(ids))
        }
        for run_id, some in others.items():
            states[run_id].earlier.update({other: found.get(other) for other in some})

    def _put(self, states: Mapping[UUID, RunState], step: StepExecution, holder: str | None) -> None:
        state = states.get(step.run_id)
        # A forged report may name a task of a run that it does not name; that run is not locked here.
        if state is None:
            return
        if state.steps.get(step.step_id) is None:
            state.put_step(step)
        if holder is not None:
            self.holders[step.run_id, step.step_id] = holder


def _ready_first(step: StepExecution) -> tuple[datetime, int]:
    assert step.ready_at is not None, "it was asked for"
    return step.ready_at, step.position


def _put_lines(states: Mapping[UUID, RunState], lines: Mapping[LineId, Sequence[StepExecution]]) -> None:
    for (run_id, block_id, first, asked), steps in lines.items():
        state = states.get(run_id)
        if state is not None:
            ordered = sorted(steps, key=lambda step: step.position)
            state.put_line(block_id, Line(first, asked, tuple(ordered)))


def _columns(keys: Keys) -> tuple[list[UUID], list[str]]:
    pairs = [(run, step) for run, steps in keys.items() for step in steps]
    return [run for run, _ in pairs], [step for _, step in pairs]
