"""The real commands as processes, with the environment that joins them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# What makes a schema that of a newer version, which has left this one behind.
NEWER_SCHEMA = """
    UPDATE alembic_version SET version_num = '9999';
    UPDATE schema_compatibility SET oldest_revision = '9998'
"""
PATIENCE = 120.0  # it only ends what hangs: a slow and busy machine takes seconds for each process


@dataclass
class Service:
    """One `forkjoin serve` or `forkjoin-worker` process."""

    process: subprocess.Popen[bytes]
    log: Path

    def actions(self) -> list[dict[str, Any]]:
        """Return the lines that it has logged so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def wait_for(self, action: str) -> None:
        """Wait until it has logged *action*; fail with its log when it dies first."""
        wait_until(lambda: self._has(action), PATIENCE, lambda: f"no {action} in:\n{self.log.read_text()}")

    def stop(self) -> int:
        """End it with SIGTERM and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def end(self) -> int:
        """Wait until it ends by itself, and return its exit code."""
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """SIGKILL it."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def _has(self, action: str) -> bool:
        assert self.process.poll() is None, f"exit code {self.process.returncode}:\n{self.log.read_text()}"
        return any(line.get("action") == action for line in self.actions())


@dataclass
class Cluster:
    """Services on one broker and one database."""

    amqp_url: str
    database_url: str
    directory: Path
    services: list[Service] = field(default_factory=list)
    also: dict[str, str] = field(default_factory=dict)  # more settings, for all commands

    @property
    def journal(self) -> Path:
        """Where the journal agents of all workers write."""
        return self.directory / "journal"

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which every command runs."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("FORKJOIN_")}
        return {
            **kept,
            "FORKJOIN_AMQP_URL": self.amqp_url,
            "FORKJOIN_DATABASE_URL": self.database_url,
            "FORKJOIN_LOG_FORMAT": "json",
            # Whoever is told to stop and waits for what never ends must not pass for one that stopped.
            "FORKJOIN_DRAIN_TIMEOUT": f"{5 * PATIENCE}",
            "FORKJOIN_WORKER_DRAIN_TIMEOUT": f"{5 * PATIENCE}",
            "FORKJOIN_TEST_JOURNAL": str(self.journal),
            **self.also,
        }

    def forkjoin(
        self, *arguments: str, timeout: float = 300.0, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a `forkjoin` command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "orchestrator", *arguments],
            cwd=ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def migrate(self) -> None:
        """Prepare the database."""
        done = self.forkjoin("migrate")
        assert done.returncode == 0, done.stderr

    def start_orchestrator(self, **environment: str) -> Service:
        """Start a replica and wait until it is ready."""
        service = self.launch("orchestrator", "serve", **environment)
        service.wait_for("orchestrator_ready")
        return service

    def start_worker(self, *options: str, registry: str = "tests.acceptance.journal_agents:agents") -> Service:
        """Start a worker and wait until it is ready."""
        service = self.launch("agent_worker", registry, *options)
        service.wait_for("worker_ready")
        return service

    def stop(self) -> None:
        """Kill whatever still runs."""
        for service in self.services:
            if service.process.poll() is None:
                service.kill()

    def launch(self, package: str, *arguments: str, **environment: str) -> Service:
        """Start a command as a process of its own, and do not wait for anything."""
        log = self.directory / f"service-{len(self.services)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", package, *arguments],
                cwd=ROOT,
                env={**self.environment, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        service = Service(process, log)
        self.services.append(service)
        return service


def wait_until(condition: Callable[[], bool], seconds: float, explain: Callable[[], str]) -> None:
    """Look again and again until *condition* holds; fail with the explanation after *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.02)
