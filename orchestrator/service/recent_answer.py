"""An answer that is fetched seldom, however often it is asked for, and by one at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

LONGEST_REST: Final = 60.0  # seconds


class RecentAnswer(Generic[T]):
    """Keeps the last answer for a while.

    Whoever asks while somebody is at it waits for the same answer. One that does not come in time goes on alone: a
    database that hangs has one question of ours, and not one more each time.

    Args:
        ask: Fetches an answer.
        fresh_seconds: For so long at least an answer serves everybody.
        patience: Seconds to wait for one.
        rest: For so many times as long as an answer took nothing is asked, a minute at most: 20 leaves a dear question
            a twentieth of the time.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[T]], *, fresh_seconds: float, patience: float, rest: float = 0.0
    ) -> None:
        self._ask = ask
        self._fresh_seconds = fresh_seconds
        self._patience = patience
        self._rest = rest
        self._asking: asyncio.Future[T] | None = None
        self._fresh_until = float("-inf")
        self.seconds = 0.0  # that the last answer took

    async def get(self) -> T:
        """Return the last answer, or a new one where that is too old.

        Raises:
            TimeoutError: There is none in time.
            Exception: What asking raised.
        """
        if self._asking is None or (self._asking.done() and self._now() >= self._fresh_until):
            self._asking = asyncio.ensure_future(self._fetch())
            self._asking.add_done_callback(_heard)
        done, _ = await asyncio.wait([self._asking], timeout=self._patience)
        if not done:
            raise TimeoutError(f"no answer within {self._patience:g} s")
        return self._asking.result()

    async def close(self) -> None:
        """Wait for no answer any more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking], timeout=self._patience)

    async def _fetch(self) -> T:
        begun = self._now()
        try:
            return await self._ask()
        finally:
            self.seconds = self._now() - begun
            self._fresh_until = self._now() + max(self._fresh_seconds, min(self._rest * self.seconds, LONGEST_REST))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _heard(asking: "asyncio.Future[Any]") -> None:
    """Take note of an error: nobody may be there any more to be told."""
    if not asking.cancelled():
        asking.exception()
