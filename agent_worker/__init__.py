"""The service that runs agents: it consumes tasks and reports results."""
