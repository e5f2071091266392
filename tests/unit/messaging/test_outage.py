"""What a client with two connections says of an outage."""

from typing import Any

from structlog.testing import capture_logs

from messaging.port import BrokerUnavailable
from messaging.rabbitmq.failures import ConnectionRefused
from messaging.rabbitmq.outage import Outage

AWAY = BrokerUnavailable("cannot be reached")


def actions(lines: list[Any]) -> list[str]:
    return [f"{line['action']} {line.get('connection', '')}".strip() for line in lines]


def test_one_line_when_the_broker_is_lost_and_one_when_all_connections_are_back() -> None:
    outage = Outage("host:5672")
    with capture_logs() as lines:
        for name in ("publish", "consume"):
            outage.connected(name)
        outage.lost("publish", "cut")
        for _ in range(100):
            outage.unreachable("publish", AWAY)
        outage.lost("consume", "cut")
        outage.unreachable("consume", AWAY)
        outage.connected("consume")
        outage.unreachable("publish", AWAY)
        outage.connected("publish")
    assert actions(lines) == ["broker_connection_lost publish", "broker_connection_restored"]
    assert outage.reconnects == 2, "the first connection is none"


def test_a_second_outage_is_told_as_the_first_was() -> None:
    outage = Outage("host:5672")
    with capture_logs() as lines:
        for _ in range(2):
            outage.lost("publish", "cut")
            outage.connected("publish")
    assert actions(lines) == ["broker_connection_lost publish", "broker_connection_restored"] * 2


def test_a_broker_that_is_away_from_the_beginning_is_told_of_once() -> None:
    outage = Outage("host:5672")
    with capture_logs() as lines:
        for _ in range(100):
            outage.unreachable("publish", AWAY)
        outage.connected("publish")
        outage.connected("consume")
    assert actions(lines) == ["broker_unreachable publish"]


def test_a_broker_that_is_there_and_refuses_us_is_told_of_in_an_outage_too() -> None:
    outage = Outage("host:5672")
    with capture_logs() as lines:
        outage.lost("publish", "cut")
        outage.unreachable("publish", AWAY)
        for _ in range(10):
            outage.unreachable("publish", ConnectionRefused("refused the password"))
    assert actions(lines) == ["broker_connection_lost publish", "broker_unreachable publish"]
