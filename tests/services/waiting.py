"""Wait for conditions, never for the clock."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.1


def wait_until(condition: Callable[[], Any], what: str, *, seconds: float) -> Any:
    """Call *condition* until it returns something true, and return that.

    Raises:
        TimeoutError: It never did; the message says *what* was awaited.
    """
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
    return value


async def eventually(condition: Callable[[], Awaitable[Any] | Any], timeout: float = 60) -> Any:
    """Call *condition*, sync or async, until it returns something true, and return that.

    Args:
        condition: May be a lambda that returns an awaitable. What it raises is raised here at once.
        timeout: Seconds; a call that hangs is cut off too.

    Raises:
        AssertionError: It never did; the message holds the condition and its last value.
    """
    last: Any = "nothing: it never returned"
    pause = _FIRST_PAUSE
    try:
        async with asyncio.timeout(timeout) as limit:
            while True:
                value = condition()
                last = await value if inspect.isawaitable(value) else value
                if last:
                    return last
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
    except TimeoutError:
        if not limit.expired():  # the condition's own
            raise
        raise AssertionError(
            f"{_describe(condition)} was not true within {timeout:g} s; it last gave {last!r}"
        ) from None


def _describe(condition: Callable[[], Any]) -> str:
    name = getattr(condition, "__qualname__", repr(condition))
    if "<lambda>" not in name:
        return name
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return name
