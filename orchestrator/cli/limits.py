"""The limits of agents as people write and read them: ``3`` attempts at once, ``10/s``, ``600/m``, ``100/h``."""

import re
from typing import Final

from orchestrator.engine.agent_limit import AgentLimit
from orchestrator.errors import WrongUse

NONE: Final = "none"  # takes a limit away
MOST: Final = 1_000_000  # attempts at once, or starts per second

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
_RATE: Final = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)/(?P<unit>[smh])")
_READABLE: Final = 0.1  # below that, a larger unit reads better


def read_concurrency(text: str) -> int | None:
    """Return what ``--concurrency`` says: attempts at once, or None for no such limit. Raises WrongUse."""
    if text == NONE:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) <= MOST):
        raise WrongUse(f"--concurrency {text}: write a number from 0 (which pauses the agent) to {MOST:,}, or {NONE}")
    return int(text)


def read_rate(text: str) -> float | None:
    """Return what ``--rate`` says: starts per second, or None for no such limit. Raises WrongUse."""
    if text == NONE:
        return None
    found = _RATE.fullmatch(text)
    if found is None:
        raise WrongUse(f"--rate {text}: write a number per second, minute or hour, as in 10/s, 0.5/s, 600/m or 100/h")
    rate = float(found["number"]) / _SECONDS[found["unit"]]
    if not 0 < rate <= MOST:
        raise WrongUse(f"--rate {text}: a rate is above 0 and at most {MOST}/s; --concurrency 0 pauses an agent")
    return rate


def limit_words(limit: AgentLimit) -> str:
    """Return a limit as people read it; an empty text where there is none."""
    words = []
    if limit.max_concurrency is not None:
        words.append(f"{limit.max_concurrency} at once")
    if limit.rate_per_second is not None:
        words.append(rate_words(limit.rate_per_second))
    return ", ".join(words)


def rate_words(rate: float) -> str:
    """Return a rate in the unit in which it reads best, mostly that in which it was written."""
    for unit, seconds in _SECONDS.items():
        number = rate * seconds
        written = f"{number:.4g}"
        if number >= _READABLE and abs(float(written) - number) <= 1e-9 * number:
            return f"{float(written):g}/{unit}"
    return f"{rate:.4g}/s"
