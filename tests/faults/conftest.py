"""A cluster of real processes for each test."""

from tests.acceptance.conftest import cluster

__all__ = ["cluster"]
