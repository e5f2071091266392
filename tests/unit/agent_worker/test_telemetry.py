import json
import logging

import pytest
import structlog

from messaging.telemetry import LogFormat, LogLevel, configure_logging


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_json_lines_hold_the_event_its_level_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    structlog.get_logger("mine").info("Ünder way", action="going", count=3)
    structlog.get_logger("mine").debug("Not shown")
    logging.getLogger("library").warning("from %s", "elsewhere")
    first, second = map(json.loads, lines(capsys))
    assert {key: first[key] for key in ("event", "action", "count", "level", "logger")} == {
        "event": "Ünder way",
        "action": "going",
        "count": 3,
        "level": "info",
        "logger": "mine",
    }
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["level"]) == ("from elsewhere", "warning")


def test_an_exception_is_one_json_line_without_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    password = "hush"  # noqa: F841
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger().exception("It failed", action="failed")
    (line,) = lines(capsys)
    assert "ValueError: broken" in json.loads(line)["exception"]
    assert "hush" not in json.loads(line)["exception"].replace('password = "hush"', "")


def test_away_from_a_terminal_the_default_is_json_and_console_can_be_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging()
    structlog.get_logger().warning("Once")
    configure_logging(format=LogFormat.CONSOLE)
    structlog.get_logger().warning("Twice", action="again")
    first, second = lines(capsys)
    assert json.loads(first)["event"] == "Once"
    assert "Twice" in second
    assert "action=again" in second


def test_the_clients_own_chatter_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogLevel.DEBUG, LogFormat.JSON)
    logging.getLogger("aiormq.connection").error("refused")
    logging.getLogger("aio_pika.robust").critical("lost")
    logging.getLogger("alembic.runtime.migration").info("Context impl PostgresqlImpl.")
    assert [json.loads(line)["event"] for line in lines(capsys)] == ["lost"]
