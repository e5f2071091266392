"""What facts about a deployment mean. Where they come from is tested on real servers."""

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from messaging.port import QueueDepth
from messaging.topology import QUEUES
from orchestrator.doctor.broker import BrokerFacts, Managed, examine_broker
from orchestrator.doctor.database import Content, DatabaseFacts, _timeouts, examine_database
from orchestrator.doctor.findings import Level
from orchestrator.doctor.management import Management
from orchestrator.errors import WrongUse

OK, UNKNOWN, WARNING, PROBLEM = Level.OK, Level.UNKNOWN, Level.WARNING, Level.PROBLEM

SETTINGS = {
    "server_version_num": "170002",
    "server_version": "17.2",
    "max_connections": "100",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}
CONTENT = Content(oldest_unsent=None, dead_letters=0, open_runs=3, longest_timeout=60.0)
DATABASE = DatabaseFacts(SETTINGS, 5, timedelta(), None, CONTENT)


def levels(facts: DatabaseFacts, pool_size: int = 10) -> dict[str, Level]:
    return {finding.code: finding.level for finding in examine_database(facts, pool_size)}


def test_a_good_database_is_all_right() -> None:
    assert set(levels(DATABASE).values()) == {OK}


@pytest.mark.parametrize(
    ("changed", "code", "level"),
    [
        ({"settings": SETTINGS | {"server_version_num": "130004"}}, "database_version", WARNING),
        ({"schema_difference": "it is older: run it", "content": None}, "database_schema", PROBLEM),
        ({"settings": SETTINGS | {"fsync": "off"}}, "database_durability", PROBLEM),
        ({"settings": SETTINGS | {"synchronous_commit": "off"}}, "database_durability", PROBLEM),
        ({"settings": SETTINGS | {"max_connections": "29"}}, "database_connections", WARNING),
        ({"settings": SETTINGS | {"max_connections": "19"}}, "database_connections", PROBLEM),
        ({"in_use": 80}, "database_connections", OK),
        ({"in_use": 81}, "database_connections", WARNING),
        ({"apart": timedelta(seconds=2.5)}, "clock", WARNING),
        ({"apart": timedelta(seconds=-2.5)}, "clock", WARNING),
        ({"content": replace(CONTENT, oldest_unsent=timedelta(seconds=59))}, "outbox", OK),
        ({"content": replace(CONTENT, oldest_unsent=timedelta(seconds=61))}, "outbox", PROBLEM),
        ({"content": replace(CONTENT, dead_letters=1)}, "dead_letters", WARNING),
    ],
)
def test_what_is_wrong_with_a_database_is_told_alone(changed: dict[str, Any], code: str, level: Level) -> None:
    found = levels(replace(DATABASE, **changed))
    assert found[code] is level
    assert {other for name, other in found.items() if name != code} == {OK}


BLOCK = {"type": "parallel", "timeout_seconds": 9, "parallel_steps": ["in"]}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({"a": {"agent_name": "x", "timeout_seconds": 5, "next_step": "b"}, "b": {"agent_name": "x"}}, [5, math.inf]),
        (
            {"a": {**BLOCK, "next_step": "after"}, "in": {"agent_name": "x"}, "after": {"agent_name": "x"}},
            [9, math.inf],
        ),
        ({"a": BLOCK, "in": {"agent_name": "x", "timeout_seconds": 3}}, [3]),
        ({"a": {"type": "sub_workflow", "workflow_id": "other", "input_mapping": {}}}, []),
        ({"a": {"type": "of a newer version"}}, [math.inf]),
    ],
)
def test_the_time_that_agents_may_take_is_read_off_documents(steps: dict[str, Any], expected: list[float]) -> None:
    document = {"name": "w", "start_step": "a", "steps": steps}
    assert list(_timeouts(document)) == expected


POLICY = {"delivery-limit": 100, "dead-letter-exchange": "orchestrator.dead-letters"}


def queue(name: str, **fields: Any) -> dict[str, Any]:
    complete = {"durable": True, "arguments": {"x-queue-type": "quorum"}, "effective_policy_definition": POLICY}
    return {"name": name, **complete, **fields}


NAMES = [*(queue.name for queue in QUEUES), "agent.x"]
EVERYTHING = {"configure": ".*", "write": ".*", "read": ".*"}
MANAGED = Managed([{"name": "rabbit@one", "running": True}], {name: queue(name) for name in NAMES}, EVERYTHING)
BROKER = BrokerFacts("4.0.5", dict.fromkeys(NAMES, QueueDepth(ready=0, consumers=1)), MANAGED, ["x"])


def broker_levels(facts: BrokerFacts, longest: float | None = 60.0, size: int = 1024) -> dict[str, Level]:
    return {finding.code: finding.level for finding in examine_broker(facts, longest, size)}


def with_queue(name: str, **fields: Any) -> BrokerFacts:
    return replace(BROKER, managed=replace(MANAGED, queues=MANAGED.queues | {name: queue(name, **fields)}))


def with_depth(name: str, depth: QueueDepth | None) -> BrokerFacts:
    return replace(BROKER, depths={**BROKER.depths, name: depth})


def managed(**fields: Any) -> BrokerFacts:
    return replace(BROKER, managed=replace(MANAGED, **fields))


def test_a_good_broker_is_all_right() -> None:
    assert set(broker_levels(BROKER).values()) == {OK}


@pytest.mark.parametrize(
    ("facts", "code", "level"),
    [
        (with_depth("orchestrator.runs", None), "queues", PROBLEM),
        (with_depth("orchestrator.results", QueueDepth(ready=1, consumers=0)), "queues", PROBLEM),
        (with_depth("agent.x", None), "agent_queue", PROBLEM),
        (with_depth("agent.x", QueueDepth(ready=1, consumers=0)), "agent_queue", PROBLEM),
        (replace(BROKER, version="3.9.1"), "broker_version", PROBLEM),
        (replace(BROKER, version=""), "broker_version", UNKNOWN),
        (managed(nodes=[{"name": "n", "mem_alarm": True}]), "alarms", PROBLEM),
        (managed(nodes=[{"name": "n", "disk_free_alarm": True}]), "alarms", PROBLEM),
        (managed(nodes=[{"name": "n", "running": False}]), "alarms", PROBLEM),
        (with_queue("agent.x", arguments={"x-queue-type": "classic"}), "queue_arguments", PROBLEM),
        (with_queue("orchestrator.runs", durable=False), "queue_arguments", PROBLEM),
        (with_queue("agent.x", effective_policy_definition=[]), "delivery_limits", PROBLEM),
        (with_queue("agent.x", effective_policy_definition={"delivery-limit": 5}), "delivery_limits", PROBLEM),
        (with_queue("agent.x", effective_policy_definition={"delivery-limit": -1}), "delivery_limits", OK),
        (managed(permissions={}), "permissions", PROBLEM),
        (managed(permissions=None), "permissions", UNKNOWN),
        (managed(permissions=EVERYTHING | {"write": "^orchestrator"}), "permissions", PROBLEM),
        (
            with_queue("agent.x", effective_policy_definition=POLICY | {"consumer-timeout": 60_000}),
            "consumer_timeout",
            PROBLEM,
        ),
        (
            with_queue("agent.x", effective_policy_definition=POLICY | {"consumer-timeout": 61_000}),
            "consumer_timeout",
            OK,
        ),
    ],
)
def test_what_is_wrong_with_a_broker_is_told_alone(facts: BrokerFacts, code: str, level: Level) -> None:
    found = broker_levels(facts)
    assert found[code] is level
    assert {other for name, other in found.items() if name != code} <= {OK}


def test_agents_without_a_limit_take_longer_than_a_policy_lets_them() -> None:
    facts = with_queue("agent.x", effective_policy_definition=POLICY | {"consumer-timeout": 61_000})
    assert broker_levels(facts, math.inf)["consumer_timeout"] is PROBLEM


def test_before_rabbitmq_4_a_queue_without_a_limit_keeps_messages_for_ever() -> None:
    facts = with_queue("agent.x", effective_policy_definition=[])
    assert facts.managed is not None
    assert broker_levels(replace(facts, version="3.10.8"))["delivery_limits"] is WARNING


def test_what_there_are_no_queues_for_is_not_called_right() -> None:
    found = broker_levels(managed(queues={}))
    assert {found["queue_arguments"], found["delivery_limits"]} == {UNKNOWN}


@pytest.mark.parametrize(
    ("longest", "level"), [(None, UNKNOWN), (math.inf, UNKNOWN), (1_800.0, UNKNOWN), (1_799.0, OK)]
)
def test_agents_that_may_take_as_long_as_rabbitmq_waits_are_told(longest: float | None, level: Level) -> None:
    assert broker_levels(BROKER, longest)["consumer_timeout"] is level


def test_a_message_that_is_larger_than_rabbitmq_takes_is_told() -> None:
    assert broker_levels(BROKER, size=17 * 1024 * 1024)["message_size"] is WARNING


def test_what_amqp_does_not_tell_is_told_as_unknown_with_the_command_that_does() -> None:
    findings = list(examine_broker(replace(BROKER, managed=None), 60.0, 1024))
    unknown = [finding for finding in findings if finding.level is UNKNOWN]
    assert {finding.code for finding in unknown} == {"delivery_limits", "alarms"}
    assert all("rabbitmq" in finding.advice for finding in unknown)


def test_the_user_in_the_url_goes_first_and_is_not_in_the_address() -> None:
    assert Management.at("http://boss:p%40ss@rabbit:15672/", "guest", "guest") == Management(
        "http://rabbit:15672", "boss", "p@ss"
    )
    assert Management.at("https://rabbit", "guest", "word").user == "guest"


@pytest.mark.parametrize("url", ["rabbit:15672", "amqp://rabbit", "http://", "file:///etc/passwd"])
def test_a_url_that_is_none_of_the_api_is_a_mistake(url: str) -> None:
    with pytest.raises(WrongUse, match="looks like http://"):
        Management.at(url, "guest", "guest")
