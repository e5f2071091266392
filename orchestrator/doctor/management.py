"""RabbitMQ's management API, read only, with nothing but the standard library."""

import base64
import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from orchestrator.errors import OrchestratorError, WrongUse

_TIMEOUT: Final = 10.0  # seconds


class ManagementUnavailable(OrchestratorError):
    """The management API cannot be reached, or is none."""


class ManagementRefused(ManagementUnavailable):
    """The management API does not tell this user."""


@dataclass(frozen=True, slots=True)
class Management:
    """A client.

    Attributes:
        base: `http://host:15672`, without user and password.
        user: Needs the tag `monitoring`.
    """

    base: str
    user: str
    password: str

    @classmethod
    def at(cls, url: str, user: str, password: str) -> "Management":
        """Return a client for a URL; the user in it goes before the one that is given. Raises WrongUse."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if host is None or parts.scheme not in {"http", "https"}:
            raise WrongUse("the management URL looks like http://user:password@rabbitmq:15672")
        address = f"[{host}]" if ":" in host else host
        netloc = address if port is None else f"{address}:{port}"
        base = urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
        return cls(base, unquote(parts.username or user), unquote(parts.password or password))

    def get(self, *path: str) -> Any:
        """Return what is at `/api` and these parts. Raises ManagementRefused, ManagementUnavailable."""
        where = "/".join(quote(part, safe="") for part in path)
        credentials = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = urllib.request.Request(  # noqa: S310 - `at` has seen to the scheme
            f"{self.base}/api/{where}", headers={"Authorization": f"Basic {credentials}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:  # noqa: S310
                return json.load(response)
        except urllib.error.HTTPError as refusal:
            with refusal:
                raise _refusal(self, refusal.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ManagementUnavailable(f"the management API at {self.base} cannot be reached: {error}") from None


def _refusal(management: Management, status: int) -> ManagementUnavailable:
    if status in {401, 403}:
        refused = f"the management API at {management.base} refuses the user {management.user}"
        return ManagementRefused(f"{refused}: it needs its password, the tag monitoring, and rights in the vhost")
    return ManagementUnavailable(f"the management API at {management.base} answers {status}")
