"""The nearest name that would have been accepted."""

from bisect import bisect_left
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Final

_NEIGHBOURS: Final = 100  # to look at on either side, in the order of the alphabet
_COMPARISONS: Final = 40_000  # about a second of difflib


def nearest(name: str, candidates: Collection[str]) -> str | None:
    """Return the one of *candidates* that *name* was probably meant to be, or None."""
    if len(name) > 2 * max(map(len, candidates), default=0):
        return None
    by_letters = {candidate.casefold(): candidate for candidate in candidates}
    found = get_close_matches(name.casefold(), by_letters, n=1)
    return by_letters[found[0]] if found else None


class NameIndex:
    """Suggestions from a set of names that may be large.

    Of many names only the neighbours in the alphabet are compared, and after some thousands of comparisons it has no
    suggestions any more: a document with so many wrong names is wrong as a whole, and must not cost minutes.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)
        self._comparisons = 0

    def nearest(self, name: str) -> str | None:
        """Return the name that *name* was probably meant to be, or None."""
        if self._comparisons > _COMPARISONS:
            return None
        middle = bisect_left(self._names, name)
        candidates = self._names[max(middle - _NEIGHBOURS, 0) : middle + _NEIGHBOURS]
        self._comparisons += len(candidates)
        return nearest(name, candidates)
