"""RunRequests out of what people type."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from pydantic import ValidationError

from orchestrator.cli.terminal import read_input
from orchestrator.errors import WrongUse
from schemas.display import quoted
from schemas.messages import RunRequest
from schemas.shapes import shape_problems


def make_request(
    input_text: str | None, labels: Sequence[str] | None, *, run_id: UUID | None = None, **workflow: Any
) -> RunRequest:
    """Return a request that names its run.

    Args:
        input_text: What ``--input`` says.
        labels: What each ``--label`` says.
        run_id: By default a new one.
        workflow: The request's field `workflow`, or `workflow_id` and perhaps `workflow_version`.

    Raises:
        WrongUse: The input or a label cannot be read, or the contract refuses one of the fields.
    """
    try:
        return RunRequest(
            run_id=run_id or uuid4(), input=read_input(input_text), labels=read_labels(labels) or None, **workflow
        )
    except ValidationError as error:
        raise WrongUse("; ".join(map(str, shape_problems(error)))) from error


def read_labels(pairs: Sequence[str] | None) -> dict[str, str]:
    """Return the labels that ``--label KEY=VALUE`` and its repetitions mean. Raises WrongUse."""
    labels: dict[str, str] = {}
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not (key and separator):
            raise WrongUse(f'--label {pair}: write KEY=VALUE, for example "team=search"')
        if not _is_text(pair):
            raise WrongUse(f"--label {quoted(pair)}: a label is UTF-8, without NUL")
        # Of two values the last would win, and nobody would hear of the other.
        if labels.setdefault(key, value) != value:
            raise WrongUse(f"--label {pair}: {key} is {labels[key]} already; a label has one value")
    return labels


def _is_text(text: str) -> bool:
    """Whether Postgres and JSON can hold it: what is no UTF-8 reaches us as lone surrogates."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
