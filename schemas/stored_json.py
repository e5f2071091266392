"""JSON that we wrote ourselves and read back, without the checks of what comes from outside (`schemas.json_text`)."""

import json
from typing import Any

from pydantic_core import from_json


class StoredJson:
    """A JSON value in the text that is stored: passed on as it is, and read only where somebody looks into it.

    The output of a block of 100,000 branches takes 10 MB as text, and six times that as a value.
    """

    __slots__ = ("_value", "text")

    def __init__(self, text: str | None) -> None:
        """Take the text of a column; SQL NULL is null."""
        self.text = "null" if text is None else text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredJson) and self.text == other.text

    __hash__ = None  # type: ignore[assignment]  # it stands for a value that may be an object or an array

    def __repr__(self) -> str:
        return f"StoredJson({self.text})"

    @property
    def value(self) -> Any:
        """The value; everybody gets the same one."""
        if not hasattr(self, "_value"):
            self._value = read_stored(self.text)
        return self._value


def read_stored(text: str) -> Any:
    """Return the value that a stored text holds."""
    try:
        return from_json(text)
    except ValueError:  # outputs that hold outputs may be nested deeper than it goes
        return json.loads(text)
