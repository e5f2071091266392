"""The part of RabbitMQ's management API that tests use."""

import base64
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any


class ManagementError(Exception):
    """The management API refused a request, or could not be reached."""


@dataclass(frozen=True)
class Management:
    """A client for ``http://host:15672/api``, with the broker's own user and password."""

    base: str
    user: str
    password: str

    def reachable(self) -> bool:
        """Whether it answers, and takes the user and password."""
        try:
            self.version()
        except ManagementError:
            return False
        return True

    def version(self) -> str:
        """Return RabbitMQ's version."""
        return str(self.call("GET", "/overview")["rabbitmq_version"])

    def create_vhost(self, name: str) -> None:
        """Create a vhost in which our user may do everything."""
        vhost = urllib.parse.quote(name, safe="")
        self.call("PUT", f"/vhosts/{vhost}", {})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.call("PUT", f"/permissions/{vhost}/{urllib.parse.quote(self.user, safe='')}", everything)

    def delete_vhost(self, name: str) -> None:
        """Delete a vhost with its queues and connections; nothing happens where there is none."""
        self.call("DELETE", f"/vhosts/{urllib.parse.quote(name, safe='')}", tolerate=404)

    def connections(self) -> list[str]:
        """Return the names of our user's connections. Unlike ``/connections`` this list is never late."""
        return [entry["name"] for entry in self.call("GET", self._own_connections())]

    def close_connections(self, reason: str) -> None:
        """Close all connections of our user."""
        self.call("DELETE", self._own_connections(), headers={"X-Reason": reason})

    def _own_connections(self) -> str:
        return f"/connections/username/{urllib.parse.quote(self.user, safe='')}"

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
        tolerate: int | None = None,
    ) -> Any:
        """Send one request and return the decoded answer.

        Args:
            method: GET, PUT, POST or DELETE.
            path: Below ``/api``, quoted.
            body: Sent as JSON unless None.
            headers: More headers.
            tolerate: A status that is as good as success.

        Raises:
            ManagementError: It failed.
        """
        request = self._request(method, path, body, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                answer = response.read()
        except urllib.error.HTTPError as refusal:
            with refusal:
                if refusal.code == tolerate:
                    return None
                raise ManagementError(f"{method} {path}: {refusal.code} {refusal.read().decode()}") from None
        except (OSError, http.client.HTTPException) as failure:
            raise ManagementError(f"{method} {path} at {self.base}: {failure}") from failure
        return json.loads(answer) if answer else None

    def _request(self, method: str, path: str, body: object, headers: dict[str, str]) -> urllib.request.Request:
        credentials = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json", **headers}
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(f"{self.base.rstrip('/')}/api{path}", data, headers, method=method)
