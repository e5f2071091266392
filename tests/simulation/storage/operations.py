"""What a client asks of the storage, one round trip each, and who decides what befalls it on the way."""

from enum import StrEnum
from typing import Protocol


class Operation(StrEnum):
    """A round trip to the storage."""

    FIRST_LOOK = "first look"  # begins a session
    LOAD = "load"
    LOAD_DEFINITION = "load definition"
    WRITE = "write"
    CLOSE_LINE = "close line"
    CANCEL_OPEN_STEPS = "cancel open steps"
    TAKE_OVER = "take over"
    WAKE_BRANCHES = "wake branches"
    COMMIT = "commit"

    BEGIN_OUTBOX = "begin outbox"
    LOCK_DUE = "lock due"
    DELETE = "delete"
    DELETE_TASKS = "delete tasks"
    POSTPONE = "postpone"
    PUT_BACK = "put back"
    COMMIT_OUTBOX = "commit outbox"

    LOCK_AGENT = "lock agent"
    LET_THROUGH = "let through"
    COMMIT_LET_THROUGH = "commit let through"

    # The others are transactions of their own.
    WHAT_IS_DUE = "what is due"
    TAKE_LEASES = "take leases"
    RELEASE_LEASES = "release leases"
    DELETE_GATE = "delete gate"
    AGENTS_WITH_ROOM = "agents with room"
    BLOCK_OVER = "block over"
    BRANCHES_OVER = "branches over"
    DUE_INPUTS = "due inputs"
    COUNT_SILENT = "count silent"
    OLDEST_SILENT = "oldest silent"
    FIND_STRAYS = "find strays"
    STORE_DEFINITION = "store definition"
    FIND_DEFINITION = "find definition"
    STORE_DEAD_LETTERS = "store dead letters"
    CHECK = "check"


class Scheduler(Protocol):
    """Decides what befalls the operations of a client."""

    async def before(self, operation: str) -> None:
        """Called before an operation has any effect."""

    async def after(self, operation: str) -> None:
        """Called after it had its effect, before its client hears of it."""

    def fails(self, operation: str) -> bool:
        """Return whether the connection is lost now; asked before and, of ``answer to …``, after the effect."""
