"""The server, assembled from settings, registry, model, API and page. Run `python app.py`, or serve the ASGI app `app:app`."""

from __future__ import annotations

import errno
import logging.config
import socket
import sys
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from cifar.console import with_notes
from cifar.errors import CifarError, SettingsError
from cifar.models.registry import Registry
from cifar.profile import address, who_can_reach
from cifar.serving.inference.cache import AnswerCache
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.inference.recording import Records
from cifar.serving.inference.service import Service
from cifar.serving.inference.shadow import Shadows
from cifar.serving.page.mount import mount_page
from cifar.serving.process import worker_slot
from cifar.serving.process.http_protocol import HttpProtocol, hanging_up
from cifar.serving.process.logs import log_config
from cifar.serving.process.printed import capture_prints
from cifar.serving.process.redis import SharedRedis
from cifar.serving.process.worker_slot import Server, WorkerSlot
from cifar.serving.rest.admin import add_admin
from cifar.serving.rest.app import create_api
from cifar.serving.rest.explain import add_explain
from cifar.serving.rest.feedback import add_feedback
from cifar.serving.rest.openinference import add_openinference
from cifar.serving.rest.tfserving import TensorCalls, add_tfserving
from cifar.settings import Settings, load_settings

_ANSWERS_SECONDS = 5.0
"""Longest time for answers in progress on a shutdown; gunicorn's workers have longer."""


def create_app(settings: Settings, *, page: bool = True, worker: WorkerSlot | None = None) -> FastAPI:
    """Create the app from its parts.

    Args:
        settings: the configuration.
        page: if false, leave out the page and Gradio's endpoints.
        worker: the slot of this process among the workers of gunicorn.

    Raises:
        VersionNotFound, VersionUnusable: the version to serve is missing, or its files differ from what was exported.
    """
    registry = Registry(settings.registry, settings.model_name)
    versions = LoadedVersions(registry, settings)
    versions.default.verify()
    redis = SharedRedis(settings.redis_url.get_secret_value()) if settings.redis_url else None
    cache = AnswerCache(images=settings.cache_images, redis=redis)
    records = Records(settings) if settings.records else None
    shadows = Shadows(versions, on_comparison=records.add_comparison if records else None)
    classifier = RecordedClassifier(
        Classifier(versions, settings, cache, host_lock=worker.folder / "decode-alone" if worker else None),
        records,
        shadows,
    )
    service = Service.over(classifier, settings)
    api = create_api(classifier, settings, redis=redis)
    add_explain(api, service.explainer, settings)
    tensors = TensorCalls(classifier, settings)
    add_tfserving(api, tensors, settings)
    add_openinference(api, tensors, settings)
    add_admin(api, versions, settings)
    if records:
        records.record_while_serving(api)
        add_feedback(api, records, settings)
    if service.analytics and (worker is None or worker.number == 0):  # one worker of each host measures drift
        service.analytics.measure_while_serving(api)
    if settings.mcp:
        from cifar.serving.rest.mcp import add_mcp  # its library takes half a second to import

        add_mcp(api, service, settings)
    if page:
        mount_page(api, service, settings, worker)
    return api


def _start() -> tuple[Settings, FastAPI]:
    """Create the app from the environment. A wrong setting ends the process with a message."""
    try:
        settings = load_settings()
        worker = worker_slot.current
        if worker:  # gunicorn's own options and signals can change the number of workers
            settings = settings.model_copy(update={"workers": worker.workers})
        logging.config.dictConfig(log_config(settings))
        return settings, create_app(settings, worker=worker)
    except (CifarError, OSError) as error:
        sys.exit(f"cifar: {with_notes(error)}")


class _Server(Server):
    """Ends on one Ctrl-C, though the open pages hold streams that never end by themselves."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        with hanging_up(self, after_seconds=_ANSWERS_SECONDS):
            await super().shutdown(sockets)


def listen(settings: Settings) -> socket.socket:
    """Bind the port, so that a port in use is reported with a message.

    Raises:
        SettingsError: the address or the port cannot be used.
    """
    is_ipv6 = ":" in settings.host
    try:
        return socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            backlog=2048,
            dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),  # `::` takes IPv4 too, as under gunicorn
        )
    except OSError as error:
        reason = (error.strerror or "").partition(" (while")[0]
        other_port = error.errno in {errno.EADDRINUSE, errno.EACCES}
        advice = "Choose another: PORT=7861" if other_port else "CIFAR_HOST must be an address of this machine."
        raise SettingsError(f"cannot listen on {address(settings.host, settings.port)}: {reason}. {advice}") from error


if __name__ == "__main__":
    settings, app = _start()
    if settings.workers > 1:
        sys.exit(f"cifar: app.py is one process; for CIFAR_WORKERS={settings.workers} run python -m cifar serve")
    try:
        listener = listen(settings)
    except SettingsError as error:
        sys.exit(f"cifar: {error}")
    with listener:
        capture_prints()
        port, public = listener.getsockname()[1], settings.profile == "public"
        logging.getLogger("cifar").info(who_can_reach(settings.host, port, public=public))
        server = _Server(
            uvicorn.Config(app, http=HttpProtocol, log_config=None, forwarded_allow_ips=settings.trusted_proxies)
        )
        with suppress(KeyboardInterrupt):  # raised after the server has shut down on Ctrl-C
            server.run(sockets=[listener])
else:

    def __getattr__(name: str) -> FastAPI:
        """Create `app:app` on first access, so that importing `create_app` loads no settings and no model."""
        if name == "app":
            globals()["app"] = asgi_app = _start()[1]
            return asgi_app
        raise AttributeError(name)
