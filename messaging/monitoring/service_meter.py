"""What both services count: the broker's messages and connections, the event loop, the health."""

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from messaging.health import BROKER, HealthBook
from messaging.monitoring.condition import Condition
from messaging.monitoring.instruments import Count, Description, Gauge, Instrument, Labels
from messaging.monitoring.loop_lag import LoopLag
from messaging.monitoring.metered_broker import BrokerMeter

_BUILD = Description("forkjoin_build_info", "Which version runs as what; always 1.", ("version", "service"))
_READY = Description("forkjoin_ready", "Whether this process does all of its work: what /readyz says.")
_TROUBLE = Description("forkjoin_trouble", "Whether a part of this process is in trouble now.", ("part",))


class ServiceMeter:
    """The numbers of one process, apart from those of its own trade.

    Args:
        service: "orchestrator" or "worker".
        book: Where troubles are noted.
        reconnects: Returns how often connections to the broker were restored.
        parts: That may be in trouble, so that they are shown while they are not.
    """

    def __init__(
        self, service: str, book: HealthBook, reconnects: Callable[[], int], parts: Sequence[str] = (BROKER,)
    ) -> None:
        self.broker = BrokerMeter()
        self.loop_lag = LoopLag()
        self._build: dict[Labels, float] = {(_version(), service): 1}
        self._book = book
        self._reconnects = reconnects
        self._parts = parts

    def instruments(self, condition: Condition) -> list[Instrument]:
        """Return all of it, in this condition."""
        return [
            Gauge(_BUILD, self._build),
            Gauge(_READY, {(): condition.ready}),
            self._troubles(condition),
            self._outages(),
            self._reconnected(),
            self.loop_lag.seconds,
            *self.broker.instruments(),
        ]

    def _troubles(self, condition: Condition) -> Gauge:
        now: dict[Labels, float] = {(part,): 0 for part in self._parts}
        now.update({(trouble.part,): 1 for trouble in condition.troubles})
        return Gauge(_TROUBLE, now)

    def _outages(self) -> Count:
        outages = Count("forkjoin_outages", "How often a part of this process got into trouble.", "part")
        for part in self._parts:
            outages.add(0, part)
        for part, number in self._book.outages.items():
            outages.add(number, part)
        return outages

    def _reconnected(self) -> Count:
        reconnects = Count("forkjoin_broker_reconnects", "Connections to the broker that were lost and restored.")
        reconnects.add(self._reconnects())
        return reconnects


def _version() -> str:
    try:
        return version("forkjoin")
    except PackageNotFoundError:  # run from a directory, and not installed
        return "unknown"
