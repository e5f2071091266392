"""The address of Postgres, with what it says of TLS, and what goes wrong with it when a process starts.

TLS is asked for as libpq does it, by parameters of the URL (PostgreSQL, chapter 32.19): ``sslmode``, ``sslrootcert``,
``sslcert``, ``sslkey``. asyncpg reads them.
"""

import ssl
from pathlib import Path
from typing import Final

import asyncpg
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from orchestrator.errors import DatabaseUnavailable, WrongUse

_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")


def parse_url(url: str) -> URL:
    """Return the URL of a Postgres.

    Raises:
        WrongUse: It cannot be understood, or names a file that is not there.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # their texts may quote what they take for a port, and that may be the password
        raise WrongUse("the database URL cannot be read; it looks like postgresql://user:password@host/name") from None
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise WrongUse(f"the database must be Postgres (postgresql://…), not {parsed.get_backend_name()}")
    for name in _FILES:
        path = parsed.query.get(name)
        if isinstance(path, str) and not Path(path).is_file():
            raise WrongUse(f"{name} of the database URL names {path}, which is no file")
    return parsed


def as_text(url: URL) -> str:
    """Return the URL for asyncpg, password included."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


async def connect(url: URL) -> asyncpg.Connection:
    """Open one connection, for whoever looks before anything else is done.

    Raises:
        WrongUse: What the URL says of TLS cannot be done.
        DatabaseUnavailable: The two sides do not trust each other; waiting does not help.
        OSError: It cannot be reached at the moment.
    """
    try:
        return await asyncpg.connect(as_text(url))
    except asyncpg.exceptions.ClientConfigurationError as error:
        raise WrongUse(f"the database URL is wrong: {str(error).partition('HINT')[0].strip()}") from error
    except ssl.SSLCertVerificationError as error:
        raise DatabaseUnavailable(
            f"Postgres at {url.host} shows a certificate that is not to be trusted: {error.verify_message}. Name the "
            "authority that signed it in sslrootcert of the database URL, and the host as the certificate has it"
        ) from error
    except ssl.SSLError as error:
        why = (error.reason or str(error)).lower().replace("_", " ")
        raise DatabaseUnavailable(f"Postgres at {url.host} and we do not agree on TLS: {why}") from error
    except ConnectionError as error:
        if "rejected SSL" not in str(error):  # asyncpg has no class of its own for it
            raise
        raise DatabaseUnavailable(
            f"Postgres at {url.host} has no TLS, and sslmode of the database URL asks for it"
        ) from error
