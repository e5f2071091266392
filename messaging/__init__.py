"""The broker port, the topology and the adapters that both services share."""
