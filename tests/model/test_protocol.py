"""The protocol of gate, outbox and join keeps its promises, in every order of events and with every fault in reach.

Each test explores all states of a scope and prints how many there were (`pytest -s`). When one goes red it prints the
shortest trace; `checker` says how to read it, `variants` what the product would look like with a rule taken away.
"""

from dataclasses import replace

import pytest

from tests.model.checker import explore
from tests.model.protocol import Protocol
from tests.model.state import History, Rows, State
from tests.model.variants import Scope, Variant

HOLDING = [
    Scope(branches=2, limit=2, faults=2),
    pytest.param(Scope(branches=2, limit=1, faults=2), marks=pytest.mark.slow),
    Scope(branches=3, limit=2, faults=1),
    Scope(branches=3, limit=1, faults=1),
    Scope(branches=3, limit=3, faults=1),
    Scope(branches=2, limit=1, faults=1, workers=2),
    Scope(branches=2, limit=2, faults=1, starts=True),
]


class Watched(Protocol):
    """Remembers what the rows were on the way, and what had happened at each quiet end."""

    def __init__(self, scope: Scope, *, reduced: bool) -> None:
        super().__init__(scope, reduced=reduced)
        self.rows: set[tuple[int, Rows]] = set()
        self.ends: set[tuple[int, History]] = set()

    def broken(self, state: State) -> str | None:
        self.rows.add((state.faults_left, state.database.rows))
        if self.is_quiet(state):
            self.ends.add((state.faults_left, state.history))
        return super().broken(state)


@pytest.mark.parametrize("scope", HOLDING, ids=str)
def test_every_oracle_holds_in_every_state_and_a_quiet_end_can_always_be_reached(scope: Scope) -> None:
    report = explore(Protocol(scope))
    print(f"{scope}: {report.states:,} states")
    assert report.finding is None, str(report.finding)


@pytest.mark.parametrize("limit", [1, 2])
def test_without_faults_every_step_runs_exactly_once(limit: int) -> None:
    scope = Scope(branches=3, limit=limit, faults=0, workers=2)
    watched = Watched(scope, reduced=True)
    assert explore(watched).finding is None
    assert watched.ends == {(0, History((1,) * 4, (1,) * 4, 1, True))}


@pytest.mark.parametrize(
    "scope",
    [
        Scope(branches=2, limit=1, replicas=1, faults=0),
        Scope(branches=2, limit=2, faults=0),
        Scope(branches=1, limit=1, replicas=1, faults=1),
    ],
    ids=str,
)
def test_orders_that_are_left_out_lead_nowhere_else(scope: Scope) -> None:
    """What one crash does in full exploration may take one crash more in the reduced one; see `Protocol`."""
    reduced, full = Watched(scope, reduced=True), Watched(scope, reduced=False)
    some, everything = explore(reduced), explore(full)
    print(f"{scope}: {some.states:,} of {everything.states:,} states")
    assert some.finding is everything.finding is None
    assert reduced.rows == full.rows
    assert reduced.ends <= full.ends
    one_more = Watched(replace(scope, faults=scope.faults * 2), reduced=True)
    explore(one_more)
    assert {history for _, history in full.ends} <= {history for _, history in one_more.ends}


HARMLESS = {
    "with no lock but one replica, nobody else writes between its read and its write": Scope(
        branches=2, limit=2, replicas=1, faults=0, variants=frozenset({Variant.JOIN_WITHOUT_LOCK})
    ),
    "a prefetch alone keeps the limit until a gate changes hands": Scope(
        branches=3, limit=1, faults=0, variants=frozenset({Variant.LIMIT_BY_QUEUE_ONLY})
    ),
    "a gated block may publish before its COMMIT, for the lock makes each answer wait": Scope(
        branches=2, limit=1, faults=1, variants=frozenset({Variant.PUBLISH_BEFORE_COMMIT})
    ),
    "a follow-up of its own transaction is made up for by duplicates that drive on": Scope(
        branches=2,
        limit=2,
        faults=1,
        variants=frozenset({Variant.FOLLOW_UP_APART, Variant.DUPLICATES_DRIVE_ON}),
    ),
    "one worker answers forwarded tickets from memory": Scope(
        branches=2, limit=1, faults=0, variants=frozenset({Variant.FORWARD_REPEATED_TICKETS})
    ),
}


@pytest.mark.parametrize("scope", HARMLESS.values(), ids=HARMLESS)
def test_a_missing_rule_is_harmless_where_another_one_covers_for_it(scope: Scope) -> None:
    report = explore(Protocol(scope))
    print(f"{scope}: {report.states:,} states")
    assert report.finding is None, str(report.finding)
