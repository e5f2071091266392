import sys

import pytest

from messaging.settings import ServiceSettings, SettingsInvalid
from messaging.tracing.opening import open_tracing


@pytest.mark.parametrize(
    "missing", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]
)
async def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delitem(sys.modules, "messaging.tracing.sdk", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SettingsInvalid, match=r"FORKJOIN_TRACING.*opentelemetry.*forkjoin\[tracing\]"):
        async with open_tracing(ServiceSettings(tracing=True), "service", "instance"):
            pass


async def test_nothing_is_exported_unless_that_is_set() -> None:
    async with open_tracing(ServiceSettings(), "service", "instance") as exporter:
        assert exporter is None
