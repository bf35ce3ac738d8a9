"""The tab Classify: one photo (uploaded, dropped, pasted or from the camera), or the frames of the live camera."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import gradio as gr

from cifar.format import data_url, png
from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec
from cifar.images.views import ALLOWED_VIEWS
from cifar.serving.auth.principal import Requester
from cifar.serving.gradio.calls import requester_of
from cifar.serving.gradio.components import Choice, Photo, Slider, plain_html, read_photo
from cifar.serving.inference.classify import Classification, whole_number
from cifar.serving.inference.service import Service
from cifar.serving.page.answer import answer_html, error_html
from cifar.serving.page.texts import TRANSLATIONS, as_html, class_name, html_text
from cifar.settings import Settings

_NO_ANSWER = f'<p class="empty">{html_text("answer.empty")}</p>'
_LIVE_TOP_K = 3
_INLINE_BYTES = 4096
"""The page contains an example up to this size as it is, and a larger one as a thumbnail."""
_THUMBNAIL = ImageSpec(height=64, width=64, channels=3)

_ASK_WHY = """element.setAttribute("aria-live", "polite");
element.addEventListener("click", event => {
  const button = event.target.closest("[data-why]");
  if (button) trigger("select", {value: button.dataset.why});
});"""
_CHOOSE_EXAMPLE = """element.addEventListener("click", event => {
  const button = event.target.closest("[data-example]");
  if (button) trigger("select", {value: button.dataset.example});
});"""
_LIVE = f"""<div class="live"><video muted playsinline hidden></video>
<div class="buttons"><button type="button" class="plain" data-live="start">{html_text("live.start")}</button>
<button type="button" class="plain" data-live="stop" hidden>{html_text("live.stop")}</button><span class="rate" hidden></span></div>
<p class="problem" role="alert" hidden></p></div>"""


class ClassifyTab:
    """The components of the tab, and the functions that Gradio calls on their events.

    Attributes:
        version: the choice of the model version. It is hidden until the page loads and there are several versions.
    """

    def __init__(self, service: Service, settings: Settings) -> None:
        """Lay out the tab within the current `gr.Blocks`."""
        self._classifier = service.classifier
        self._explainer = service.explainer
        class_names = self._classifier.versions.default.manifest.class_names
        self._examples = _examples(settings.examples, class_names)
        with gr.Column(elem_id="stage"):
            with gr.Column(elem_id="photo-side"):
                photo = Photo(
                    label=TRANSLATIONS("photo.label"),
                    placeholder=TRANSLATIONS("photo.drop"),
                    sources=["upload", "webcam"],  # files.js handles pasting, anywhere on the page
                    height=340,
                    elem_id="photo",
                    buttons=[],
                )
                plain_html(_LIVE, elem_id="live")
            with gr.Column(elem_id="answer-side"):
                plain_html('<div class="live-answer"></div>', elem_id="live-answer")
                answer = plain_html(_NO_ANSWER, elem_id="answer", js_on_load=_ASK_WHY)
                why = plain_html(elem_id="why")
                top_k, views = self._add_options(settings, len(class_names))
                record = gr.Checkbox(
                    True,
                    label=TRANSLATIONS("record.label"),
                    elem_id="record",
                    visible=settings.records,
                    container=False,
                )
                plain_html(_record_note(settings), elem_id="record-note")
            examples = plain_html(
                _examples_html(self._examples, settings.max_image_pixels),
                elem_id="examples",
                js_on_load=_CHOOSE_EXAMPLE,
            )
        # Without the queue, a call is one request with one answer, so any worker can answer it.
        private = {"queue": False, "api_visibility": "private"}
        gr.on(
            [photo.change, top_k.release, self.version.input, views.input],
            self._show_answer,
            [photo, top_k, self.version, views, record],
            [answer, why],
            show_progress="hidden",  # the previous answer stays until the next one arrives
            trigger_mode="always_last",
            **private,
        )
        examples.select(self._load_example, None, photo, show_progress="hidden", **private)
        answer.select(self._show_why, [photo, self.version], why, show_progress="minimal", **private)
        frame = gr.JSON(visible=False)
        gr.Button(visible=False).click(
            self._show_frame, [self.version, frame], gr.HTML(visible=False), api_name="live", **private
        )

    def _add_options(self, settings: Settings, classes: int) -> tuple[Slider, Choice]:
        """Add the options, folded because few people need them. Return those for the number of labels and of views."""
        with gr.Accordion(TRANSLATIONS("options.title"), open=False, elem_id="options"), gr.Row():
            top_k = Slider(
                1,
                classes,
                value=min(settings.default_top_k, classes),
                step=1,
                label=TRANSLATIONS("answer.top_k"),
                elem_id="top-k",
                scale=3,
                min_width=200,
            )
            views = Choice(
                list(ALLOWED_VIEWS),
                value="auto",
                label=TRANSLATIONS("views.label"),
                elem_id="views",
                interactive=True,
                min_width=130,
            )
            self.version = Choice(
                visible=False,
                label=TRANSLATIONS("version.label"),
                elem_id="version",
                interactive=True,
                min_width=130,
            )
        return top_k, views

    async def _show_answer(  # noqa: PLR0917 - Gradio passes the values by position
        self,
        photo: Path | None,
        top_k: object,
        version: object,
        views: object,
        record: object,
        request: gr.Request,
    ) -> tuple[str, str]:
        """Return the answer to a photo, or its error, and an empty text in place of the heat map of the previous photo."""
        payload = await read_photo(photo)
        if payload is None:
            return _NO_ANSWER, ""
        try:
            requester = requester_of(request)
            answer = await self._classifier.classify(
                payload,
                channel="page",
                requester=requester,
                top_k=whole_number("top_k", top_k),
                version=whole_number("version", version),
                views=views,
                record=record is not False,
            )
        except Exception as error:
            return error_html(error), ""
        recorded = self._classifier.records and record is not False
        return self._html(answer, explains=True, requester=requester if recorded else None), ""

    async def _show_frame(self, version: object, frame: Any, request: gr.Request) -> str:
        """Return the answer to one frame of the live camera, which `live.js` sends as `{"jpeg": base64}`."""
        try:
            payload = base64.b64decode(frame["jpeg"], validate=True)
        except (TypeError, KeyError, ValueError):
            payload = None
        try:
            answer = await self._classifier.classify(
                payload,
                channel="page",
                requester=requester_of(request),
                top_k=_LIVE_TOP_K,
                version=whole_number("version", version),
            )
        except Exception as error:
            return error_html(error)
        return self._html(answer, explains=False)

    async def _show_why(self, photo: Path | None, version: object, event: gr.EventData, request: gr.Request) -> str:
        """Return the heat map for the class whose button "Why?" was pressed."""
        label = str(getattr(event, "value", None))
        payload = await read_photo(photo)
        try:
            explanation = await self._explainer.explain(
                payload,
                channel="page",
                requester=requester_of(request),
                label=label,
                version=whole_number("version", version),
            )
        except Exception as error:
            return error_html(error)
        return _why_html(explanation.overlay, explanation.label, seconds=explanation.seconds)

    def _load_example(self, event: gr.EventData) -> Path | None:
        return self._examples.get(str(getattr(event, "value", None)))

    def _html(self, answer: Classification, *, explains: bool, requester: Requester | None = None) -> str:
        return answer_html(
            answer,
            manifest=self._classifier.versions.version(answer.version).manifest,
            explains=explains,
            request_id=requester.request_id if requester else None,
        )


def _record_note(settings: Settings) -> str:
    if not settings.records:
        return f"<p>{html_text('record.off')}</p>"
    key = "record.note_kept" if settings.keep_uploads else "record.note"
    return f"<p>{html_text(key, days=f'{settings.records_retention_days:g}')}</p>"


def _why_html(picture: bytes, name: str, *, seconds: float) -> str:
    title = class_name(name)
    return (
        f'<figure class="why"><img src="{data_url(picture)}" alt="">'
        f"<figcaption><h2 class=part>{html_text('why.title', name=title)}</h2>{html_text('why.heat', name=title)}"
        f" {html_text('why.seconds', seconds=f'{seconds:.2f}')}</figcaption></figure>"
    )


def _examples(folder: Path, class_names: list[str]) -> dict[str, Path]:
    """Return the sample images that are named after a class of the model, such as `cat.jpg`, by class."""
    return {file.stem: file for file in sorted(folder.glob("*.jpg")) if file.stem in class_names}


def _examples_html(examples: dict[str, Path], max_pixels: int) -> str:
    buttons = "".join(
        f'<button type="button" data-example="{html.escape(name)}"><img src="{_thumbnail(file, max_pixels)}" alt="">'
        f"<span>{as_html(class_name(name))}</span></button>"
        for name, file in examples.items()
    )
    return f'<h2 class=part>{html_text("examples.title")}</h2><div class="examples">{buttons}</div>' if buttons else ""


def _thumbnail(file: Path, max_pixels: int) -> str:
    content = file.read_bytes()
    if len(content) <= _INLINE_BYTES:
        return data_url(content, "image/jpeg")
    return data_url(png(preprocess(content, _THUMBNAIL, max_pixels=max_pixels)))
