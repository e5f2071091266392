"""The HTTP endpoint: /livez, /readyz and /metrics, answered from the service's own event loop.

So an event loop that is stuck answers nothing, and the time-out of whoever asks is the answer. /livez says no more than
that; it depends neither on the broker nor on the database, for no restart of ours mends those.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from messaging.monitoring.exposition import Exposition
from messaging.monitoring.monitored import Monitored

log = structlog.get_logger(__name__)

BACKLOG: Final = 32
MAX_REQUESTS: Final = 32  # at once; those beyond are told 503
KEEP_ALIVE_SECONDS: Final = 15  # somewhat more than most probes are apart
CLOSE_SECONDS: Final = 1

_NO_STORE: Final = {"cache-control": "no-store"}


@asynccontextmanager
async def listening(host: str, port: int, monitored: Monitored) -> AsyncIterator[int]:
    """Answer at *host* and *port* for as long as this is entered, and yield the port.

    Args:
        host: An address of this machine.
        port: 0 takes a free one.
        monitored: What the answers are about.

    Raises:
        OSError: Nobody can listen there.
    """
    with _socket(host, port) as opened:
        server = _Server(
            uvicorn.Config(
                _application(monitored),
                http="h11",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                limit_concurrency=MAX_REQUESTS,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[opened]), name="http")
        where = opened.getsockname()
        log.info("Health and metrics are served", action="http_listening", host=where[0], port=where[1])
        try:
            yield where[1]
        finally:
            server.should_exit = True
            await asyncio.wait([serving])


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the service: it has work to finish, and is asked for its health meanwhile."""
        yield


def _socket(host: str, port: int) -> socket.socket:
    if ":" not in host:
        return socket.create_server((host, port), backlog=BACKLOG)
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=both)


def _application(monitored: Monitored) -> Starlette:
    exposition = Exposition()

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n", headers=_NO_STORE)

    async def readyz(_: Request) -> Response:
        condition = await monitored.condition()
        return JSONResponse(condition.as_json(), status_code=200 if condition.ready else 503, headers=_NO_STORE)

    async def metrics(request: Request) -> Response:
        text, content_type = exposition.write(await monitored.instruments(), request.headers.get("accept", ""))
        return Response(text, headers={**_NO_STORE, "content-type": content_type})

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])
