"""The census as numbers for a monitor."""

from messaging.monitoring.instruments import MAX_SERIES, OTHER, Gauge
from orchestrator.service.census_gauges import census_gauges
from orchestrator.storage.census import Census, GateTotals, OutboxTotals
from schemas.statuses import RunStatus, StepStatus


def census(agents: int = 1) -> Census:
    return Census(
        runs={RunStatus.PENDING: 0, RunStatus.RUNNING: 2},
        branches={StepStatus.QUEUED: 5},
        attempts={(f"agent-{number:03}", StepStatus.QUEUED): number + 1 for number in range(agents)},
        gates=GateTotals(gates=1, slots=4, used=3, waiting=7),
        outbox=OutboxTotals(messages=9, due=2, unroutable=1, oldest_seconds=1.5),
        dead_letters={"internal_error": 1},
        complete=True,
    )


def values(gauges: object) -> dict[tuple[str, ...], float]:
    assert isinstance(gauges, list)
    return {
        (gauge.description.name, *labels): value
        for gauge in gauges
        if isinstance(gauge, Gauge)
        for labels, value in gauge.values.items()
    }


def test_every_count_is_a_number_under_its_name() -> None:
    found = values(census_gauges(census(), 0.01))
    assert found == {
        ("forkjoin_census_up",): 1,
        ("forkjoin_census_complete",): 1,
        ("forkjoin_census_seconds",): 0.01,
        ("forkjoin_runs", "PENDING"): 0,
        ("forkjoin_runs", "RUNNING"): 2,
        ("forkjoin_branches", "QUEUED"): 5,
        ("forkjoin_agent_attempts", "agent-000", "QUEUED"): 1,
        ("forkjoin_gates",): 1,
        ("forkjoin_gate_slots",): 4,
        ("forkjoin_gate_slots_used",): 3,
        ("forkjoin_gate_branches_waiting",): 7,
        ("forkjoin_outbox_messages",): 9,
        ("forkjoin_outbox_due_messages",): 2,
        ("forkjoin_outbox_unroutable_messages",): 1,
        ("forkjoin_outbox_oldest_seconds",): 1.5,
        ("forkjoin_dead_letters", "internal_error"): 1,
    }


def test_without_a_census_nothing_is_claimed() -> None:
    assert values(census_gauges(None, 0)) == {("forkjoin_census_up",): 0}


def test_however_many_agents_documents_name_there_are_so_many_series() -> None:
    found = values(census_gauges(census(agents=1_000), 0))
    attempts = {labels: number for labels, number in found.items() if labels[0] == "forkjoin_agent_attempts"}
    assert len(attempts) == MAX_SERIES + 1
    assert sum(attempts.values()) == 1_000 * 1_001 / 2
    assert attempts["forkjoin_agent_attempts", OTHER, OTHER] == 900 * 901 / 2
