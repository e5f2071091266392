"""Ids of attempts and messages."""

import os
from typing import Final
from uuid import UUID

DRAWN_AT_ONCE: Final = 256

_SIZE: Final = 16  # bytes


class RandomIds:
    """A source of random UUIDs, version 4; call it for the next one.

    It draws many from the system at a time, because a system call for each takes longer than all else that a branch's
    ids are good for.
    """

    def __init__(self) -> None:
        self._drawn: list[UUID] = []

    def __call__(self) -> UUID:
        """Return a fresh id."""
        if not self._drawn:
            data = os.urandom(_SIZE * DRAWN_AT_ONCE)
            self._drawn = [UUID(bytes=data[at : at + _SIZE], version=4) for at in range(0, len(data), _SIZE)]
        return self._drawn.pop()
