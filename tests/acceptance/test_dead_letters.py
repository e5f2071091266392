"""`forkjoin dead-letters` as an operator types it, on a cluster whose orchestrator dead-letters what it cannot read."""

import json
import os
import pty
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pika
import pytest

from tests.acceptance.cluster import PATIENCE, ROOT, Cluster, wait_until

HELLO = {"name": "hello", "start_step": "one", "steps": {"one": {"agent_name": "echo"}}}


@pytest.fixture
def served(cluster: Cluster) -> Cluster:
    """A cluster with an orchestrator."""
    cluster.start_orchestrator()
    return cluster


def publish(cluster: Cluster, *bodies: bytes, **properties: Any) -> None:
    """Send requests as a client in any language does."""
    connection = pika.BlockingConnection(pika.URLParameters(cluster.amqp_url))
    channel = connection.channel()
    channel.confirm_delivery()  # without it, what a channel has just sent may be lost with the channel
    for body in bodies:
        channel.basic_publish("", "orchestrator.runs", body, pika.BasicProperties(**properties))
    connection.close()


def listed(cluster: Cluster, *options: str) -> list[dict[str, Any]]:
    done = cluster.forkjoin("dead-letters", "list", "--json", *options)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["dead_letters"]
    return found


def wait_for(cluster: Cluster, count: int) -> list[dict[str, Any]]:
    wait_until(lambda: len(listed(cluster)) == count, PATIENCE, lambda: f"not {count}: {listed(cluster)}")
    return listed(cluster)


def completed_runs(cluster: Cluster) -> str:
    return cluster.forkjoin("runs", "list", "--status", "completed").stdout


def test_an_operator_finds_out_why_puts_it_right_and_replays(served: Cluster) -> None:
    run_id = str(uuid4())
    request = {"version": 1, "run_id": run_id, "workflow_id": "hello", "input": "größe"}
    publish(served, json.dumps(request).encode(), type="RunRequest", message_id="r-1", headers={"team": "search"})
    [letter] = wait_for(served, 1)
    number = str(letter["id"])

    table = served.forkjoin("dead-letters", "list").stdout
    assert number in table
    assert "[unknown_workflow]" in table
    shown = served.forkjoin("dead-letters", "show", number).stdout
    assert "r-1" in shown
    assert '"team": "search"' in shown
    assert json.dumps(request) in shown
    described = json.loads(served.forkjoin("dead-letters", "show", number, "--json").stdout)
    assert (described["queue"], described["code"], described["run_id"]) == (
        "orchestrator.runs", "unknown_workflow", run_id,
    )  # fmt: skip
    assert (json.loads(described["body"]), described["body_encoding"]) == (request, "utf-8")

    document = served.directory / "hello.json"
    document.write_text(json.dumps(HELLO))
    assert served.forkjoin("workflows", "register", str(document)).returncode == 0
    served.start_worker()
    done = served.forkjoin("dead-letters", "replay", number)
    assert (done.returncode, done.stdout) == (0, "replayed 1 dead letter\n"), done.stderr
    wait_until(
        lambda: run_id in completed_runs(served), PATIENCE, lambda: f"{run_id} is not in:\n{completed_runs(served)}"
    )

    again = served.forkjoin("dead-letters", "replay", number)
    assert (again.returncode, again.stdout) == (2, "replayed 0 dead letters\n")
    assert f"dead letter {number} was not replayed: it is not there" in again.stderr
    gone = served.forkjoin("dead-letters", "show", number)
    assert gone.returncode == 2
    assert gone.stderr.startswith(f"forkjoin: there is no dead letter {number}: it was replayed or dropped")
    assert served.forkjoin("dead-letters", "list").stdout == "no dead letters\n"


def test_all_that_match_are_replayed_or_dropped_and_no_others(served: Cluster) -> None:
    publish(served, b"{", b"\xff", b"[]", json.dumps({"version": 9}).encode())
    wait_for(served, 4)
    assert len(listed(served, "--reason", "malformed_message")) == 3
    assert listed(served, "--queue", "other") == []
    cut = served.forkjoin("dead-letters", "list", "--limit", "1").stdout
    assert "… and 3 more" in cut
    [binary] = [letter for letter in listed(served) if letter["size"] == 1 and letter["id"] == 2]
    described = json.loads(served.forkjoin("dead-letters", "show", str(binary["id"]), "--json").stdout)
    assert (described["body"], described["body_encoding"]) == ("/w==", "base64")

    before = {letter["id"] for letter in listed(served)}
    choice = ("--all", "--reason", "malformed_message", "--yes", "--json")
    replayed = json.loads(served.forkjoin("dead-letters", "replay", *choice).stdout)
    assert (len(replayed["replayed"]), replayed["missing"]) == (3, [])
    after = {letter["id"] for letter in wait_for(served, 4)}
    assert len(after - before) == 3, "they failed again, and are dead letters again, once"

    dropped = served.forkjoin("dead-letters", "drop", *choice)
    assert len(json.loads(dropped.stdout)["dropped"]) == 3
    [left] = listed(served)
    assert left["code"] == "unsupported_version"
    assert served.forkjoin("dead-letters", "drop", str(left["id"]), "4711").returncode == 2
    assert listed(served) == []


@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("y", 0)])
def test_on_a_terminal_all_is_asked_about_first(served: Cluster, answer: str, left: int) -> None:
    publish(served, b"{")
    wait_for(served, 1)
    told = on_a_terminal(served, ["dead-letters", "drop", "--all"], f"{answer}\n")
    assert "Drop 1 dead letter?" in told
    assert len(listed(served)) == left


def on_a_terminal(cluster: Cluster, arguments: list[str], typed: str) -> str:
    """Run a command whose stdin is a terminal; return what it wrote there."""
    leader, follower = pty.openpty()
    try:
        command = [sys.executable, "-m", "orchestrator", *arguments]
        process = subprocess.Popen(
            command, cwd=ROOT, env=cluster.environment, stdin=follower, stdout=follower, stderr=follower
        )
        os.close(follower)
        os.write(leader, typed.encode())
        written = bytearray()
        deadline = time.monotonic() + PATIENCE
        with suppress(OSError):  # Linux says so when the last process has closed the terminal
            while time.monotonic() < deadline and (some := os.read(leader, 1_000)):
                written += some
        process.wait(30)
    finally:
        os.close(leader)
    return written.decode()
