"""gunicorn's worker process: uvicorn, with a graceful shutdown that loses no request."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from typing import ClassVar

from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

from cifar.serving.process import worker_slot
from cifar.serving.process.http_protocol import HttpProtocol, hanging_up
from cifar.serving.process.worker_slot import Server

_LAST_REQUESTS_SECONDS = 1.0
"""Time in which open connections may send one more request. uvicorn alone would close them with the request unread."""
_ENDING_SECONDS = 8
"""Part of gunicorn's grace period for what comes before and after answering: last requests, and those that other workers forward."""
_MASTER_SECONDS = 1.0
"""Interval at which a worker looks for its master."""


class _GracefulServer(Server):
    grace_seconds: float
    """Longest time for answers. gunicorn limits it only when it stops the worker itself, not when the worker has reached its limit of requests."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, close each open one with its next answer, then shut down."""
        for server in self.servers:
            server.close()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(_LAST_REQUESTS_SECONDS)
        with hanging_up(self, after_seconds=self.grace_seconds):
            await super().shutdown(sockets)


class Worker(UvicornWorker):
    """The worker of uvicorn-worker with `_GracefulServer` and `HttpProtocol`."""

    CONFIG_KWARGS: ClassVar = {**UvicornWorker.CONFIG_KWARGS, "http": HttpProtocol}

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = _GracefulServer(self.config)
        server.grace_seconds = max(1, self.cfg.graceful_timeout - _ENDING_SECONDS)
        self._install_sigquit_handler()
        watch = asyncio.create_task(self._end_with_master(server))
        await server.serve(sockets=self.sockets)
        watch.cancel()
        if os.getppid() != self.ppid and worker_slot.current:  # otherwise the master removes it
            shutil.rmtree(worker_slot.current.folder, ignore_errors=True)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _end_with_master(self, server: Server) -> None:
        """Shut down gracefully when the master is gone. Without it, nobody would replace or stop this worker, and it holds the port."""
        while os.getppid() == self.ppid:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(_MASTER_SECONDS)
        self.log.error("The master process has ended; this worker ends too.")
        server.should_exit = True
