"""How commands talk: results on stdout, everything else on stderr, errors as exit codes."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from messaging.port import BrokerError
from messaging.settings import SettingsInvalid
from messaging.telemetry import LogLevel, configure_logging
from orchestrator.errors import OrchestratorError, WrongUse
from orchestrator.settings import Settings
from schemas.errors import JsonRefused, WorkflowInvalid
from schemas.json_text import load_json

FAILED: Final = 1
WRONG_USE: Final = 2

_ORCHESTRATOR_PACKAGES: Final = frozenset({"sqlalchemy", "asyncpg", "alembic"})

# SQLSTATEs (PostgreSQL, appendix A). No class of a driver is named here: most commands work without one.
_OUT_OF_REACH: Final = ("08", "53", "57P")  # connection exceptions; insufficient resources; shutdown
_REFUSED: Final = ("28", "3D", "42501")  # wrong credentials; no such database; not permitted

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline

stderr: Final = Console(stderr=True, highlight=False)
stdout: Final = Console(highlight=False)


@contextmanager
def told(extra: str = "orchestrator") -> Iterator[None]:
    """Turn the errors that a user should read into a message on stderr and an exit code.

    Args:
        extra: What to install where the command's packages are missing.
    """
    try:
        yield
    except WorkflowInvalid as invalid:
        for problem in invalid.problems:
            typer.echo(str(problem), err=True)
        count = len(invalid.problems)
        raise _end(f"the workflow has {count} problem{'' if count == 1 else 's'}", WRONG_USE) from None
    except (WrongUse, SettingsInvalid) as error:
        raise _end(str(error), WRONG_USE) from None
    except (OrchestratorError, BrokerError) as error:
        raise _end(str(error), FAILED) from None
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _ORCHESTRATOR_PACKAGES:
            raise
        message = f"this command needs {error.name}: pip install 'forkjoin[{extra}]'"
        raise _end(message, WRONG_USE) from None
    except Exception as error:
        trouble = database_trouble(error)
        if trouble is None:
            raise
        raise _end(trouble, FAILED) from None


def quiet(settings: Settings, otherwise: LogLevel = LogLevel.WARNING) -> LogLevel:
    """Return the log level of a command that talks to a person: *otherwise*, unless FORKJOIN_LOG_LEVEL says more."""
    return settings.log_level if "log_level" in settings.model_fields_set else otherwise


def quiet_settings() -> Settings:
    """Return the settings of a command that only looks or asks, once its logging is set up: it logs trouble alone."""
    settings = Settings.load()
    configure_logging(quiet(settings), settings.log_format)
    return settings


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises WrongUse."""
    document = _read_json(path, str(path))
    if not isinstance(document, dict):
        raise WrongUse(f"{path}: a workflow document is a JSON object")
    return document


def read_input(text: str | None) -> Any:
    """Return what ``--input`` means: JSON, or the content of @FILE. Raises WrongUse."""
    if text is None:
        return None
    if text.startswith("@"):
        return _read_json(Path(text[1:]), f"--input {text}")
    return _parse_json(text.encode(), "--input")


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Write JSON for programs and people to stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=indent, default=_plain))


def harmless(text: str) -> str:
    """Return rich's markup for *text* as it is, but for what a terminal would obey: that is escaped."""
    return escape(_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text))


def database_trouble(error: BaseException) -> str | None:
    """Say what Postgres has against us, or return None where it is not about Postgres."""
    origin = getattr(error, "orig", None) or error
    sqlstate = getattr(origin, "sqlstate", None) or ""
    if isinstance(origin, OSError) or sqlstate.startswith(_OUT_OF_REACH):
        return f"Postgres at FORKJOIN_DATABASE_URL cannot be reached: {_one_line(origin)}"
    if sqlstate.startswith(_REFUSED):
        return f"Postgres at FORKJOIN_DATABASE_URL refused us: {_one_line(origin)}"
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_json(path: Path, what: str) -> Any:
    try:
        body = path.read_bytes()
    except OSError as error:
        raise WrongUse(f"{what}: cannot be read: {error.strerror}") from error
    return _parse_json(body, what)


def _parse_json(body: bytes, what: str) -> Any:
    try:
        return load_json(body)
    except JsonRefused as error:
        raise WrongUse(f"{what}: {error.problem}") from error


def _plain(value: object) -> str:
    return str(value)


def _end(message: str, code: int) -> typer.Exit:
    typer.echo(f"forkjoin: {message}", err=True)
    return typer.Exit(code)
