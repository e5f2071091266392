"""How long to wait between attempts, and how often to say so."""

import random
from typing import Final

from tenacity import RetryCallState, wait_exponential, wait_random
from tenacity.wait import wait_base

_FIRST_PAUSE: Final = 0.1  # seconds
_LONGEST_PAUSE: Final = 10.0
_DOUBLINGS: Final = 10  # after which the longest pause is reached anyway
_LONG_ENOUGH: Final = 30.0  # seconds of life that make up for earlier short ones


class Pauses:
    """Pauses before something is opened again; they grow while it does not stay open.

    A back-off that begins anew with each success would let a connection that breaks at once break ten times a second.
    """

    def __init__(self) -> None:
        self._short_lives = 0

    def after(self, lived: float) -> float:
        """Return the seconds to wait after something was open for *lived* seconds; partly chance."""
        self._short_lives = 0 if lived >= _LONG_ENOUGH else self._short_lives + 1
        doubled = float(2 ** min(self._short_lives, _DOUBLINGS))
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * doubled) * random.uniform(0.5, 1)  # noqa: S311


def backoff(longest: float = _LONGEST_PAUSE) -> wait_base:
    """Return pauses that double up to *longest* seconds, and a little chance, lest all clients come back in step."""
    return wait_exponential(multiplier=_FIRST_PAUSE, max=longest) + wait_random(0, _FIRST_PAUSE)


def is_worth_a_line(state: RetryCallState) -> bool:
    """Say whether to log this failed attempt: the first one and then every power of two."""
    return state.attempt_number & (state.attempt_number - 1) == 0


def failure_text(state: RetryCallState) -> str:
    """Return what the failed attempt raised."""
    error = state.outcome.exception() if state.outcome is not None else None
    return str(error) or type(error).__name__
