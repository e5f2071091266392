"""TLS to RabbitMQ: whom we trust, and who we are.

The broker's certificate and its host name are always verified; nothing turns that off.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path


class TlsFileInvalid(ValueError):
    """A file holds no certificate or key that can be used; says which file, and why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files of one side of a connection. They are read for each connection, so they may be renewed.

    Attributes:
        ca: Whom to trust; None means the system's authorities.
        certificate: Ours, for a broker that asks for one, with its chain.
        key: The certificate's, without a passphrase; None where it stands in the same file.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return what verifies the broker, and shows our certificate.

        Raises:
            TlsFileInvalid: One of the files cannot be read or used.
        """
        context = _trusting(self.ca)
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=_no_passphrase)
            except (OSError, ValueError) as error:
                beside = "" if self.key is None else f" with the key {self.key}"
                raise TlsFileInvalid(f"{self.certificate}{beside} cannot be used: {_why(error)}") from error
        return context


def _trusting(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise TlsFileInvalid(f"{ca} cannot be used: {_why(error)}") from error


def _no_passphrase() -> str:
    # OpenSSL would ask the terminal for it.
    raise ValueError("the key has a passphrase, and there is nobody to ask for it")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "it is no PEM file"
        return {
            "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
            "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate in it",
        }.get(reason, reason.lower().replace("_", " "))
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
