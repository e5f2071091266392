"""What a process says of itself."""

from datetime import UTC, datetime

import pytest

from messaging.health import Trouble
from messaging.monitoring.condition import Condition, Phase, Status

TROUBLE = Trouble("broker", datetime(2026, 1, 1, tzinfo=UTC), "out of reach")


@pytest.mark.parametrize(
    ("phase", "troubles", "status"),
    [
        (Phase.STARTING, (), Status.STARTING),
        (Phase.STARTING, (TROUBLE,), Status.STARTING),
        (Phase.WORKING, (), Status.OK),
        (Phase.WORKING, (TROUBLE,), Status.DEGRADED),
        (Phase.STOPPING, (), Status.DRAINING),
        (Phase.STOPPING, (TROUBLE,), Status.DRAINING),
    ],
)
def test_a_process_is_ready_only_while_it_works_without_trouble(
    phase: Phase, troubles: tuple[Trouble, ...], status: Status
) -> None:
    condition = Condition(phase, troubles)
    assert condition.status is status
    assert condition.ready is (status is Status.OK)


def test_each_trouble_is_shown_with_its_reason_and_its_beginning() -> None:
    assert Condition(Phase.WORKING, (TROUBLE,)).as_json() == {
        "status": "degraded",
        "troubles": [{"part": "broker", "reason": "out of reach", "since": "2026-01-01T00:00:00+00:00"}],
    }
