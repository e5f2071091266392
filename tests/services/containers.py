"""Services from Docker, through testcontainers."""

import gc
import logging
import socket
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.services.processes import free_ports
from tests.services.sources import Unavailable
from tests.services.waiting import wait_until

_PROBE_SECONDS = 1


def require_docker() -> None:
    """Return when a Docker engine answers.

    Raises:
        Unavailable: None does, within a second. A Docker client without an engine is common, and no error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client leaves its socket open when it finds no engine
        reason = _why_docker_does_not_answer()
        gc.collect()
    if reason is not None:
        raise Unavailable(f"no Docker engine answers ({reason}); start Docker, or set DOCKER_HOST")


def _why_docker_does_not_answer() -> str | None:
    from testcontainers.core.docker_client import DockerClient  # slow to import, and rarely needed

    try:
        client = DockerClient(timeout=_PROBE_SECONDS).client
        client.ping()
        client.close()
    except Exception as failure:  # whatever is wrong with Docker, it is not a reason to fail
        return str(failure)
    return None


@dataclass
class Container:
    """A container with its ports on fixed ports of the host, so that it has the same address after a restart."""

    image: str
    container_ports: tuple[int, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    _addresses: dict[int, tuple[str, int]] = field(default_factory=dict)
    _container: Any = None

    def create(self) -> None:
        """Pull the image where needed and start a container.

        Raises:
            Unavailable: Docker could not.
        """
        from testcontainers.core.container import DockerContainer

        logging.getLogger("testcontainers").setLevel(logging.WARNING)
        self._container = DockerContainer(self.image).with_envs(**self.environment)
        for inside, outside in zip(self.container_ports, free_ports(len(self.container_ports)), strict=True):
            self._container.with_bind_ports(inside, outside)
        if self.command is not None:
            self._container.with_command(self.command)
        try:
            self._container.start()
            self._addresses = {inside: (self._host(), self._port(inside)) for inside in self.container_ports}
        except Exception as failure:
            self.remove()
            raise Unavailable(f"Docker could not start {self.image}: {failure}") from failure

    def address(self, inside: int) -> str:
        """Return ``host:port`` for a port of the container."""
        host, port = self._addresses[inside]
        return f"{host}:{port}"

    def accepts_connections(self, inside: int) -> bool:
        """Whether somebody listens; Docker's own proxy may do so too early."""
        try:
            socket.create_connection(self._addresses[inside], timeout=1).close()
        except OSError:
            return False
        return True

    def wait_until(self, ready: Callable[[], object], *, seconds: float = 90) -> None:
        """Wait until *ready* is true.

        Raises:
            Unavailable: It was not in time; holds the end of the container's log.
        """
        try:
            wait_until(ready, f"{self.image} is ready", seconds=seconds)
        except TimeoutError as late:
            log = self._docker.logs(tail=40).decode(errors="replace")
            self.remove()
            raise Unavailable(f"{late}; its log ends with\n{log}") from None

    def start(self) -> None:
        """Start it again."""
        self._docker.start()

    def stop(self) -> None:
        """Shut it down in an orderly way; its data stays."""
        self._docker.stop(timeout=30)

    def kill(self) -> None:
        """SIGKILL it."""
        self._docker.kill()

    def remove(self) -> None:
        """End it and delete its data."""
        self._container.stop()

    # Tests that run in a container themselves may have to take another host, and then another port, than is bound here.
    def _host(self) -> str:
        return str(self._container.get_container_host_ip())

    def _port(self, inside: int) -> int:
        return int(self._container.get_exposed_port(inside))

    @property
    def _docker(self) -> Any:
        return self._container.get_wrapped_container()
