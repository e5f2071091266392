"""How a run's end is told: its output on stdout, what went wrong on stderr, and the exit code."""

import typer

from orchestrator.cli.terminal import FAILED, WRONG_USE, print_json
from schemas.messages import ErrorInfo, RunResult
from schemas.statuses import ResultStatus


def tell(result: RunResult, *, as_json: bool) -> None:
    """Print a result and raise the exit code that it stands for."""
    error = result.error
    if as_json:
        described = error.model_dump(exclude_none=True) if error is not None else None
        print_json({"run_id": str(result.run_id), "status": result.status, "output": result.output, "error": described})
    elif result.status is ResultStatus.COMPLETED:
        print_json(result.output)
    if error is not None and not as_json:
        _tell_error(result, error)
    codes = {ResultStatus.COMPLETED: 0, ResultStatus.REJECTED: WRONG_USE}
    raise typer.Exit(codes.get(result.status, FAILED))


def _tell_error(result: RunResult, error: ErrorInfo) -> None:
    typer.echo(f"run {result.run_id} {result.status}: {error.message} [{error.code}]", err=True)
    for failure in (error.details or {}).get("failed_steps", []):
        typer.echo(f"  {failure['step_id']}: {failure['message']} [{failure['code']}]", err=True)
