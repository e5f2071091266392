"""Each rule of the protocol is needed: without it the checker finds a short way to a broken promise.

`test_protocol` has the scopes in which some of these variants do no harm, and why.
"""

from typing import Any, NamedTuple

import pytest

from tests.model.checker import Finding, explore
from tests.model.protocol import Protocol
from tests.model.variants import Scope, Variant

LONGEST_TRACE = 40


class Case(NamedTuple):
    """A broken protocol, the promise that it breaks, and words that its trace and its end must hold."""

    variants: frozenset[Variant]
    scope: Scope
    oracle: str
    trace: tuple[str, ...] = ()
    end: str = ""


def case(*variants: Variant, oracle: str, trace: tuple[str, ...] = (), end: str = "", **size: Any) -> Case:
    chosen = frozenset(variants)
    return Case(chosen, Scope(variants=chosen, **size), oracle, trace, end)


CASES = {
    "a COMMIT whose answer is lost leaves nobody to send the tasks": case(
        Variant.NO_OUTBOX, branches=2, limit=2, faults=1, oracle="O1", trace=("answer is lost",), end="branch a QUEUED"
    ),
    "a gate's own transaction has no delivery that would come again": case(
        Variant.NO_OUTBOX, branches=2, limit=1, faults=1, oracle="O1", trace=("FAULT",), end="for workers 0 tasks"
    ),
    "duplicates that look for what is due do not know which messages were sent": case(
        Variant.NO_OUTBOX, Variant.DUPLICATES_DRIVE_ON, branches=2, limit=2, faults=1, oracle="O1", trace=("FAULT",)
    ),
    "a worker is quicker than the COMMIT, and no lock makes its result wait for a run that is not there yet": case(
        Variant.PUBLISH_BEFORE_COMMIT,
        branches=2,
        limit=2,
        faults=0,
        oracle="O1",
        trace=("before its COMMIT", "publishes the result of branch a", "replica 2 takes the result"),
        end="branch a QUEUED",
    ),
    "an acked delivery dies with its replica": case(
        Variant.ACK_BEFORE_COMMIT, branches=2, limit=2, faults=1, oracle="O1", trace=("replica 1 dies",)
    ),
    "two holders of one gate have a window each": case(
        Variant.LIMIT_BY_QUEUE_ONLY, branches=3, limit=1, faults=1, oracle="O4", trace=("lease of the gate lapses",)
    ),
    "a window opens again for each holder, with any limit": case(
        Variant.LIMIT_BY_QUEUE_ONLY, branches=3, limit=2, faults=1, oracle="O4", trace=("FAULT",)
    ),
    "the last two branches both see one other, and nobody joins": case(
        Variant.JOIN_WITHOUT_LOCK,
        branches=2,
        limit=2,
        faults=0,
        oracle="O1",
        trace=("replica 1 takes the result", "replica 2 takes the result"),
        end="1 open",
    ),
    "a slot is handed on twice, from counters that are out of date": case(
        Variant.JOIN_WITHOUT_LOCK, branches=3, limit=2, faults=0, oracle="O7"
    ),
    "two replicas accept the same result": case(
        Variant.JOIN_WITHOUT_LOCK,
        branches=2,
        limit=2,
        faults=1,
        oracle="O2",
        trace=("delivered again", "replica 2 takes"),
    ),
    "the result that was to join is a duplicate the second time": case(
        Variant.FOLLOW_UP_APART,
        branches=2,
        limit=2,
        faults=1,
        oracle="O1",
        trace=("result of branch b", "FAULT"),
        end="0 open",
    ),
    "the ticket of a branch that has its slot already is no permission": case(
        Variant.FORWARD_REPEATED_TICKETS, branches=2, limit=1, workers=2, faults=0, oracle="O3"
    ),
    "a repeated result frees no second slot": case(
        Variant.FORWARD_REPEATED_RESULTS, branches=3, limit=1, faults=1, oracle="O4", trace=("FAULT",)
    ),
    "an acked task dies with its worker": case(
        Variant.ACK_TASK_BEFORE_RESULT, branches=2, limit=2, faults=1, oracle="O1", trace=("worker 1 dies",)
    ),
    "tickets that were lost with their queue fill no slot": case(
        Variant.NO_RECONCILIATION, branches=2, limit=1, faults=1, oracle="O1", trace=("gate queue is lost",)
    ),
    "tickets that no queue will ever take stay in the outbox": case(
        Variant.TICKETS_OUTLIVE_GATE, branches=2, limit=1, faults=1, oracle="O5", end="in the outbox ticket of branch a"
    ),
}


@pytest.mark.parametrize("broken", CASES.values(), ids=CASES)
def test_a_missing_rule_breaks_a_promise_and_a_short_trace_shows_how(broken: Case) -> None:
    report = explore(Protocol(broken.scope))
    print(f"{broken.scope}: {report.states:,} states\n{report.finding}")
    finding = report.finding
    assert finding is not None, f"the checker does not see that {broken.scope} is broken"
    assert finding.oracle.startswith(broken.oracle), str(finding)
    assert broken.end in finding.oracle, str(finding)
    assert len(finding.trace) <= LONGEST_TRACE, str(finding)
    assert has_in_order(finding, broken.trace), str(finding)


def test_every_variant_is_found_by_the_checker() -> None:
    repair = {Variant.DUPLICATES_DRIVE_ON}
    found = {variant for broken in CASES.values() for variant in broken.variants}
    assert found | repair == set(Variant)


def has_in_order(finding: Finding, words: tuple[str, ...]) -> bool:
    """Whether the lines of the trace hold these words, one after the other."""
    lines = iter(finding.trace)
    return all(any(word in line for line in lines) for word in words)
