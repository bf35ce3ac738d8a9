"""The tab that answers one photo: uploaded, dropped, pasted, taken by the camera, or live from it."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import gradio as gr

from cifar.errors import CifarError
from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec
from cifar.serving.auth.principal import Requester
from cifar.serving.gradio.components import Choice, Photo, Slider
from cifar.serving.gradio.endpoints import requester_of, sentence
from cifar.serving.inference.classify import Classification
from cifar.serving.inference.service import Service
from cifar.serving.page.answer import answer_html, data_url, problem_html
from cifar.serving.page.texts import class_name, error_words, say, spans
from cifar.settings import Settings

_NOTHING = f'<p class="empty">{say("answer.empty")}</p>'
_LIVE_TOP_K = 3
_INLINE_BYTES = 4096
_THUMBNAIL = ImageSpec(height=64, width=64, channels=3)


class ClassifyTab:
    """Lays out the tab and answers its events."""

    def __init__(self, service: Service, settings: Settings, translate: gr.I18n) -> None:
        """Lay it out.

        Args:
            service: what answers.
            settings: where the examples are, and how many labels to show.
            translate: gives the labels of Gradio's components.
        """
        self._classifier = classifier = service.classifier
        self._explainer = service.explainer
        self._settings = settings
        class_names = classifier.versions.default.manifest.class_names
        self._examples = _examples(settings.examples, class_names)
        with gr.Row():
            with gr.Column(min_width=300):
                self._photo = Photo(
                    label=translate("photo"),
                    placeholder=translate("photo.drop"),
                    sources=["upload", "clipboard", "webcam"],
                    height=340,
                    elem_id="photo",
                    buttons=[],
                )
                gr.HTML(_LIVE, elem_id="live", apply_default_css=False)
            with gr.Column(min_width=300):
                answer = gr.HTML(_NOTHING, elem_id="answer", apply_default_css=False, js_on_load=_ASK_WHY)
                why = gr.HTML(elem_id="why", apply_default_css=False)
                with gr.Row():
                    top_k = Slider(
                        1,
                        len(class_names),
                        value=min(settings.default_top_k, len(class_names)),
                        step=1,
                        label=translate("top_k"),
                        elem_id="top-k",
                        min_width=200,
                    )
                    self.version = Choice(
                        visible=False, label=translate("version"), elem_id="version", interactive=True, min_width=120
                    )
        examples = gr.HTML(
            _examples_html(self._examples, settings.max_image_pixels),
            elem_id="examples",
            apply_default_css=False,
            js_on_load=_CHOOSE,
        )
        private = {"queue": False, "api_visibility": "private"}  # one request, one answer: no session to find again
        gr.on(
            [self._photo.change, top_k.release, self.version.input],
            self._show,
            [self._photo, top_k, self.version],
            [answer, why],
            show_progress="hidden",  # the last answer stays until the next is there
            trigger_mode="always_last",
            **private,
        )
        examples.select(self._take_example, None, self._photo, show_progress="hidden", **private)
        answer.select(self._show_why, [self._photo, self.version], why, show_progress="minimal", **private)
        frame = gr.JSON(visible=False)
        gr.Button(visible=False).click(
            self._show_frame, [self.version, frame], gr.HTML(visible=False), api_name="live", **private
        )

    async def _show(
        self, payload: bytes | None, wanted: object, number: object, request: gr.Request
    ) -> tuple[str, str]:
        """The answer to a photo, or what is wrong with it; and no heat map, for that was the last photo's."""
        if payload is None:
            return _NOTHING, ""
        try:
            requester = requester_of(request)
            answer = await self._classifier.classify(
                payload, channel="page", requester=requester, top_k=wanted, version=number, record=True
            )
        except Exception as error:
            return problem_html(error_words(known(error))), ""
        return self._html(answer, explains=True, requester=requester if self._classifier.records else None), ""

    async def _show_frame(self, number: object, frame: Any, request: gr.Request) -> str:
        """The answer to one picture of the live camera, `{"jpeg": base64}`."""
        try:
            payload = base64.b64decode(frame["jpeg"], validate=True)
        except (TypeError, KeyError, ValueError, binascii.Error):
            payload = None
        try:
            answer = await self._classifier.classify(
                payload, channel="page", requester=requester_of(request), top_k=_LIVE_TOP_K, version=number
            )
        except Exception as error:
            return problem_html(error_words(known(error)))
        return self._html(answer, explains=False)

    async def _show_why(self, payload: bytes | None, number: object, event: gr.EventData, request: gr.Request) -> str:
        """The heat map for the class whose button was pressed."""
        label = str(event._data.get("value"))  # noqa: SLF001 - Gradio's place for what the page sent
        try:
            explanation = await self._explainer.explain(
                payload, channel="page", requester=requester_of(request), label=label, version=number
            )
        except Exception as error:
            return problem_html(error_words(known(error)))
        return _why_html(explanation.overlay, explanation.label, seconds=explanation.seconds)

    def _take_example(self, event: gr.EventData) -> Path | None:
        position = event._data.get("value")  # noqa: SLF001
        return self._examples[position] if position in range(len(self._examples)) else None

    def _html(self, answer: Classification, *, explains: bool, requester: Requester | None = None) -> str:
        return answer_html(
            answer,
            manifest=self._classifier.versions.version(answer.version).manifest,
            explains=explains,
            request_id=requester.request_id if requester else None,
        )


def known(error: Exception) -> CifarError:
    """The error, or in place of one that nobody foresaw the sentence for it; the log has that one."""
    return error if isinstance(error, CifarError) else CifarError(sentence(error))


_ASK_WHY = """element.setAttribute("aria-live", "polite");
element.addEventListener("click", event => {
  const button = event.target.closest("[data-why]");
  if (button) trigger("select", {value: button.dataset.why});
});"""
_CHOOSE = """element.addEventListener("click", event => {
  const button = event.target.closest("[data-example]");
  if (button) trigger("select", {value: Number(button.dataset.example)});
});"""
_LIVE = f"""<div class="live">
<button type="button" class="plain" data-live="start">{say("live.start")}</button>
<button type="button" class="plain" data-live="stop" hidden>{say("live.stop")}</button>
<div class="live-now" hidden><div><video muted playsinline></video><p class="rate"></p></div><div class="live-answer"></div></div>
<p class="problem" role="alert" hidden></p></div>"""


def _why_html(picture: bytes, name: str, *, seconds: float) -> str:
    shown = class_name(name)
    return (
        f'<figure class="why"><img src="data:image/png;base64,{base64.b64encode(picture).decode()}" alt="">'
        f"<figcaption><h2 class=part>{say('why', name=shown)}</h2>{say('why.heat', name=shown)}"
        f" {say('why.seconds', seconds=f'{seconds:.2f}')}</figcaption></figure>"
    )


def _examples(folder: Path, class_names: list[str]) -> list[Path]:
    """The sample images that are named after a class of the model: `cat.jpg`."""
    return [file for file in sorted(folder.glob("*.jpg")) if file.stem in class_names]


def _examples_html(files: list[Path], max_pixels: int) -> str:
    buttons = "".join(
        f'<button type="button" data-example="{position}"><img src="{_thumbnail(file, max_pixels)}" alt="">'
        f"<span>{spans(class_name(file.stem))}</span></button>"
        for position, file in enumerate(files)
    )
    return f'<h2 class=part>{say("examples")}</h2><div class="examples">{buttons}</div>' if files else ""


def _thumbnail(file: Path, max_pixels: int) -> str:
    """The file itself where it is small, else the picture squashed, inline."""
    content = file.read_bytes()
    if len(content) <= _INLINE_BYTES:
        return "data:image/jpeg;base64," + base64.b64encode(content).decode()
    return data_url(preprocess(content, _THUMBNAIL, max_pixels=max_pixels))
