"""Storage in memory: the same port as Postgres, with dictionaries beneath, for the simulation.

    storage = MemoryStorage(clock)                   # the server: what was committed, its locks, its clock
    storage.on_commit = check                        # called at each commit with a `Commit`: what changed
    client = storage.client("replica-1", scheduler)  # a `Storage` of the port: one process that uses it
    client.kill()                                    # its transactions are undone and its locks free, at once; its
                                                     # calls, also pending ones, never return and have no effect

A `Scheduler` is asked at every operation of its client (`operations.Operation` names them), in this order:

    await scheduler.before(operation)      may wait, raise, or kill the client
    scheduler.fails(operation)             true: the connection is lost; the operation has had no effect
    the operation itself                   which may wait for locks
    await scheduler.after(operation)       may wait, raise, or kill the client: the effect stays, nobody hears of it
    scheduler.fails("answer to ...")       true: the connection is lost after the effect, also that of a COMMIT

Whatever is raised in a transaction undoes it, unless its COMMIT has had its effect. Errors of lost connections are
ConnectionErrors, so `is_transient` takes them for what they are. Nothing here sleeps, draws or reads a clock but the
one given; lock timeouts are on the clock of the event loop. Where no scheduler waits, an operation that need not wait
for a lock does not yield to other tasks.

For oracles and tests MemoryStorage has `outbox_rows`, `gate_rows`, `dead_letter_rows`, `runs`, `steps`, `waiting` and
`output_of`; what operators do is in `register_workflow` and `replay`.
"""

from tests.simulation.storage.client import MemoryClient
from tests.simulation.storage.operations import Operation, Scheduler
from tests.simulation.storage.server import MemoryStorage
from tests.simulation.storage.tables import Commit

__all__ = ["Commit", "MemoryClient", "MemoryStorage", "Operation", "Scheduler"]
