"""``python -m orchestrator`` is ``forkjoin``."""

from orchestrator.cli import main

main()
