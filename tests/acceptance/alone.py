"""`forkjoin` on a machine without RabbitMQ and Postgres: what `forkjoin run` and its kin do by themselves."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.acceptance.cluster import PATIENCE, ROOT, wait_until

LONG_SECONDS = 600  # of a nap that nobody waits for

Done = subprocess.CompletedProcess[str]


@dataclass
class Alone:
    """A directory with its own runs; the agents are the journal agents."""

    directory: Path
    _started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which every command runs."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("FORKJOIN_")}
        return {
            **kept,
            "FORKJOIN_AGENTS": "tests.acceptance.journal_agents:agents",
            "FORKJOIN_DATA_DIR": str(self.directory / "data"),
            "FORKJOIN_TEST_JOURNAL": str(self.directory / "journal"),
            "PYTHONPATH": str(ROOT),
        }

    def forkjoin(self, *arguments: str, cwd: Path = ROOT, **environment: str) -> Done:
        """Run a `forkjoin` command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "orchestrator", *arguments],
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def write(self, document: dict[str, Any], name: str = "workflow.json") -> str:
        """Write a document to a file and return the file's path."""
        path = self.directory / name
        path.write_text(json.dumps(document))
        return str(path)

    def start_run(self, workflow: str) -> "RunningCommand":
        """Start `forkjoin run` and wait until one of its steps runs."""
        log = self.directory / "stderr"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "run", workflow],
                cwd=ROOT,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        self._started.append(process)
        command = RunningCommand(process, log)
        wait_until(command.has_a_running_branch, PATIENCE, log.read_text)
        return command

    def stop(self) -> None:
        """Kill what still runs, and stop the Postgres that a killed command left behind."""
        for process in self._started:
            process.kill()
            process.wait()
        postmaster = self.directory / "data" / "postgres" / "postmaster.pid"
        if postmaster.exists():
            os.kill(int(postmaster.read_text().splitlines()[0]), signal.SIGINT)
            wait_until(lambda: not postmaster.exists(), PATIENCE, lambda: f"{postmaster} is still there")


@dataclass
class RunningCommand:
    """A `forkjoin run` that is under way."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def run_id(self) -> str:
        """The id of its run."""
        return self.log.read_text().split()[1]

    def has_a_running_branch(self) -> bool:
        """Whether a worker has begun with a branch."""
        return any(" RUNNING " in line and " / " in line for line in self.log.read_text().splitlines())


def block_of(*branches: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a workflow with one block of these branches, named b0, b1 and so on."""
    names = [f"b{number}" for number in range(len(branches))]
    block = {"type": "parallel", "parallel_steps": names, **more}
    return {
        "name": "test",
        "start_step": "block",
        "steps": {"block": block, **dict(zip(names, branches, strict=True))},
    }


def nap(seconds: float = LONG_SECONDS) -> dict[str, Any]:
    """Return a branch that takes so long."""
    return {"agent_name": "nap", "input_mapping": {"n": 1, "seconds": seconds}}


def fail(message: str) -> dict[str, Any]:
    """Return a branch that fails with this message."""
    return {"agent_name": "fail", "input_mapping": {"message": message}}


def echo(**values: Any) -> dict[str, Any]:
    """Return a branch that gives these values back."""
    return {"agent_name": "echo", "input_mapping": values}
