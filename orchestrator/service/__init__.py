"""The loops of the orchestrator: they load, let the core decide, store and send. Start at `replica`."""
