"""Install RabbitMQ on Debian and Ubuntu, for root: in CI containers and fresh virtual machines."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.services.sources import Announce, Unavailable

POLICY = Path("/usr/sbin/policy-rc.d")
_REFUSE_TO_START = "#!/bin/sh\nexit 101\n"


def install_rabbitmq(announce: Announce) -> None:
    """Install the package rabbitmq-server without starting the system's own broker.

    Raises:
        Unavailable: Not root, not Debian or Ubuntu, or apt-get failed.
    """
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(
            "rabbitmq-server is not installed, and only root on Debian or Ubuntu has it installed by the tests; "
            "run `apt-get install rabbitmq-server` (or your system's counterpart), or start Docker, "
            "or set FORKJOIN_TEST_AMQP_URL"
        )
    announce("RabbitMQ: installing rabbitmq-server with apt-get, once")
    with services_stay_off(POLICY):
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", "rabbitmq-server")


@contextlib.contextmanager
def services_stay_off(policy: Path) -> Iterator[None]:
    """Keep packages from starting their services, the way that invoke-rc.d documents; a policy in place stays."""
    if policy.exists():
        yield
        return
    policy.write_text(_REFUSE_TO_START)
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _apt_get(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        ["apt-get", "--quiet", *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Unavailable(f"`apt-get {' '.join(arguments)}` failed: {(done.stderr or done.stdout).strip()[-2000:]}")
