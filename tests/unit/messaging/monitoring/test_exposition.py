"""What Prometheus reads."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from messaging.monitoring.exposition import Exposition
from messaging.monitoring.instruments import Count, Description, Gauge, Instrument, Spread


def instruments() -> list[Instrument]:
    count = Count("forkjoin_seen", "What was seen.", "queue")
    count.add(3, 'a "quoted"\nname\\')
    spread = Spread("forkjoin_took_seconds", "How long.", bounds=(0.5, 1))
    for value in (0.1, 0.7, 0.8, 9):
        spread.observe(value)
    return [count, spread, Gauge(Description("forkjoin_open", "How many.", ("status",)), {("QUEUED",): 7})]


def samples(text: str) -> dict[tuple[str, ...], float]:
    families = openmetrics(text) if text.endswith("# EOF\n") else plain(text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_each_kind_of_instrument_is_written_as_its_kind_of_metric() -> None:
    text, content_type = Exposition().write(instruments(), "text/plain")
    assert content_type.startswith("text/plain")
    found = samples(text.decode())
    assert found["forkjoin_seen_total", 'a "quoted"\nname\\'] == 3
    assert found["forkjoin_open", "QUEUED"] == 7
    assert [found["forkjoin_took_seconds_bucket", bound] for bound in ("0.5", "1.0", "+Inf")] == [1, 3, 4]
    assert (found["forkjoin_took_seconds_count",], found["forkjoin_took_seconds_sum",]) == (4, 10.6)
    assert "# HELP forkjoin_open How many." in text.decode()


def test_a_reader_of_openmetrics_gets_that() -> None:
    text, content_type = Exposition().write(instruments(), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert samples(text.decode())["forkjoin_open", "QUEUED"] == 7


def test_the_memory_and_time_of_the_process_are_there_too() -> None:
    found = samples(Exposition().write([], "text/plain")[0].decode())
    assert found["process_resident_memory_bytes",] > 1_000_000
    assert found["process_cpu_seconds_total",] > 0
