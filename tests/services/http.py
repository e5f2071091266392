"""Questions to the HTTP port of a service."""

import asyncio
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

PATIENCE = 30.0


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    text: str
    content_type: str

    @property
    def json(self) -> Any:
        """The body, as JSON."""
        return json.loads(self.text)

    @property
    def samples(self) -> dict[tuple[str, ...], float]:
        """The numbers of /metrics, under their name and the values of their labels, in the order of their names."""
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }


def ask(port: int, path: str, *, seconds: float = PATIENCE, accept: str = "text/plain") -> Answer:
    """Return what the service at *port* of this machine answers. Raises TimeoutError, or OSError where none listens."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return Answer(answer.status, answer.read().decode(), answer.headers["content-type"])
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode(), error.headers["content-type"])


async def asked(port: int, path: str, **options: Any) -> Answer:
    """Return what `ask` does, and let the event loop go on meanwhile: it may be the one that answers."""
    return await asyncio.to_thread(ask, port, path, **options)
