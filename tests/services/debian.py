"""Install servers on Debian and Ubuntu, for root: in CI containers and fresh virtual machines."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
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
    _install("rabbitmq-server", announce, instead="start Docker, or set FORKJOIN_TEST_AMQP_URL")


def install_postgres(announce: Announce) -> None:
    """Install the package postgresql, whose server speaks TLS, without starting the system's own server.

    Raises:
        Unavailable: Not root, not Debian or Ubuntu, or apt-get failed.
    """
    _install("postgresql", announce, instead="leave out the tests of TLS")


def _install(package: str, announce: Announce, *, instead: str) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(
            f"{package} is not installed, and only root on Debian or Ubuntu has it installed by the tests; "
            f"run `apt-get install {package}` (or your system's counterpart), or {instead}"
        )
    announce(f"installing {package} with apt-get, once")
    with _alone(), services_stay_off(POLICY):
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", package)


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


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait for other test processes that install something; apt-get itself would give up."""
    with (Path(tempfile.gettempdir()) / "forkjoin-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _apt_get(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        ["apt-get", "--quiet", *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Unavailable(f"`apt-get {' '.join(arguments)}` failed: {(done.stderr or done.stdout).strip()[-2000:]}")
