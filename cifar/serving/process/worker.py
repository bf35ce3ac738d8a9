"""gunicorn's worker: uvicorn, ending so that no connection is lost."""

from __future__ import annotations

import asyncio
import socket
import sys

from gunicorn.arbiter import Arbiter
from uvicorn import Server
from uvicorn_worker import UvicornWorker

_LAST_REQUESTS_SECONDS = 1.0
"""Time for each connection's next request: uvicorn closes one whose request it has not read yet."""


class _GentleServer(Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()  # accept no more
        self.config.app.draining = True  # type: ignore[union-attr]  # it is `Api`
        await asyncio.sleep(_LAST_REQUESTS_SECONDS)
        await super().shutdown(sockets)


class Worker(UvicornWorker):
    """As uvicorn-worker's, with a server that answers what it accepted before it ends."""

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = _GentleServer(self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
