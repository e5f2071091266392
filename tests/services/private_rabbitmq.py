"""A RabbitMQ of our own, from the `rabbitmq-server` of this machine."""

import glob
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.services.management import Management
from tests.services.processes import Server, accepts_connections, free_ports, temporary_directory
from tests.services.sources import Unavailable

# Debian's /usr/sbin/rabbitmq-server turns to the user rabbitmq and the system's own directories; this one does not.
_DEBIAN_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
"""


def server_command() -> str | None:
    """Return the path of `rabbitmq-server`, or None where RabbitMQ is not installed."""
    return str(_DEBIAN_SERVER) if _DEBIAN_SERVER.exists() else shutil.which("rabbitmq-server")


@dataclass
class PrivateRabbitMQ:
    """A broker on free ports of 127.0.0.1, with its data in a temporary directory and an epmd of its own.

    It touches neither a system-wide RabbitMQ nor its files, and runs as whoever runs the tests.
    """

    configuration: str = ""  # more lines for rabbitmq.conf
    advanced_configuration: str = "[]."  # the whole of advanced.config
    directory: Path = field(default_factory=lambda: temporary_directory("rabbitmq"))
    ports: list[int] = field(default_factory=lambda: free_ports(4))  # AMQP, management, Erlang distribution, epmd

    def __post_init__(self) -> None:
        command = server_command()
        if command is None:
            raise Unavailable("this machine has no rabbitmq-server; install RabbitMQ 3.10 or newer")
        self._write_configuration()
        self._epmd = Server("epmd", [_epmd_command(), "-port", str(self.ports[3])], self.directory)
        self._broker = Server("rabbitmq", [command], self.directory, self._environment())

    @property
    def url(self) -> str:
        """Where clients connect; the vhost is /."""
        return f"amqp://guest:guest@127.0.0.1:{self.ports[0]}/"

    @property
    def management(self) -> Management:
        """Its management API."""
        return Management(f"http://127.0.0.1:{self.ports[1]}", "guest", "guest")

    def start(self) -> None:
        """Start it, with what it held when it was stopped, and wait until it works."""
        # In the foreground, so that it is ours to stop; Erlang would leave one behind.
        self._epmd.start(lambda: accepts_connections(self.ports[3]))
        self._broker.start(lambda: accepts_connections(self.ports[0]) and self.management.reachable())

    def stop(self) -> None:
        """Shut it down; what is durable stays."""
        self._broker.stop()
        self._epmd.stop()

    def kill(self) -> None:
        """SIGKILL it."""
        self._broker.kill()
        self._epmd.kill()

    def remove(self) -> None:
        """End it and delete its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _write_configuration(self) -> None:
        given = {
            "rabbitmq.conf": _CONFIGURATION.format(amqp=self.ports[0], management=self.ports[1]) + self.configuration,
            "advanced.config": self.advanced_configuration,
            "enabled_plugins": "[rabbitmq_management].",
            "rabbitmq-env.conf": "",
        }
        for name, content in given.items():
            (self.directory / name).write_text(content)

    def _environment(self) -> dict[str, str]:
        here = self.directory
        return {
            "HOME": str(here),  # of the Erlang cookie
            "RABBITMQ_NODENAME": f"forkjoin-{self.ports[0]}@localhost",
            "RABBITMQ_NODE_PORT": str(self.ports[0]),
            "RABBITMQ_DIST_PORT": str(self.ports[2]),
            "ERL_EPMD_PORT": str(self.ports[3]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(here / "data"),
            "RABBITMQ_LOG_BASE": str(here / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONF_ENV_FILE": str(here / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(here / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(here / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(here / "pid"),
        }


def _epmd_command() -> str:
    on_path = shutil.which("epmd")
    if on_path is not None:
        return on_path
    for found in glob.glob("/usr/lib*/erlang/erts-*/bin/epmd") + glob.glob("/opt/homebrew/lib/erlang/erts-*/bin/epmd"):
        return found
    raise Unavailable("this machine has rabbitmq-server but no epmd; put Erlang's epmd on the PATH")
