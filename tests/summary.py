"""Lines for the end of pytest's output, in sections, whichever process of a parallel run has them."""

import pytest

_SECTIONS: pytest.StashKey[dict[str, list[str]]] = pytest.StashKey()


def note(config: pytest.Config, section: str, line: str) -> None:
    """Keep a line for a section."""
    noted(config).setdefault(section, []).append(line)


def noted(config: pytest.Config) -> dict[str, list[str]]:
    """Return the lines of all sections."""
    return config.stash.setdefault(_SECTIONS, {})
