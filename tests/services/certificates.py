"""A throw-away authority, and what it signs: all in one directory, readable to the servers' users."""

import shutil
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import trustme

from tests.services.processes import temporary_directory


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


@dataclass
class Authority:
    """An authority of our own; give its files back with `remove`."""

    directory: Path = field(default_factory=lambda: temporary_directory("certificates"))

    def __post_init__(self) -> None:
        self.directory.chmod(0o755)
        self._authority = trustme.CA()
        self.certificate = self.directory / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.certificate))

    def issue(self, host: str, *, file: str, owner: str | None = None, not_after: datetime | None = None) -> KeyPair:
        """Sign a certificate for *host*; its key is for *owner* alone, as Postgres wants it."""
        issued = self._authority.issue_cert(host, not_after=not_after)
        pair = KeyPair(self.directory / f"{file}.pem", self.directory / f"{file}.key")
        issued.cert_chain_pems[0].write_to_path(str(pair.certificate))
        issued.private_key_pem.write_to_path(str(pair.key))
        pair.key.chmod(0o600)
        if owner is not None:
            shutil.chown(pair.key, owner)
        return pair

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.directory, ignore_errors=True)
