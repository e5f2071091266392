import asyncio
import json
import logging
from typing import Any

import pytest
import structlog

from messaging.telemetry import LogFormat, LogLevel, about, configure_logging


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


async def test_lines_of_a_task_and_of_its_threads_say_what_it_is_about_and_those_of_others_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(LogLevel.INFO, LogFormat.JSON)

    async def work(number: int) -> None:
        about(lambda: {"run_id": number, "attempt": 1})
        await asyncio.sleep(0)
        structlog.get_logger().info("Working", action="working", attempt=2)
        await asyncio.to_thread(logging.getLogger("library").warning, "from a thread")

    await asyncio.gather(work(1), work(2))
    structlog.get_logger().info("Done", action="done")
    told = [json.loads(line) for line in lines(capsys)]
    assert sorted((line["event"], line.get("run_id"), line.get("attempt")) for line in told[:4]) == [
        ("Working", 1, 2),
        ("Working", 2, 2),
        ("from a thread", 1, 1),
        ("from a thread", 2, 1),
    ]
    assert "run_id" not in told[4]


async def test_an_agents_own_lines_and_those_of_its_libraries_carry_the_ids_of_the_attempt(
    bench: Any, task: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogLevel.INFO, LogFormat.JSON)

    @bench.agents.agent("echo")
    async def echo(input: Any) -> Any:
        structlog.get_logger("mine").info("Asking", action="asking")
        logging.getLogger("a.library").warning("slow")
        return input

    @bench.agents.agent("sync")
    def sync(input: Any) -> Any:
        logging.getLogger("a.library").warning("slow")
        return input

    await bench.start()
    sent = {name: task(name, attempt=3) for name in ("echo", "sync")}
    for one in sent.values():
        await bench.send(one)
        await bench.report()
    told = [line for line in map(json.loads, lines(capsys)) if line["event"] in {"Asking", "slow"}]
    ids = ("agent_name", "run_id", "step_id", "attempt", "task_id")
    expected = {name: (name, str(one.run_id), "step-a", 3, str(one.task_id)) for name, one in sent.items()}
    assert [tuple(line[name] for name in ids) for line in told] == [
        expected["echo"],
        expected["echo"],
        expected["sync"],
    ]
