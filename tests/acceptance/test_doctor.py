"""`forkjoin doctor` on real servers."""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from messaging.definitions import Role, User, definitions
from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.services.rabbitmq import RabbitMQ


@pytest.fixture
def management_url(rabbitmq: RabbitMQ) -> str:
    management = rabbitmq.management
    if management is None:
        pytest.skip(f"needs RabbitMQ's management API; {rabbitmq.origin} has none")
    return management.base.replace("://", f"://{management.user}:{management.password}@")


def examined(cluster: Cluster, *options: str, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = cluster.forkjoin("doctor", "--json", *options, **environment)
    assert done.stdout, done.stderr
    return done.returncode, {finding["code"]: finding for finding in json.loads(done.stdout)}


def test_a_deployment_that_works_has_no_problem_but_those_of_the_tests_servers(
    cluster: Cluster, rabbitmq: RabbitMQ, management_url: str
) -> None:
    assert rabbitmq.management is not None
    major = int(rabbitmq.management.version().partition(".")[0])
    vhost = cluster.amqp_url.rpartition("/")[2]
    imported = definitions([User("nobody-of-doctor", Role.WORKER, ["echo"])], {}, vhost=vhost, major_version=major)
    rabbitmq.management.call("POST", "/definitions", imported)
    rabbitmq.management.call("DELETE", "/users/nobody-of-doctor")
    cluster.start_orchestrator()
    cluster.start_worker()

    found: dict[str, dict[str, Any]] = {}

    def only_the_tests_own() -> bool:
        found.update(examined(cluster, "--management-url", management_url)[1])
        bad = {code for code, finding in found.items() if finding["level"] in {"problem", "warning"}}
        return bad <= {"database_durability", "database_version"}  # Postgres may run without fsync here

    # RabbitMQ's API tells of policies a few seconds late.
    wait_until(only_the_tests_own, PATIENCE, lambda: str(found))
    assert {"queues", "delivery_limits", "permissions", "queue_arguments", "database_schema", "clock"} <= found.keys()


def test_before_anything_was_set_up_it_says_what_to_do_and_ends_with_1(bare: Cluster) -> None:
    code, found = examined(bare)
    assert code == 1
    assert (found["database_schema"]["level"], found["database_schema"]["advice"]) == (
        "problem",
        "run `forkjoin migrate` first",
    )
    assert found["queues"]["level"] == "problem"
    assert found["alarms"]["level"] == "unknown"
    assert found["broker_version"]["seen"].startswith("RabbitMQ ")
    assert found["broker_version"]["level"] == "ok"


def test_servers_that_are_not_there_are_findings_too(cluster: Cluster) -> None:
    nowhere = {
        "FORKJOIN_DATABASE_URL": "postgresql://nobody:hush@127.0.0.1:1/nothing",
        "FORKJOIN_AMQP_URL": f"{cluster.amqp_url}-nowhere",
        "FORKJOIN_MANAGEMENT_URL": "http://somebody:hush@127.0.0.1:1",
    }
    code, found = examined(cluster, **nowhere)
    assert code == 1
    assert {name: finding["level"] for name, finding in found.items()} == dict.fromkeys(
        ["database", "management", "broker"], "problem"
    )
    assert "hush" not in str(found)


def test_how_long_agents_take_is_unknown_without_a_database(cluster: Cluster) -> None:
    _, found = examined(cluster, FORKJOIN_DATABASE_URL="postgresql://nobody:hush@127.0.0.1:1/nothing")
    assert (found["broker"]["level"], found["consumer_timeout"]["level"]) == ("ok", "unknown")


def test_with_the_tag_monitoring_all_but_permissions_is_seen(
    cluster: Cluster, rabbitmq: RabbitMQ, management_url: str
) -> None:
    assert rabbitmq.management is not None
    vhost = cluster.amqp_url.rpartition("/")[2]
    rabbitmq.management.call("PUT", "/users/watcher-of-doctor", {"password": "word", "tags": "monitoring"})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    rabbitmq.management.call("PUT", f"/permissions/{vhost}/watcher-of-doctor", everything)
    watcher = f"amqp://watcher-of-doctor:word@{cluster.amqp_url.partition('@')[2]}"
    try:
        _, found = examined(cluster, "--management-url", rabbitmq.management.base, FORKJOIN_AMQP_URL=watcher)
    finally:
        rabbitmq.management.call("DELETE", "/users/watcher-of-doctor")
    assert "management" not in found
    assert (found["broker_version"]["level"], found["alarms"]["level"]) == ("ok", "ok")
    assert found["permissions"]["level"] == "unknown"


class _Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def other_service() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_management_url_of_another_service_is_a_finding(cluster: Cluster, other_service: str) -> None:
    code, found = examined(cluster, "--management-url", other_service)
    assert (code, found["management"]["level"]) == (1, "problem")
    assert "is not RabbitMQ's management API" in found["management"]["seen"]
    assert found["broker"]["level"] == "ok"


def test_a_user_without_the_rights_is_told(cluster: Cluster, rabbitmq: RabbitMQ, management_url: str) -> None:
    assert rabbitmq.management is not None
    vhost = cluster.amqp_url.rpartition("/")[2]
    poor = {"configure": "^$", "write": ".*", "read": ".*"}
    rabbitmq.management.call("PUT", "/users/poor-of-doctor", {"password": "word", "tags": ""})
    rabbitmq.management.call("PUT", f"/permissions/{vhost}/poor-of-doctor", poor)
    host = cluster.amqp_url.partition("@")[2]
    try:
        _, found = examined(
            cluster, "--management-url", management_url, FORKJOIN_AMQP_URL=f"amqp://poor-of-doctor:word@{host}"
        )
    finally:
        rabbitmq.management.call("DELETE", "/users/poor-of-doctor")
    assert found["permissions"]["level"] == "problem"
    assert "may not configure orchestrator.runs" in found["permissions"]["seen"]
