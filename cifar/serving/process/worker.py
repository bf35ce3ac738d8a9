"""gunicorn's worker process: uvicorn, with a graceful shutdown that loses no request."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import ClassVar

from gunicorn.arbiter import Arbiter
from uvicorn import Server
from uvicorn_worker import UvicornWorker

from cifar.serving.process.http_protocol import HttpProtocol

_LAST_REQUESTS_SECONDS = 1.0
"""Time in which open connections may send one more request. uvicorn alone would close them with the request unread."""


class _GracefulServer(Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, close each open one with its next answer, then shut down."""
        for server in self.servers:
            server.close()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(_LAST_REQUESTS_SECONDS)
        await super().shutdown(sockets)


class Worker(UvicornWorker):
    """The worker of uvicorn-worker with `_GracefulServer` and `HttpProtocol`."""

    CONFIG_KWARGS: ClassVar = {**UvicornWorker.CONFIG_KWARGS, "http": HttpProtocol}

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = _GracefulServer(self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
