"""The limit of an agent, over all runs, blocks and workers: how many of its attempts may go to the broker now.

An attempt of a limited agent is QUEUED like any other, but its task is held in the outbox until it is let through.
Letting through takes turns: whoever does it holds the agent's row of limits, counts what is open, and asks here.

At most `max_concurrency` attempts are let through and open at once. Starts are paced by a bucket of tokens, one for
each attempt that is let through. `rate_per_second` tokens flow into it, and what does not fit is lost. A bucket that
holds a whole second's worth would let twice the rate through within a second; so it holds a tenth of that. It always
holds a whole token, and a little more: nobody looks at the very moment at which that is full, and what flows in
meanwhile would be lost each time. In any T seconds no more than ``rate * T + max(1 + rate / 20, rate / 10)`` start.
"""

import math
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from orchestrator.engine.attempt import within_branch
from orchestrator.engine.records import StepExecution

BURST_SECONDS: Final = 0.1  # worth of tokens
LATE_SECONDS: Final = 0.05  # worth of tokens beyond a whole one
_NEARLY: Final = 1e-9  # what rounding may have taken from a whole token


class AgentLimit(NamedTuple):
    """What was said of an agent; None: it has no limit of that kind."""

    max_concurrency: int | None = None  # attempts at once; 0: the agent is paused
    rate_per_second: float | None = None  # starts

    @property
    def holds(self) -> bool:
        """Whether it can hold an attempt back."""
        return self.max_concurrency is not None or self.rate_per_second is not None


class Bucket(NamedTuple):
    """The tokens of an agent, at a time of the database's clock."""

    tokens: float
    at: datetime

    def without(self, starts: int) -> "Bucket":
        """Return the bucket after so many starts."""
        return self._replace(tokens=max(self.tokens - starts, 0.0))


def burst(rate_per_second: float) -> float:
    """Return how many tokens a bucket holds."""
    return max(1.0 + rate_per_second * LATE_SECONDS, rate_per_second * BURST_SECONDS)


def refilled(bucket: Bucket, rate_per_second: float | None, now: datetime) -> Bucket:
    """Return the bucket as it is *now*. A clock that went back takes nothing out."""
    if rate_per_second is None:
        return bucket
    seconds = max((now - bucket.at).total_seconds(), 0.0)
    return Bucket(min(bucket.tokens + seconds * rate_per_second, burst(rate_per_second)), max(now, bucket.at))


def room(limit: AgentLimit, taken: int, tokens: float) -> int | None:
    """Return how many attempts may be let through; None: as many as there are.

    Args:
        limit: Of the agent.
        taken: Slots of attempts that have not ended; more than the limit, perhaps, once that was lowered.
        tokens: In the bucket; they count where the limit has a rate.
    """
    free = []
    if limit.max_concurrency is not None:
        free.append(limit.max_concurrency - taken)
    if limit.rate_per_second is not None:
        free.append(math.floor(tokens + _NEARLY))
    return max(min(free), 0) if free else None


def next_token(limit: AgentLimit, bucket: Bucket) -> timedelta | None:
    """Return the time until there is a whole token; None where it is not tokens that are wanting."""
    if limit.rate_per_second is None or bucket.tokens >= 1:
        return None
    return timedelta(seconds=(1.0 - bucket.tokens) / limit.rate_per_second)


def held(step: StepExecution) -> StepExecution:
    """Return the QUEUED row of a step whose task is held: its time to wait for a worker has not begun."""
    return step._replace(due_at=within_branch(step, None))


def let_through(step: StepExecution, now: datetime) -> StepExecution:
    """Return the row of a step whose task goes out at last."""
    patience = step.queue_timeout_seconds
    due_at = now + timedelta(seconds=patience) if patience is not None else None
    return step._replace(queued_at=now, due_at=within_branch(step, due_at))
