"""The page: a Gradio Blocks app over the classifier, and the endpoint `/predict` for Gradio's clients."""

from __future__ import annotations

import base64
import html
import io
import logging
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI
from PIL import Image
from starlette.routing import Mount, Route

from cifar.errors import OUR_FAULT, CifarError
from cifar.serving.affinity import SessionRouter, listen_for_other_workers
from cifar.serving.classify import Classification, Classifier
from cifar.serving.components import Choice, Integer, Photo, Slider
from cifar.serving.gradio_guard import GradioGuard
from cifar.serving.uploads import sweep_while_serving
from cifar.settings import Settings, set_upload_folder

log = logging.getLogger(__name__)

_SYSTEM_FONTS = ["system-ui", "sans-serif"]
_THEME = gr.themes.Default(primary_hue="teal", font=_SYSTEM_FONTS, font_mono=["ui-monospace", "monospace"])
_NAMES_SHOWN = 20
_CSS = (Path(__file__).parent / "page.css").read_text()

_INTRO = "# CIFAR Space\nDrop a photo, paste one, or use the camera. The model answers with the most likely of its {count} classes: {names}."


def mount_page(api: FastAPI, classifier: Classifier, settings: Settings) -> FastAPI:
    """Mount the page at `/` of `api`, behind the guard, and keep its upload folder clean."""
    set_upload_folder(settings.uploads)
    page = create_page(classifier, settings)
    page.queue(max_size=settings.max_queued_calls)
    page.state_session_capacity = settings.max_page_sessions
    # Gradio checks which files a call may name only once this is set, and mounting does not set it.
    page.has_launched = True
    own_paths = {route.path: route.methods or () for route in api.routes if isinstance(route, Route)}
    gr.mount_gradio_app(
        api,
        page,
        path="/",
        theme=_THEME,
        css=_CSS,
        allowed_paths=[],
        max_file_size=settings.max_body_bytes,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
    )
    mounted = next(route for route in reversed(api.routes) if isinstance(route, Mount))
    if settings.workers > 1:
        slot, sockets = settings.worker_slot, settings.worker_files
        mounted.app = SessionRouter(mounted.app, slot=slot, workers=settings.workers, sockets=sockets)
        listen_for_other_workers(api, slot=slot, sockets=sockets)
    mounted.app = GradioGuard(
        mounted.app, own_paths=own_paths, file_roots=[settings.uploads], max_call_bytes=settings.max_call_bytes
    )
    sweep_while_serving(
        api, settings.uploads, max_age_seconds=settings.upload_lifetime_seconds, keep=_example_files(page)
    )
    return api


def create_page(classifier: Classifier, settings: Settings) -> gr.Blocks:
    """Lay out the page and wire it."""
    manifest = classifier.versions.default.manifest
    classes = len(manifest.class_names)
    with gr.Blocks(title="CIFAR Space", analytics_enabled=False) as page:
        names = ", ".join(manifest.class_names[:_NAMES_SHOWN]) + (", …" if classes > _NAMES_SHOWN else "")
        gr.Markdown(_INTRO.format(count=classes, names=names))
        if settings.oidc_provider_url:
            gr.HTML('<a href="/signout">Sign out</a>', elem_id="sign-out", padding=False)
        with gr.Row():
            photo = Photo(
                label="Photo", sources=["upload", "clipboard", "webcam"], height=360, elem_id="photo", buttons=[]
            )
            with gr.Column():
                notice = gr.HTML(visible=False, elem_id="notice", label="Message", padding=False)
                label = gr.Label(label="Answer", elem_id="answer")
                details = gr.HTML(visible=False, elem_id="details", label="Details", padding=False)
                top_k = Slider(
                    1,
                    classes,
                    value=min(settings.default_top_k, classes),
                    step=1,
                    label="Labels to show",
                    elem_id="top-k",
                )
                version = Choice(visible=False, label="Model version", elem_id="version", interactive=True)
        if examples := _examples(settings.examples, manifest.class_names):
            gr.Examples(examples, photo, label="Examples", examples_per_page=len(examples))

        async def show(payload: bytes | None, wanted: int, number: int | None) -> tuple[Any, Any, Any]:
            return await _show(classifier, payload, wanted, number)

        gr.on(
            [photo.change, top_k.release, version.input],
            show,
            [photo, top_k, version],
            [notice, label, details],
            queue=False,  # one request, one answer: no session that must find its process again
            api_visibility="private",
            show_progress="minimal",
            trigger_mode="always_last",
        )
        page.load(lambda: _version_choices(classifier), None, version, queue=False, api_visibility="private")
        _add_endpoint(classifier, photo)
    return page


def _sentence(error: Exception) -> str:
    """What a person reads of an error; what has no sentence is logged."""
    if isinstance(error, CifarError):
        return str(error)
    log.error("a call to the page failed", exc_info=error)
    return OUR_FAULT


async def _show(classifier: Classifier, payload: bytes | None, wanted: int, number: int | None) -> tuple[Any, Any, Any]:
    """What the page shows: a message or none, the bars, and the details."""
    nothing = gr.update(value="", visible=False)
    if payload is None:
        return nothing, None, nothing
    try:
        answer = await classifier.classify(payload, route="page", top_k=wanted, version=number)
    except Exception as error:
        problem = f'<p class="problem" role="alert">{html.escape(_sentence(error))}</p>'
        return gr.update(value=problem, visible=True), None, nothing
    return nothing, dict(answer.prediction.top_k), gr.update(value=_details(answer), visible=True)


def _details(answer: Classification) -> str:
    height, width = answer.seen.shape[:2]
    took = "answered before" if answer.inference_ms is None else f"{answer.inference_ms:.1f} ms in the model"
    return (
        f'<figure class="seen"><img src="{_data_url(answer.seen)}" alt="The photo at {width} x {height} pixels">'
        f"<figcaption>What the model saw: {width} x {height} pixels<br>"
        f"{html.escape(answer.model_name)}, version {answer.version}<br>{took}</figcaption></figure>"
    )


def _data_url(pixels: np.ndarray) -> str:
    """The model's input as an inline PNG, so that no file is left behind."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _version_choices(classifier: Classifier) -> Any:
    """The versions to choose from, read anew each time the page opens; no choice is shown where there is none."""
    default = classifier.versions.default.number
    choices = [
        (f"{number} (default)" if number == default else str(number), number)
        for number in classifier.versions.registry.numbers()
    ]
    return gr.update(choices=choices[::-1], value=default, visible=len(choices) > 1)


def _add_endpoint(classifier: Classifier, photo: Photo) -> None:
    """The endpoint `/predict(image, top_k, version)`, with the same answer as `POST /predict`."""

    async def predict(image: bytes | None, top_k: int | None = None, version: int | None = None) -> dict[str, Any]:
        """Classify one image.

        Args:
            image: the image file.
            top_k: how many classes to rank.
            version: the model version to ask.
        """
        try:
            answer = await classifier.classify(image, route="gradio", top_k=top_k, version=version)
            return answer.as_json()
        except Exception as error:
            raise gr.Error(_sentence(error), print_exception=False) from error

    parameters = [Integer(precision=0, visible=False, label=name) for name in ("top_k", "version")]
    gr.Button(visible=False).click(
        predict,
        [photo, *parameters],
        gr.JSON(visible=False, label="answer"),
        api_name="predict",
        concurrency_limit=None,  # the classifier has its own
    )


def _examples(folder: Path, class_names: list[str]) -> list[str]:
    """The sample images that are named after a class of the model: `cat.jpg`."""
    return [str(file) for file in sorted(folder.glob("*")) if file.stem in class_names]


def _example_files(page: gr.Blocks) -> set[Path]:
    """Gradio's copies of the examples, which must outlive the uploads beside them."""
    components = [part for block in page.blocks.values() for part in (block, *getattr(block, "_components", ()))]
    return {Path(file) for component in components for file in getattr(component, "keep_in_cache", ())}
