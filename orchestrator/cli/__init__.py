"""The `forkjoin` command. Start at `orchestrator.cli.app`."""

from orchestrator.cli.app import app, main

__all__ = ["app", "main"]
