"""Take a service from the first source that has it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

Announce = Callable[[str], None]
Source = Callable[[Announce], T]


class Unavailable(Exception):
    """This source has no such service here; says why, and what would be right."""


def first_available(service: str, sources: Sequence[Source[T]], announce: Announce) -> T:
    """Return what the first working source gives.

    Args:
        service: Its name, for messages.
        sources: In the order of preference; one raises `Unavailable` to pass on to the next.
        announce: Shows a line to whoever runs the tests.

    Raises:
        Unavailable: No source has it; the message holds every source's reason.
    """
    reasons = []
    for source in sources:
        try:
            return source(announce)
        except Unavailable as reason:
            reasons.append(f"  - {reason}")
    raise Unavailable("\n".join([f"these tests need {service}, and no source has one:", *reasons]))
