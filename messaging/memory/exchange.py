"""An exchange: which queues take a message with a given routing key."""

from collections.abc import Iterable, Sequence
from typing import assert_never

from messaging.port import Exchange, ExchangeKind


def topic_matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Say whether a topic *pattern* takes a routing key, both split at the dots.

    As AMQP 0-9-1 has it: ``*`` stands for exactly one word, ``#`` for any number of them, none included.
    """
    if not pattern:
        return not words
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return any(topic_matches(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and topic_matches(rest, words[1:])


def split_key(routing_key: str) -> list[str]:
    """Return the words of *routing_key*; the empty key has none."""
    return routing_key.split(".") if routing_key else []


class MemoryExchange:
    """A declared exchange with the names of the queues that are bound to it."""

    def __init__(self, definition: Exchange) -> None:
        self.definition = definition
        self._bound: dict[str, dict[str, None]] = {}  # binding key -> queue names, in order of binding

    def bind(self, key: str, queue: str) -> None:
        """Let *queue* take what matches *key*; repeating it is harmless."""
        self._bound.setdefault(key, {})[queue] = None

    def unbind(self, key: str, queue: str) -> None:
        """Undo `bind`."""
        queues = self._bound[key]
        queues.pop(queue, None)
        if not queues:
            del self._bound[key]

    def route(self, routing_key: str) -> Iterable[str]:
        """Return the queues that take a message, each once however many of its bindings match."""
        match self.definition.kind:
            case ExchangeKind.DIRECT:
                return self._bound.get(routing_key, ())
            case ExchangeKind.FANOUT:
                return self._merged(self._bound)
            case ExchangeKind.TOPIC:
                words = split_key(routing_key)
                return self._merged(key for key in self._bound if topic_matches(split_key(key), words))
            case _:
                assert_never(self.definition.kind)

    def _merged(self, keys: Iterable[str]) -> Iterable[str]:
        return dict.fromkeys(queue for key in keys for queue in self._bound[key])
