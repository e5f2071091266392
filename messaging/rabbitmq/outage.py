"""One outage, one line: several connections of a client lose the same broker, and come back one after the other."""

import time

import structlog

from messaging.rabbitmq.failures import ConnectionRefused

log = structlog.get_logger(__name__)


class Outage:
    """What a client says of the broker's absence. Between its first and its last word it tries in silence.

    Args:
        broker: Host, port and vhost, for the lines.
    """

    def __init__(self, broker: str) -> None:
        self.reconnects = 0  # connections that were lost and are there again
        self._broker = broker
        self._down: set[str] = set()
        self._lost_at = 0.0
        self._told = False  # why the broker cannot be reached
        self._silent = False  # as everybody knows that it cannot

    def lost(self, connection: str, reason: str) -> None:
        """Tell that a connection was lost, unless another one is down already."""
        if not self._down:
            self._lost_at = time.monotonic()
            self._silent = True
            log.warning(
                "The connection to the broker was lost; reconnecting",
                action="broker_connection_lost",
                broker=self._broker,
                connection=connection,
                reason=reason,
            )
        self._down.add(connection)

    def unreachable(self, connection: str, error: BaseException) -> None:
        """Tell once why a connection cannot be made; in an outage, only if the broker is there and refuses us."""
        if self._told or (self._silent and not isinstance(error, ConnectionRefused)):
            return
        self._told = True
        log.warning(
            "The broker cannot be reached; trying again",
            action="broker_unreachable",
            broker=self._broker,
            connection=connection,
            error=str(error) or type(error).__name__,
        )

    def connected(self, connection: str) -> None:
        """Note that a connection was made; tell when it was the last one that was down."""
        self._told = False
        was_down = connection in self._down
        self._down.discard(connection)
        self.reconnects += was_down
        if was_down and not self._down:
            self._silent = False
            log.info(
                "The connection to the broker is restored",
                action="broker_connection_restored",
                broker=self._broker,
                seconds=round(time.monotonic() - self._lost_at, 1),
            )
