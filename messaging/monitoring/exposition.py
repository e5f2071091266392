"""Numbers as Prometheus reads them. Only here they meet its client library."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Final

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from messaging.monitoring.instruments import Count, Gauge, Instrument, Spread


class Exposition:
    """Writes instruments, and what the operating system knows of this process."""

    def __init__(self) -> None:
        process = CollectorRegistry()
        ProcessCollector(registry=process)
        PlatformCollector(registry=process)
        GCCollector(registry=process)
        self._process: Final = process

    def write(self, instruments: Sequence[Instrument], accept: str) -> tuple[bytes, str]:
        """Return the text for a reader that accepts *accept*, and its content type."""
        encode, content_type = choose_encoder(accept)
        page = CollectorRegistry(auto_describe=False)
        page.register(_Page(chain(map(_family, instruments), self._process.collect())))
        return encode(page), content_type


class _Page(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _family(instrument: Instrument) -> Metric:
    match instrument:
        case Gauge(description, values):
            gauge = GaugeMetricFamily(description.name, description.help, labels=description.labels)
            for labels, value in values.items():
                gauge.add_metric(labels, value)
            return gauge
        case Count(description=description, values=values):
            counter = CounterMetricFamily(description.name, description.help, labels=description.labels)
            for labels, value in values.items():
                counter.add_metric(labels, value)
            return counter
        case Spread(description=description, tallies=tallies, bounds=bounds):
            histogram = HistogramMetricFamily(description.name, description.help, labels=description.labels)
            names = [*(str(float(bound)) for bound in bounds), "+Inf"]
            for labels, tally in tallies.items():
                cumulated = list(zip(names, accumulate(tally.counts), strict=True))
                histogram.add_metric(labels, buckets=cumulated, sum_value=tally.sum)
            return histogram
