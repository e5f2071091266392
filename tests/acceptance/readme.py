"""What the READMEs tell people to type, ready to be run.

Blocks marked `sh` are run, all of a file in one shell, in their order; `console` and `text` blocks are for the eye.
A python block that starts with a file's name in a comment is that file.
"""

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.cluster import ROOT, Cluster

_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"# (\w+\.py)\n")
_SERVICE = re.compile(r"^(forkjoin serve|forkjoin-worker )[^#&\n]*", re.MULTILINE)
_URLS = ("FORKJOIN_AMQP_URL", "FORKJOIN_DATABASE_URL")

_PROLOGUE = """\
set -euo pipefail
trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null || true; wait' EXIT
services_are_ready() {
    for _ in $(seq 2400); do
        if [ "$(grep -cE '"action": ?"(orchestrator|worker)_ready"' log || true)" -ge "$1" ]; then return; fi
        sleep 0.05
    done
    echo "only some of $1 services became ready" >&2
    return 1
}
"""


@dataclass(frozen=True)
class Readme:
    """A Markdown file of this repository."""

    path: str

    @property
    def text(self) -> str:
        return (ROOT / self.path).read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        """Return the fenced blocks of one language, in their order."""
        return [textwrap.dedent(body) for _, found, body in _BLOCK.findall(self.text) if found == language]

    def files(self) -> dict[str, str]:
        """Return the python blocks that are files, by their names."""
        return {name[1]: block for block in self.blocks("python") if (name := _FILE_NAME.match(block))}


def run_as_written(readme: Readme, cluster: Cluster, directory: Path) -> str:
    """Run all that *readme* tells to type, on *cluster*, and return what went to stdout.

    The directory stands in for the repository's; services that the text starts end with the shell.
    """
    (directory / "examples").symlink_to(ROOT / "examples")
    for name, content in readme.files().items():
        (directory / name).write_text(content)
    (directory / "script").write_text(_script(readme.blocks("sh"), cluster))
    with (directory / "log").open("wb") as log:
        done = subprocess.run(
            ["bash", "script"],
            cwd=directory,
            env=_environment(readme, cluster),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            timeout=900,
            check=False,
        )
    assert done.returncode == 0, (directory / "log").read_text()[-4000:]
    return done.stdout


def _script(blocks: Sequence[str], cluster: Cluster) -> str:
    parts = [_PROLOGUE]
    services = 0
    for block in blocks:
        services += len(_SERVICE.findall(block))
        in_background = _SERVICE.sub(lambda found: found[0].rstrip() + " & ", block).replace("& &", "&")
        parts += [_with_urls(in_background, cluster), f"services_are_ready {services}\n"]
    return "".join(parts)


def _with_urls(block: str, cluster: Cluster) -> str:
    for name in _URLS:
        block = re.sub(
            rf"^export {name}=.*$", f"export {name}='{cluster.environment[name]}'", block, flags=re.MULTILINE
        )
    return block


def _environment(readme: Readme, cluster: Cluster) -> dict[str, str]:
    given = {name: value for name, value in cluster.environment.items() if f"export {name}=" not in readme.text}
    commands = Path(sys.executable).parent
    return {**given, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
