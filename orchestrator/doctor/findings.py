"""What an examination finds."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    UNKNOWN = "unknown"  # it could not be looked at from here
    WARNING = "warning"  # it works, and may not for long
    PROBLEM = "problem"  # something does not work, or a promise is broken


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        code: Stable; programs may compare it.
        level: How bad it is.
        seen: What was found, in words.
        advice: What to do; empty where there is nothing to do.
    """

    code: str
    level: Level
    seen: str
    advice: str = ""


def ok(code: str, seen: str) -> Finding:
    """Return that all is well."""
    return Finding(code, Level.OK, seen)


def unknown(code: str, seen: str, advice: str) -> Finding:
    """Return that it could not be looked at, and how somebody else can."""
    return Finding(code, Level.UNKNOWN, seen, advice)


def warning(code: str, seen: str, advice: str) -> Finding:
    """Return something that is to be looked after."""
    return Finding(code, Level.WARNING, seen, advice)


def problem(code: str, seen: str, advice: str) -> Finding:
    """Return something that is to be mended."""
    return Finding(code, Level.PROBLEM, seen, advice)
