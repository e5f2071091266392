"""A RabbitMQ and a Postgres of our own that speak TLS, with certificates of a throw-away authority."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from messaging.tls import TlsFiles
from tests.services.certificates import Authority, KeyPair
from tests.services.debian import install_postgres, install_rabbitmq
from tests.services.private_postgres import PrivatePostgres, debian_binaries
from tests.services.private_rabbitmq import PrivateRabbitMQ, server_command
from tests.services.processes import free_ports

_LISTENER = """\
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {server.certificate}
ssl_options.keyfile = {server.key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = {wants_ours}
"""
_ONLY_WITH_CERTIFICATE = "hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n"


@dataclass
class TlsRabbitMQ:
    """A broker whose certificate is for the host localhost; it looks at ours, where there is one."""

    authority: Authority
    wants_ours: bool = False
    port: int = field(default_factory=lambda: free_ports(1)[0])

    def __post_init__(self) -> None:
        server = self.authority.issue("localhost", file=f"rabbitmq-{self.port}")
        wants_ours = str(self.wants_ours).lower()
        lines = _LISTENER.format(port=self.port, ca=self.authority.certificate, server=server, wants_ours=wants_ours)
        self.server = PrivateRabbitMQ(lines)
        self.server.start()

    def url(self, host: str = "localhost") -> str:
        return f"amqps://guest:guest@{host}:{self.port}/"


@dataclass
class TlsPostgres:
    """A database whose certificate is for the host localhost; it takes only who shows one of the authority's."""

    authority: Authority

    def __post_init__(self) -> None:
        owner = "nobody" if os.geteuid() == 0 else None
        own = self.authority.issue("localhost", file="postgres", owner=owner)
        rules = self.authority.directory / "pg_hba.conf"
        rules.write_text(_ONLY_WITH_CERTIFICATE)
        options = {
            "ssl": "on",
            "ssl_ca_file": str(self.authority.certificate),
            "ssl_cert_file": str(own.certificate),
            "ssl_key_file": str(own.key),
            "hba_file": str(rules),
        }
        self.server = PrivatePostgres(options, installed=debian_binaries())
        self.server.start()

    def url(self, ours: KeyPair | None, *, ca: Path | None = None, host: str = "localhost") -> str:
        shown = "" if ours is None else f"&sslcert={ours.certificate}&sslkey={ours.key}"
        trusted = ca or self.authority.certificate
        return (
            f"postgresql://postgres@{host}:{self.server.port}/postgres?sslmode=verify-full&sslrootcert={trusted}{shown}"
        )


@dataclass
class TlsServers:
    """Both of them, and what we show them. Raises Unavailable where there are none to start, nor to install."""

    authority: Authority = field(default_factory=Authority)
    stranger: Authority = field(default_factory=Authority)

    def __post_init__(self) -> None:
        if server_command() is None:
            install_rabbitmq(_silently)
        if debian_binaries() is None:
            install_postgres(_silently)
        self.ours = self.authority.issue("us", file="us")
        self.strange = self.stranger.issue("us", file="us")
        self.rabbitmq = TlsRabbitMQ(self.authority)
        self.postgres = TlsPostgres(self.authority)

    @property
    def trusted(self) -> TlsFiles:
        """What reaches the broker."""
        return TlsFiles(self.authority.certificate)

    @property
    def environment(self) -> dict[str, str]:
        """The settings with which the services reach both."""
        return {
            "FORKJOIN_AMQP_URL": self.rabbitmq.url(),
            "FORKJOIN_AMQP_CA_FILE": str(self.authority.certificate),
            "FORKJOIN_AMQP_CERT_FILE": str(self.ours.certificate),
            "FORKJOIN_AMQP_KEY_FILE": str(self.ours.key),
            "FORKJOIN_DATABASE_URL": self.postgres.url(self.ours),
        }

    def remove(self) -> None:
        """End the servers, and delete everything."""
        self.rabbitmq.server.remove()
        self.postgres.server.remove()
        self.authority.remove()
        self.stranger.remove()


def _silently(line: str) -> None:
    """Nobody waits at a terminal for these."""
