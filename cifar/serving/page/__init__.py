"""The page at `/`: a Gradio Blocks app over the classifier, behind the guard."""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI
from starlette.routing import Mount, Route

from cifar.serving.gradio.affinity import SessionRouter, listen_for_other_workers
from cifar.serving.gradio.guard import GradioGuard
from cifar.serving.gradio.uploads import sweep_while_serving
from cifar.serving.inference.service import Service
from cifar.serving.page.layout import CSS, HEAD, THEME, TRANSLATE, create_page
from cifar.settings import Settings, set_upload_folder


def mount_page(api: FastAPI, service: Service, settings: Settings) -> FastAPI:
    """Mount the page at `/` of `api`, behind the guard, and keep its upload folder clean."""
    set_upload_folder(settings.uploads)
    page = create_page(service, settings)
    page.queue(max_size=settings.max_queued_calls)
    page.state_session_capacity = settings.max_page_sessions
    # Gradio checks which files a call may name only once this is set, and mounting does not set it.
    page.has_launched = True
    own_routes = [route for route in api.routes if isinstance(route, Route)]
    gr.mount_gradio_app(
        api,
        page,
        path="/",
        theme=THEME,
        css=CSS,
        head=HEAD,
        i18n=TRANSLATE,
        allowed_paths=[],
        max_file_size=settings.max_body_bytes,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
    )
    mounted = next(route for route in reversed(api.routes) if isinstance(route, Mount))
    if settings.workers > 1:
        slot, sockets = settings.worker_slot, settings.worker_files
        mounted.app = SessionRouter(mounted.app, slot=slot, workers=settings.workers, sockets=sockets)
        listen_for_other_workers(api, slot=slot, sockets=sockets)
    mounted.app = GradioGuard(
        mounted.app, own_routes=own_routes, file_roots=[settings.uploads], max_call_bytes=settings.max_call_bytes
    )
    sweep_while_serving(api, settings.uploads, max_age_seconds=settings.upload_lifetime_seconds)
    return api
