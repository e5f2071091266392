"""Finished runs in the tables, as after months of use."""

import urllib.parse
from dataclasses import replace
from typing import Final

from tests.services.postgres import Postgres

BRANCHES: Final = 10  # of each stored run

_WORKFLOW: Final = """
    INSERT INTO workflows (definition_id, workflow_id, version, document) VALUES ('stored', 'stored', '1', '{}')
"""
_RUNS: Final = """
    INSERT INTO runs (id, workflow_id, workflow_version, definition_id, status, input, output, request_digest,
                      created_at, started_at, finished_at)
    SELECT gen_random_uuid(), 'stored', '1', 'stored', 'COMPLETED', '{}', '{}', n::text,
           now() - n * interval '1 second', now() - n * interval '1 second', now() - n * interval '1 second'
    FROM generate_series(1, $1::int) AS n
"""
_BLOCKS: Final = """
    INSERT INTO step_executions (run_id, step_id, join_policy, position, status, attempt, output, branches_total,
                                 branches_open, branches_failed, branches_dispatched, branches_passed,
                                 created_at, started_at, finished_at)
    SELECT id, 'block', 'all', 0, 'COMPLETED', 1, '{}', $1::int, 0, 0, 0, $1::int, created_at, created_at, created_at
    FROM runs
"""
_BRANCHES: Final = """
    INSERT INTO step_executions (run_id, step_id, parent_step_id, branch_name, position, status, agent_name, attempt,
                                 task_id, worker_id, input, output, created_at, queued_at, started_at, finished_at)
    SELECT id, 'b' || n, 'block', 'b' || n, n, 'COMPLETED', 'echo', 1, gen_random_uuid(), 'stored',
           json_build_object('n', n, 'text', repeat('x', 100)), json_build_object('n', n, 'text', repeat('x', 100)),
           created_at, created_at, created_at, created_at
    FROM runs, generate_series(0, $1::int - 1) AS n
"""


def store_finished_runs(postgres: Postgres, database_url: str, runs: int) -> None:
    """Fill the tables with finished runs of `BRANCHES` branches each, and let Postgres learn what they hold."""
    path = urllib.parse.urlsplit(database_url).path
    database = replace(postgres, url=urllib.parse.urlsplit(postgres.url)._replace(path=path).geturl())
    database.execute(_WORKFLOW)
    database.execute(_RUNS, runs)
    database.execute(_BLOCKS, BRANCHES)
    database.execute(_BRANCHES, BRANCHES)
    database.execute("VACUUM ANALYZE")
