"""The script of deploy/compose, with a `docker` that runs the commands here instead of in containers."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.acceptance.cluster import ROOT, Cluster

COMPOSE = ROOT / "deploy" / "compose"

PASSWORDS = (COMPOSE / ".env.example").read_text(encoding="utf-8")

DOCKER = """#!{python}
import json, os, sys

words = sys.argv[1:]
with open({calls!r}, "a") as calls:
    print(json.dumps(words), file=calls)
if words[:5] == ["compose", "run", "--rm", "--no-TTY", "client"]:
    command = [word.replace("/examples", {examples!r}) for word in words[5:]]
    os.chdir({root!r})
    os.execv(sys.executable, [sys.executable, "-m", "orchestrator", *command])
"""


def run_script(directory: Path, docker: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(directory / "try.sh")],
        env={**environment, "PATH": f"{docker}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def copied(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a copy of the script, the directory of a `docker` that tells, and what it tells."""
    directory, tools, calls = tmp_path / "compose", tmp_path / "tools", tmp_path / "calls"
    directory.mkdir()
    tools.mkdir()
    (directory / "try.sh").write_bytes((COMPOSE / "try.sh").read_bytes())
    (directory / "try.sh").chmod((COMPOSE / "try.sh").stat().st_mode)
    fields = {"python": sys.executable, "calls": str(calls), "examples": str(ROOT / "examples"), "root": str(ROOT)}
    (tools / "docker").write_text(DOCKER.format(**fields))
    (tools / "docker").chmod(0o755)
    return directory, tools, calls


def test_the_script_starts_everything_submits_the_example_and_shows_its_result(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.start_orchestrator()
    cluster.start_worker(registry="examples.agents:agents")
    directory, tools, calls = copied(tmp_path)
    (directory / ".env").write_text(PASSWORDS)

    done = run_script(directory, tools, cluster.environment)

    assert done.returncode == 0, done.stderr
    assert "# About fork and join" in done.stdout, "the report that the example writes"
    assert "COMPLETED" in done.stdout, "the list of runs"
    [first, *_] = map(json.loads, calls.read_text().splitlines())
    assert first == ["compose", "up", "--build", "--detach", "--wait"]


def test_without_passwords_it_says_what_to_do(cluster: Cluster, tmp_path: Path) -> None:
    directory, tools, calls = copied(tmp_path)
    done = run_script(directory, tools, cluster.environment)
    assert (done.returncode, done.stderr) == (2, "Copy .env.example to .env, and choose passwords in it.\n")
    assert not calls.exists()
