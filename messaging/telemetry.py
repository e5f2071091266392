"""Logging for both services: structlog through the standard library to stderr.

Each line is a constant sentence with an ``action`` slug and fields, for people (console) or programs (one JSON object
a line). What all lines of a process carry is bound with `structlog.contextvars`; what the lines of one task of the
event loop carry, and of the threads that it starts, is said with `about`.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from enum import StrEnum
from typing import Final

import structlog
from structlog.typing import EventDict, Processor

# The broker libraries log each failed attempt as an error, and our adapter tells of the same with better words.
# Alembic tells on each start what database it found, and uvicorn that it starts and stops.
_QUIETEST_LEVELS: Final = {
    "aio_pika": logging.CRITICAL,
    "aiormq": logging.CRITICAL,
    "alembic": logging.WARNING,
    "uvicorn": logging.WARNING,
}


_about: ContextVar[Callable[[], Mapping[str, object]] | None] = ContextVar("about", default=None)


class LogLevel(StrEnum):
    """From which severity on lines are written."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"


class LogFormat(StrEnum):
    """How a line looks."""

    CONSOLE = "console"
    JSON = "json"


def configure_logging(level: LogLevel = LogLevel.INFO, format: LogFormat | None = None) -> None:
    """Send structlog's and the standard library's lines to stderr. To be called once, by a command.

    Args:
        level: The lowest severity that is written.
        format: By default console on a terminal and JSON elsewhere.
    """
    number = logging.getLevelNamesMapping()[level]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(format or _format_for_stderr()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name, quietest in _QUIETEST_LEVELS.items():
        logging.getLogger(name).setLevel(max(number, quietest))
    structlog.configure(
        processors=[*_shared_processors(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def about(fields: Callable[[], Mapping[str, object]]) -> None:
    """Have each line of this task carry *fields*, also those of libraries that log by themselves.

    They are asked for when there is a line, for most tasks write none. What a line says itself goes first.
    """
    _about.set(fields)


def _say_what_it_is_about(_: object, __: str, line: EventDict) -> EventDict:
    fields = _about.get()
    if fields is not None:
        for name, value in fields().items():
            line.setdefault(name, value)
    return line


def _format_for_stderr() -> LogFormat:
    return LogFormat.CONSOLE if sys.stderr.isatty() else LogFormat.JSON


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        _say_what_it_is_about,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(format: LogFormat) -> logging.Formatter:
    match format:
        case LogFormat.CONSOLE:
            # tracebacks without the values of local variables: those may be secrets
            colors = sys.stderr.isatty()
            renderer: list[Processor] = [
                structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
            ]
        case LogFormat.JSON:
            renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared_processors(), structlog.stdlib.ExtraAdder()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )
