"""The tables, as SQLAlchemy knows them. Migrations create them; a test compares the two.

Inputs and outputs are `json`, not `jsonb`: it keeps the order of keys and the text of numbers, and costs less to
write. Whatever is filtered or counted has a column of its own.
"""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB

from schemas.statuses import RunStatus, StepStatus

metadata: Final = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "ck": "ck_%(table_name)s_%(constraint_name)s"}
)


def _time(name: str, **options: Any) -> Column[Any]:
    return Column(name, DateTime(timezone=True), **options)


def _one_of(column: str, statuses: type[RunStatus] | type[StepStatus]) -> CheckConstraint:
    values = ", ".join(f"'{status}'" for status in statuses)
    return CheckConstraint(f"{column} IN ({values})", name=column)


# Every definition that a run was started with or that was registered, under the digest of its content. A run points
# at its row for ever; registering a workflow anew adds a row and never changes one.
workflows: Final = Table(
    "workflows",
    metadata,
    Column("definition_id", Text, primary_key=True),
    Column("workflow_id", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("document", JSON, nullable=False),
    _time("created_at", nullable=False, server_default=func.now()),
    _time("registered_at"),  # set when it may be asked for by workflow_id; the newest counts
    Index(None, "workflow_id", "registered_at", postgresql_where=text("registered_at IS NOT NULL")),
)

runs: Final = Table(
    "runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("workflow_id", Text, nullable=False),
    Column("workflow_version", Text, nullable=False),
    Column("definition_id", Text, ForeignKey("workflows.definition_id"), nullable=False),
    Column("status", Text, nullable=False),
    Column("input", JSON),
    Column("output", JSON),
    Column("error", JSON),
    Column("labels", JSONB, nullable=False, server_default=text("'{}'")),
    Column("request_digest", Text, nullable=False),
    Column("reply_to", Text),
    Column("correlation_id", Text),
    _time("created_at", nullable=False),
    _time("started_at"),
    _time("finished_at"),
    _time("due_at"),  # when the run counts as overdue
    Column("retry_of", Uuid, ForeignKey("runs.id", ondelete="SET NULL")),  # the run that it has taken over from
    # Of a sub-workflow's run, whose id is the task id of an attempt of that step.
    Column("parent_run_id", Uuid),
    Column("parent_step_id", Text),
    Column("ancestors", JSON),  # the workflows of the runs above, the outermost first
    Column("traceparent", Text),  # W3C Trace Context: the span that the run's own has above it
    _one_of("status", RunStatus),
    Index(None, "created_at"),
    Index(None, "status", "created_at"),
    Index(None, "due_at", postgresql_where=text("due_at IS NOT NULL")),
    Index(None, "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    Index(None, "retry_of", postgresql_where=text("retry_of IS NOT NULL")),
    Index(None, "labels", postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}),
)

step_executions: Final = Table(
    "step_executions",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("step_id", Text, primary_key=True),
    Column("parent_step_id", Text),  # the block whose branch this is
    Column("branch_name", Text),
    Column("join_policy", Text),
    Column("position", Integer, nullable=False),  # within its block, in the order of the definition
    Column("status", Text, nullable=False),
    Column("agent_name", Text),
    Column("attempt", Integer, nullable=False),
    Column("task_id", Uuid),  # of the current attempt
    Column("worker_id", Text),
    Column("input", JSON),
    Column("output", JSON),
    Column("error", JSON),
    Column("timeout_seconds", Double),
    Column("queue_timeout_seconds", Double),
    Column("heartbeat_timeout_seconds", Double),
    # A block's limit and counters; null on agent steps.
    Column("max_parallelism", Integer),
    Column("branches_total", Integer),
    Column("branches_open", Integer),
    Column("branches_failed", Integer),
    Column("branches_dispatched", Integer),
    Column("branches_passed", Integer),
    Column("branches_ready", Integer),
    _time("created_at", nullable=False),
    _time("queued_at"),
    _time("started_at"),
    _time("heartbeat_at"),
    _time("finished_at"),
    _time("due_at"),  # when the attempt or its branch counts as overdue, or the next attempt starts
    _time("ready_at"),  # since when the next attempt waits for a slot of its block
    Column("postponed", Integer, nullable=False, server_default=text("0")),  # attempts that do not count
    Column("ordinal", Integer, nullable=False, server_default=text("0")),  # within its branch
    Column("branch_timeout_seconds", Double),
    _time("branch_due_at"),  # when the branch counts as overdue
    Column("sub_workflow_id", Text),  # whose runs carry the step out
    Column("sub_workflow_version", Text),  # null: the newest
    _one_of("status", StepStatus),
    Index("uq_step_executions_task_id", "task_id", unique=True, postgresql_where=text("task_id IS NOT NULL")),
    Index(None, "due_at", postgresql_where=text("due_at IS NOT NULL")),
    # Not by the run first: where the tables were never analyzed that would pass for as good a way to a step as its key.
    Index("ix_step_executions_branches", "parent_step_id", "run_id", "position"),
    Index(
        "ix_step_executions_ready",
        "run_id",
        "parent_step_id",
        "ready_at",
        "position",
        postgresql_where=text("ready_at IS NOT NULL"),
    ),
    Index("ix_step_executions_sub_workflows", "run_id", postgresql_where=text("sub_workflow_id IS NOT NULL")),
    # Rows change a few times each; room on the page keeps those changes off the indexes (HOT).
    postgresql_with={"fillfactor": "80"},
)

# Attempts that failed and were followed by another. The last attempt of a step stands in step_executions.
step_attempts: Final = Table(
    "step_attempts",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("step_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("task_id", Uuid),
    Column("worker_id", Text),
    Column("error", JSON, nullable=False),
    _time("queued_at"),
    _time("started_at"),
    _time("finished_at", nullable=False),
    _time("retry_at", nullable=False),  # when the next attempt was to start
    ForeignKeyConstraint(
        ["run_id", "step_id"], ["step_executions.run_id", "step_executions.step_id"], ondelete="CASCADE"
    ),
)

# The items that loops go through, where steps of their bodies ask for them after the loop has forked.
loop_items: Final = Table(
    "loop_items",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("loop_id", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("item", JSON, nullable=False),
)

# Messages to send. A row is here from the transaction that causes the message until the broker confirmed it.
outbox: Final = Table(
    "outbox",
    metadata,
    Column("message_id", Uuid, primary_key=True),
    Column("run_id", Uuid),  # a replay may be about none
    Column("step_id", Text),
    Column("task_id", Uuid),
    Column("exchange", Text, nullable=False),
    Column("routing_key", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("correlation_id", Text),
    Column("traceparent", Text),
    Column("body", LargeBinary, nullable=False),
    _time("created_at", nullable=False, server_default=func.now()),
    _time("due_at", nullable=False),  # when a sweeper may send it; until then its writer does
    _time("returned_at"),  # when the broker first said that no queue takes it
    Column("replay", JSONB),  # of a dead letter: the properties that no column holds; see storage/dead_letters
    _time("held_at"),  # since when a task waits for the limit of its agent; it is never due then
    Index(None, "due_at"),
    Index(None, "run_id"),
    Index(None, "routing_key", "held_at", postgresql_where=text("held_at IS NOT NULL")),
    # Rows live for milliseconds. Without an eager vacuum the indexes would fill up with dead ones.
    postgresql_with={
        "autovacuum_vacuum_scale_factor": "0",
        "autovacuum_vacuum_threshold": "5000",
        "autovacuum_vacuum_cost_delay": "0",
    },
)

# One row for each limited block from its fork until its gate queue is deleted: who holds the gate, and until when.
gates: Final = Table(
    "gates",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("block_id", Text, primary_key=True),
    Column("max_parallelism", Integer, nullable=False),
    Column("holder", Text, nullable=False),
    _time("lease_until", nullable=False),
    Index(None, "lease_until"),
)

# What operators said of agents. A row stays when its limits are lifted: who lets attempts through locks it.
agent_limits: Final = Table(
    "agent_limits",
    metadata,
    Column("agent_name", Text, primary_key=True),
    Column("max_concurrency", Integer),
    Column("rate_per_second", Double),
    Column("tokens", Double, nullable=False),  # in its bucket, when that was last looked at
    _time("refilled_at", nullable=False),
    _time("changed_at", nullable=False),
    _time("counted_at"),  # when attempts that went out without a slot last got theirs
)

# One row for each attempt that the limit of its agent let through. One whose attempt is over counts for nothing, and
# goes the next time that somebody counts.
agent_slots: Final = Table(
    "agent_slots",
    metadata,
    Column("task_id", Uuid, primary_key=True),
    Column("agent_name", Text, nullable=False),
    Index(None, "agent_name"),
)

# Messages that could not be processed, until somebody replays or drops them. Nothing here is from us alone: texts are
# cut, and what Postgres cannot hold as text is replaced. The body is what it was.
dead_letters: Final = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("key", Text, nullable=False),  # the same for each delivery of one dead letter
    _time("received_at", nullable=False, server_default=func.now()),
    _time("dead_lettered_at"),
    Column("queue", Text),  # where it came from, and where a replay goes; null: nobody knows
    Column("exchange", Text),
    Column("routing_key", Text),
    Column("code", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("type", Text),
    Column("message_id", Text),
    Column("correlation_id", Text),
    Column("reply_to", Text),
    Column("headers", JSONB, nullable=False),  # as storage/headers writes them
    Column("body", LargeBinary, nullable=False),
    Column("run_id", Uuid),  # as far as the body tells
    Column("step_id", Text),
    Index("uq_dead_letters_key", "key", unique=True),
)

# One row: the revision of the oldest code that works with this schema. See storage/README.md, "Changing the schema".
schema_compatibility: Final = Table(
    "schema_compatibility",
    metadata,
    Column("oldest_revision", Text, nullable=False),
)
