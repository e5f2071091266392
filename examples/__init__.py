"""Example workflows and the agents that carry them out; see README.md in this directory."""
