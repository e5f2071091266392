"""The deliveries of one channel that are not settled yet, and the frames that settle them.

One ack with `multiple` settles everything up to its tag, and so costs next to nothing per message; but everything means
everything that was delivered, also what is still being worked on. Hence the exact list.
"""

from collections.abc import Callable, Collection

Encode = Callable[[int, bool], bytes]  # a tag, and whether all before it are meant too


class Unsettled:
    """Delivery tags of one channel, in ascending order as the broker gives them."""

    def __init__(self) -> None:
        self._tags: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._tags)

    def add(self, tag: int) -> None:
        """Note a delivery."""
        self._tags[tag] = None

    def settle(self, tags: Collection[int], encode: Encode) -> tuple[int, bytes]:
        """Forget *tags* and return how many of them were unsettled, with the frames that say so.

        Those that are the oldest unsettled ones share one frame; each of the others has its own. A tag that is not
        unsettled is left out: RabbitMQ closes the channel when it is settled twice.
        """
        known = {tag for tag in tags if tag in self._tags}
        oldest = self._take_oldest(known)
        frames = [encode(oldest[-1], len(oldest) > 1)] if oldest else []
        for tag in sorted(known.difference(oldest)):
            del self._tags[tag]
            frames.append(encode(tag, False))
        return len(known), b"".join(frames)

    def _take_oldest(self, known: Collection[int]) -> list[int]:
        oldest = []
        for tag in self._tags:
            if tag not in known:
                break
            oldest.append(tag)
        for tag in oldest:
            del self._tags[tag]
        return oldest
