"""What goes wrong in the orchestrator, and whose fault it is.

    OrchestratorError
    ├── WrongUse               the caller asked for something that cannot be: exit code 2
    │   ├── UnknownRun         there is no run of that id
    │   ├── UnknownWorkflow    no workflow is registered under that id
    │   ├── UnknownDeadLetter  there is no dead letter of that id (any more)
    │   └── AgentsMissing      the workflow names agents that the registry lacks
    ├── RunLocked              somebody keeps a run locked: the same input may be applied later
    ├── SchemaMismatch         the database schema is missing, older or newer than the code
    └── DatabaseUnavailable    Postgres cannot be reached, or refused us

Drivers' errors are translated where they enter and keep their `__cause__`.
"""


class OrchestratorError(Exception):
    """Something that the operator should read."""


class WrongUse(OrchestratorError):
    """The caller asked for something that cannot be; the message says what would be right."""


class UnknownRun(WrongUse):
    """There is no run of that id."""


class UnknownWorkflow(WrongUse):
    """No workflow is registered under that id (and version)."""


class UnknownDeadLetter(WrongUse):
    """There is no dead letter of that id, or somebody has replayed or dropped it meanwhile."""


class AgentsMissing(WrongUse):
    """The workflow names agents that the registry lacks."""


class RunLocked(OrchestratorError):
    """Somebody keeps a run locked for longer than replicas do; the same input may be applied later."""


class SchemaMismatch(OrchestratorError):
    """The database schema is missing, older or newer than the code."""


class DatabaseUnavailable(OrchestratorError):
    """Postgres cannot be reached, or refused us."""
