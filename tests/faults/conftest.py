"""A cluster of real processes for each test, times of recovery, and ``pytest tests/faults --repeat 20``."""

import pytest

from tests.acceptance.conftest import cluster
from tests.faults.recovery import Recovery

__all__ = ["cluster"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let every fault test be repeated; known where this directory is among pytest's arguments."""
    parser.addoption("--repeat", type=int, default=1, metavar="TIMES", help="run each fault test so many times")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each repetition."""
    times = metafunc.config.getoption("--repeat", default=1)
    if times > 1:
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize("repetition", range(1, times + 1))


@pytest.fixture
def recovery(request: pytest.FixtureRequest) -> Recovery:
    """Takes the times after the fault of this test."""
    return Recovery(request.config, request.node.name.removeprefix("test_").replace("_", " "))
