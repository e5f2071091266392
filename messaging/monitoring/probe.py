"""Ask a service on this machine how it is: ``python -m messaging.monitoring.probe /readyz``.

For health checks within a container, which has neither curl nor need of it. It reads the service's own variables.
Exit codes: 0 it is well; 1 it is not, or does not answer; 2 no port is set.
"""

import http.client
import os
import sys
from typing import Final

TIMEOUT_SECONDS: Final = 5.0  # somewhat more than an answer may take while the database hangs

_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where it listens, not where we do


def main(path: str) -> int:
    """Print the answer to *path*, and return the exit code."""
    port = os.environ.get("FORKJOIN_HTTP_PORT", "")
    if not port.isdecimal():
        sys.stderr.write("set FORKJOIN_HTTP_PORT to the port of the service\n")
        return 2
    host = os.environ.get("FORKJOIN_HTTP_HOST", "127.0.0.1")
    connection = http.client.HTTPConnection(_ANY_ADDRESS.get(host, host), int(port), timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        sys.stdout.write(answer.read().decode(errors="replace").rstrip() + "\n")
    except OSError as error:
        sys.stderr.write(f"{path} on port {port}: {error.strerror or error}\n")
        return 1
    finally:
        connection.close()
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "/readyz"))
