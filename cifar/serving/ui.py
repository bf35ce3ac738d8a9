"""The page: a Gradio Blocks app over the classifier, and the endpoint `/predict` for Gradio's clients."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI
from gradio.data_classes import ImageData
from PIL import Image
from starlette.middleware import Middleware

from cifar.errors import CifarError
from cifar.serving.classify import Classification, Classifier
from cifar.serving.gradio_guard import GradioGuard
from cifar.settings import Settings

_SYSTEM_FONTS = ["system-ui", "sans-serif"]
_THEME = gr.themes.Default(primary_hue="teal", font=_SYSTEM_FONTS, font_mono=["ui-monospace", "monospace"])
_CSS = (Path(__file__).parent / "page.css").read_text()

_INTRO = "# CIFAR Space\nDrop a photo, paste one, or use the camera. The model answers with the most likely of its {count} classes: {names}."


def mount_page(api: FastAPI, classifier: Classifier, settings: Settings) -> FastAPI:
    """Mount the page at `/` of `api`, behind the guard."""
    # Innermost, so that the request id and the body limit come first; `add_middleware` would put it outermost.
    api.user_middleware.append(Middleware(GradioGuard))
    page = create_page(classifier, settings)
    # Gradio checks which files a call may name only once this is set, and mounting does not set it.
    page.has_launched = True
    mounted: FastAPI = gr.mount_gradio_app(
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
    return mounted


def create_page(classifier: Classifier, settings: Settings) -> gr.Blocks:
    """Lay out the page and wire it."""
    manifest = classifier.versions.default.manifest
    classes = len(manifest.class_names)
    with gr.Blocks(
        title="CIFAR Space",
        analytics_enabled=False,
        delete_cache=(min(settings.upload_lifetime_seconds, 600), settings.upload_lifetime_seconds),
    ) as page:
        gr.Markdown(_INTRO.format(count=classes, names=", ".join(manifest.class_names)))
        with gr.Row():
            photo = gr.Image(
                label="Photo", sources=["upload", "clipboard", "webcam"], height=360, elem_id="photo", buttons=[]
            )
            # Gradio would open the picture first: without our pixel limit, and with errors and an idea of colour of its own.
            photo.preprocess = _file_bytes
            with gr.Column():
                notice = gr.HTML(visible=False, elem_id="notice", label="Message", padding=False)
                label = gr.Label(label="Answer", elem_id="answer")
                details = gr.HTML(visible=False, elem_id="details", label="Details", padding=False)
                top_k = gr.Slider(
                    1,
                    classes,
                    value=min(settings.default_top_k, classes),
                    step=1,
                    label="Labels to show",
                    elem_id="top-k",
                )
                version = gr.Dropdown(visible=False, label="Model version", elem_id="version", interactive=True)
        if examples := _examples(settings.examples):
            gr.Examples(examples, photo, label="Examples from CIFAR-10's test images", examples_per_page=len(examples))

        def show(payload: bytes | None, wanted: int, number: int | None) -> tuple[Any, Any, Any]:
            return _show(classifier, payload, wanted, number)

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
        _add_endpoint(classifier, settings, photo)
    return page


def _file_bytes(uploaded: ImageData | None) -> bytes | None:
    return Path(uploaded.path).read_bytes() if uploaded and uploaded.path else None


def _show(classifier: Classifier, payload: bytes | None, wanted: int, number: int | None) -> tuple[Any, Any, Any]:
    """What the page shows: a message or none, the bars, and the details."""
    nothing = gr.update(value="", visible=False)
    if payload is None:
        return nothing, None, nothing
    try:
        answer = classifier.classify(payload, top_k=wanted, version=number)
    except CifarError as error:
        problem = f'<p class="problem" role="alert">{html.escape(str(error))}</p>'
        return gr.update(value=problem, visible=True), None, nothing
    return nothing, dict(answer.prediction.top_k), gr.update(value=_details(answer), visible=True)


def _details(answer: Classification) -> str:
    height, width = answer.seen.shape[:2]
    return (
        f'<figure class="seen"><img src="{_data_url(answer.seen)}" alt="The photo at {width} x {height} pixels">'
        f"<figcaption>What the model saw: {width} x {height} pixels<br>"
        f"{html.escape(answer.model_name)}, version {answer.version}<br>{answer.inference_ms:.1f} ms in the model</figcaption></figure>"
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


def _add_endpoint(classifier: Classifier, settings: Settings, photo: gr.Image) -> None:
    """The endpoint `/predict(image, top_k, version)`, with the same answer as `POST /predict`."""

    def predict(image: bytes | None, top_k: int | None = None, version: int | None = None) -> dict[str, Any]:
        """Classify one image.

        Args:
            image: the image file.
            top_k: how many classes to rank.
            version: the model version to ask.
        """
        try:
            return classifier.classify(image, top_k=top_k, version=version).as_json()
        except CifarError as error:
            raise gr.Error(str(error), print_exception=False) from error

    parameters = [gr.Number(precision=0, visible=False, label=name) for name in ("top_k", "version")]
    for parameter in parameters:
        parameter.preprocess = lambda value: value  # the classifier checks it, so that every API says the same sentence
    gr.Button(visible=False).click(
        predict,
        [photo, *parameters],
        gr.JSON(visible=False, label="answer"),
        api_name="predict",
        concurrency_limit=settings.max_concurrent_predictions,
    )


def _examples(folder: Path) -> list[str]:
    return [str(file) for file in sorted(folder.glob("*.jpg"))] if folder.is_dir() else []
