"""``python -m agent_worker`` is ``forkjoin-worker``."""

from agent_worker.cli import main

main()
