"""What is imported into RabbitMQ: shapes, names and hashes. What they do is tested on a real broker."""

import base64
import hashlib
import json

import pytest

from messaging.definitions import Role, User, definitions, password_hash, policies, rights_of
from messaging.topology import EXCHANGES, QUEUES

WORKER = User("analysts", Role.WORKER, ["key.words", "structure"])


def test_all_exchanges_and_queues_of_the_topology_are_there_and_those_of_the_agents() -> None:
    made = definitions([WORKER], {})
    assert {exchange["name"] for exchange in made["exchanges"]} == {exchange.name for exchange in EXCHANGES}
    queues = {queue.name for queue in QUEUES} | {"agent.key.words", "agent.structure"}
    assert {queue["name"] for queue in made["queues"]} == queues
    bound = {(binding["source"], binding["routing_key"], binding["destination"]) for binding in made["bindings"]}
    assert ("orchestrator.tasks", "key.words", "agent.key.words") in bound
    assert {queue["name"] for queue in made["queues"] if queue["arguments"] != {"x-queue-type": "quorum"}} == set()


def test_a_dot_in_an_agents_name_is_a_dot_alone() -> None:
    assert r"key\.words" in rights_of(WORKER).read


def test_passwords_are_salted_hashes_as_rabbitmq_keeps_them() -> None:
    kept = base64.b64decode(password_hash("our word"))
    assert kept[4:] == hashlib.sha256(kept[:4] + b"our word").digest()
    assert password_hash("our word") != password_hash("our word")
    assert "our word" not in json.dumps(definitions([WORKER], {"analysts": "our word"}))


def test_who_has_no_password_cannot_log_in_and_only_administrators_have_a_tag() -> None:
    [worker, boss] = definitions([WORKER, User("boss", Role.ADMINISTRATOR)], {"boss": "x"})["users"]
    assert (worker["password_hash"], worker["tags"], boss["tags"]) == ("", [], ["administrator"])


@pytest.mark.parametrize(("major_version", "unlimited"), [(3, False), (4, True)])
def test_a_limit_of_minus_one_is_for_brokers_that_know_it(major_version: int, unlimited: bool) -> None:
    limits = [policy["definition"]["delivery-limit"] for policy in policies(major_version)]
    assert (-1 in limits) is unlimited
