"""How many attempts of a limited agent may be let through: slots and tokens."""

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.engine.agent_limit import AgentLimit, Bucket, burst, held, let_through, next_token, refilled, room
from orchestrator.engine.records import StepExecution
from schemas.statuses import StepStatus
from tests.unit.orchestrator.engine.scene import RUN

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
RATES = [0.001, 0.5, 1.0, 7.0, 20.0, 1_000.0]


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def step(**fields: object) -> StepExecution:
    return StepExecution(run_id=RUN, step_id="s", status=StepStatus.QUEUED, agent_name="x", queued_at=NOON)._replace(
        **fields
    )


@pytest.mark.parametrize(
    ("limit", "taken", "tokens", "free"),
    [
        (AgentLimit(), 5, 0.0, None),
        (AgentLimit(3), 0, 0.0, 3),
        (AgentLimit(3), 2, 0.0, 1),
        (AgentLimit(3), 3, 9.0, 0),
        (AgentLimit(3), 5, 9.0, 0),  # it was lowered
        (AgentLimit(0), 0, 9.0, 0),
        (AgentLimit(None, 10.0), 99, 2.9, 2),
        (AgentLimit(None, 10.0), 0, 0.9, 0),
        (AgentLimit(3, 10.0), 0, 2.0, 2),
        (AgentLimit(3, 10.0), 2, 2.0, 1),
    ],
)
def test_there_is_room_for_free_slots_that_have_tokens(
    limit: AgentLimit, taken: int, tokens: float, free: int | None
) -> None:
    assert room(limit, taken, tokens) == free


def test_a_token_that_rounding_has_gnawed_at_is_whole() -> None:
    assert room(AgentLimit(None, 3.0), 0, sum([0.1] * 10)) == 1


@pytest.mark.parametrize("rate", RATES)
def test_tokens_flow_in_at_the_rate_until_the_bucket_is_full(rate: float) -> None:
    assert refilled(Bucket(0.0, NOON), rate, later(0.25 / rate)) == Bucket(
        pytest.approx(0.25, rel=0.01), later(0.25 / rate)
    )
    assert refilled(Bucket(0.0, NOON), rate, later(1e6)) == Bucket(burst(rate), later(1e6))


def test_a_clock_that_went_back_takes_nothing_out_and_gives_nothing_twice() -> None:
    assert refilled(Bucket(0.5, NOON), 10.0, later(-60)) == Bucket(0.5, NOON)


def test_without_a_rate_tokens_stay_as_they_are() -> None:
    assert refilled(Bucket(0.5, NOON), None, later(60)) == Bucket(0.5, NOON)


@pytest.mark.parametrize("rate", RATES)
def test_a_bucket_holds_a_whole_token_and_no_more_than_a_tenth_of_a_second_beyond(rate: float) -> None:
    assert 1 < burst(rate) <= 1 + rate / 10
    assert room(AgentLimit(None, rate), 0, burst(rate)) == max(1, int(rate / 10))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("look", [0.05, 0.3])
def test_in_no_span_of_time_more_start_than_the_rate_and_a_full_bucket_allow(rate: float, look: float) -> None:
    bucket, now = Bucket(burst(rate), NOON), NOON
    starts = 0
    for _ in range(200):
        bucket = refilled(bucket, rate, now)
        free = room(AgentLimit(None, rate), 0, bucket.tokens) or 0
        bucket, starts = bucket.without(free), starts + free
        assert starts <= rate * (now - NOON).total_seconds() + burst(rate) + 1e-6
        now += timedelta(seconds=look)


@pytest.mark.parametrize("rate", [0.5, 1.0, 7.0, 20.0, 1_000.0])
def test_who_looks_late_each_time_still_reaches_the_rate(rate: float) -> None:
    late = timedelta(seconds=0.02)
    limit, bucket, now = AgentLimit(None, rate), Bucket(burst(rate), NOON), NOON
    starts = 0
    while now < later(100 / rate):
        bucket = refilled(bucket, rate, now)
        free = room(limit, 0, bucket.tokens) or 0
        bucket, starts = bucket.without(free), starts + free
        now += (next_token(limit, bucket) or timedelta()) + late
    assert starts >= 98


def test_the_next_token_is_there_when_it_is_said_to_be() -> None:
    limit, bucket = AgentLimit(None, 0.1), Bucket(0.25, NOON)
    wait = next_token(limit, bucket)
    assert wait == timedelta(seconds=7.5)
    assert room(limit, 0, refilled(bucket, 0.1, NOON + wait).tokens) == 1


@pytest.mark.parametrize(("limit", "tokens"), [(AgentLimit(3), 0.0), (AgentLimit(3, 10.0), 1.0)])
def test_where_it_is_not_tokens_that_are_wanting_there_is_nothing_to_wait_for(limit: AgentLimit, tokens: float) -> None:
    assert next_token(limit, Bucket(tokens, NOON)) is None


@pytest.mark.parametrize(
    ("limit", "holds"), [(AgentLimit(), False), (AgentLimit(0), True), (AgentLimit(None, 1.0), True)]
)
def test_a_limit_holds_when_it_says_anything(limit: AgentLimit, holds: bool) -> None:
    assert limit.holds is holds


def test_the_time_to_wait_for_a_worker_begins_when_a_task_is_let_through() -> None:
    waits = held(step(queue_timeout_seconds=60.0, due_at=later(60)))
    assert waits.due_at is None
    assert let_through(waits, later(3_600)) == step(
        queue_timeout_seconds=60.0, queued_at=later(3_600), due_at=later(3_660)
    )


def test_the_time_of_a_branch_goes_on_while_its_task_is_held() -> None:
    waits = held(step(queue_timeout_seconds=60.0, due_at=later(60), branch_due_at=later(100)))
    assert waits.due_at == later(100)
    assert let_through(waits, later(10)).due_at == later(70)
    assert let_through(waits, later(90)).due_at == later(100)
