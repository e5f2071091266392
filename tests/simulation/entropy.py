"""All randomness of a simulation comes from its seed: what the scheduler draws, and what the product itself draws."""

import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.property.cases import Choices


class Dice(random.Random, Choices):
    """A seeded generator, also for the choices of a workflow."""

    def pick(self, options: Sequence[Any]) -> Any:
        """Return one of *options*."""
        return options[int(self.random() * len(options))]

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        """Return *items* in some order."""
        return self.sample(list(items), len(items))

    def happens(self, probability: float) -> bool:
        """Return whether something of this probability happens."""
        return self.random() < probability


@contextmanager
def seeded_entropy(seed: int) -> Iterator[None]:
    """Let ids, tokens and jitter of the product come from *seed*.

    The order of sets of strings must be fixed too, and only the interpreter's start can do that.
    """
    assert sys.flags.hash_randomization == 0, "start Python with PYTHONHASHSEED=0"
    source = random.Random(f"entropy {seed}")
    system = os.urandom, random._urandom, random.getstate()  # type: ignore[attr-defined]
    os.urandom = random._urandom = source.randbytes  # type: ignore[attr-defined]
    random.seed(f"jitter {seed}")
    try:
        yield
    finally:
        os.urandom, random._urandom, state = system  # type: ignore[attr-defined]
        random.setstate(state)
