"""The tasks of one worker that came back so often that one of them may be killing its process.

The neighbours of the guilty one come back with it each time and look the same. So suspects run one at a time, in turns
that make sure that each neighbour gets done before the guilty one is failed for its number of deliveries.
"""

import asyncio
import zlib
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

SUSPECT_FROM: Final = 4  # earlier deliveries; even, so that two turns in opposite order follow
# Seconds. Those that come back together arrive one after the other, and each waits for the answers of colleagues; the
# order holds among those that are here.
GATHERING: Final = 1.0


@dataclass(eq=False, slots=True)
class _Suspect:
    turn: int
    gathered: bool = False
    may_begin: asyncio.Event = field(default_factory=asyncio.Event)


class Suspects:
    """Lets one suspect begin at a time, and of those that are here the one whose turn is first."""

    def __init__(self) -> None:
        self._here: list[_Suspect] = []  # those that have not begun
        self._one_runs = False

    async def begin(self, task_id: UUID, deliveries: int) -> None:
        """Wait until the others have had time to arrive, and then for the turn. Call `end` when the task is settled."""
        suspect = _Suspect(turn(task_id, deliveries))
        self._here.append(suspect)
        try:
            await asyncio.sleep(GATHERING)
            suspect.gathered = True
            self._let_first_begin()
            await suspect.may_begin.wait()
        except asyncio.CancelledError:
            if suspect.may_begin.is_set():
                self.end()
            else:
                self._here.remove(suspect)
                self._let_first_begin()
            raise

    def end(self) -> None:
        """Let the next one begin."""
        self._one_runs = False
        self._let_first_begin()

    def _let_first_begin(self) -> None:
        if self._one_runs or not self._here:
            return
        first = min(self._here, key=lambda suspect: suspect.turn)
        if first.gathered:
            self._here.remove(first)
            self._one_runs = True
            first.may_begin.set()


def turn(task_id: UUID, deliveries: int) -> int:
    """Return the place of a suspect among others that were delivered as often: the lowest goes first.

    After an even number of deliveries and the odd one that follows the order of any two tasks is opposite. So whichever
    of them kills the process, the other goes first in one of the two.
    """
    place = zlib.crc32(task_id.bytes + (deliveries // 2).to_bytes(8))
    return place if deliveries % 2 == 0 else -place
