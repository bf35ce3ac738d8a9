"""Mounts a Gradio page in the API, behind `GradioGuard` and, with several workers, `SessionRouter`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.routing import Mount, Route

from cifar.serving.gradio.affinity import SessionRouter, listen_for_other_workers
from cifar.serving.gradio.bounded import bound_results, bound_uploads, leave_out_matplotlib, leave_out_statistics
from cifar.serving.gradio.events import KnownEvents
from cifar.serving.gradio.guard import GradioGuard
from cifar.serving.gradio.upload_loop import UploadLoop
from cifar.serving.gradio.uploads import UploadQuota, own_folder, sweep_while_serving
from cifar.serving.process.worker_slot import WorkerSlot
from cifar.settings import Settings

MAX_QUEUED_CALLS = 100
"""Calls by `gradio_client` that are queued in one process; Gradio refuses further ones."""
MAX_PAGE_SESSIONS = 50
"""Open pages for which one process keeps state; the oldest state is deleted first. No component here needs it. It has 300 objects a page,
and Python's garbage collector looked through those of a thousand pages for up to 0.4 seconds, in which nobody was answered."""


def mount_blocks(
    api: FastAPI, create_page: Callable[[], gr.Blocks], settings: Settings, worker: WorkerSlot | None, **look: Any
) -> None:
    """Create a page, mount it at `/` of `api` and delete old uploads while the server runs.

    A request for Gradio passes `UploadQuota`, `GradioGuard`, then `SessionRouter` if there are several workers, then `KnownEvents`
    and `UploadLoop`. All other routes must have been added to `api`. The theme, styles, scripts and translations in `look` are as
    `gradio.mount_gradio_app` takes them.
    """
    own_routes = [route for route in api.routes if isinstance(route, Route)]
    uploads = own_folder(settings, worker.folder if worker else None)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # each component reads it when it is created
    bound_uploads()
    leave_out_statistics()
    leave_out_matplotlib()
    page = create_page()
    page.queue(max_size=MAX_QUEUED_CALLS)
    # `launch()` would set these two; a mounted page is never launched.
    page.state_session_capacity = MAX_PAGE_SESSIONS  # Gradio's default is 10,000
    page.has_launched = True  # security: while it is False, Gradio does not check which files a call names
    gr.mount_gradio_app(
        api,
        page,
        path="/",
        root_path=settings.path or None,
        allowed_paths=[],
        max_file_size=settings.max_body_bytes,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        **look,
    )
    bound_results(page)
    mounted = next(route for route in reversed(api.routes) if isinstance(route, Mount))
    mounted.app = KnownEvents(UploadLoop(mounted.app), page)
    if worker and worker.workers > 1:
        slot, sockets = worker.number, worker.folder
        mounted.app = SessionRouter(mounted.app, slot=slot, workers=worker.workers, sockets=sockets)
        listen_for_other_workers(api, slot=slot, sockets=sockets)
    guard = GradioGuard(mounted.app, own_routes=own_routes, file_roots=[uploads])
    mounted.app = UploadQuota(guard, uploads, settings)
    sweep_while_serving(api, uploads)
