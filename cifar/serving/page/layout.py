"""The page: its tabs, put together."""

from __future__ import annotations

from typing import Any

import gradio as gr

from cifar.errors import CifarError
from cifar.serving.gradio.components import Choice
from cifar.serving.gradio.endpoints import add_endpoints
from cifar.serving.inference.classify import whole_number
from cifar.serving.inference.service import Service
from cifar.serving.page.ab_tab import ab_html, drift_html
from cifar.serving.page.answer import problem_html
from cifar.serving.page.batch_tab import batch_html, compare_html
from cifar.serving.page.classify_tab import ClassifyTab, known
from cifar.serving.page.code import code_html
from cifar.serving.page.model_tab import model_html
from cifar.serving.page.texts import AUTOMATIC, LANGUAGES, TEXTS, class_name, error_words, joined, say
from cifar.settings import Settings

_NAMES_SHOWN = 20
_ADDRESS = "() => [{address: location.origin + location.pathname}]"

TRANSLATIONS = gr.I18n(
    **{tag: {key: getattr(text, field) for key, text in TEXTS.items()} for field, tag in LANGUAGES.items()}
)
"""The labels of Gradio's own components, and what our scripts say."""


def create_page(service: Service, settings: Settings) -> gr.Blocks:
    """Lay out the page and wire it."""
    page = Page(service, settings)
    return page.blocks


class Page:
    """The tabs. What they hold is asked for when the page opens, or the tab does."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._classifier = service.classifier
        self._settings = settings
        self._recorded = service.experiment
        private: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        with gr.Blocks(title="CIFAR Space", analytics_enabled=False) as self.blocks:
            gr.HTML(self._header(), elem_id="header", apply_default_css=False, js_on_load="cifar.speak()")
            with gr.Tabs(elem_id="tabs"):
                with gr.Tab(TRANSLATIONS("tab.classify"), id="classify"):
                    tab = ClassifyTab(service, settings, TRANSLATIONS)
                with gr.Tab(TRANSLATIONS("tab.batch"), id="batch"):
                    batch = gr.HTML(elem_id="batch", apply_default_css=False)
                with gr.Tab(TRANSLATIONS("tab.compare"), id="compare"):
                    compare = gr.HTML(elem_id="compare", apply_default_css=False)
                with gr.Tab(TRANSLATIONS("tab.model"), id="model") as model_tab:
                    version = Choice(
                        visible=False, label=TRANSLATIONS("version"), elem_id="model-version", interactive=True
                    )
                    model = gr.HTML(elem_id="model", apply_default_css=False)
                with gr.Tab(TRANSLATIONS("tab.ab"), id="ab") as ab_tab:
                    ab = gr.HTML(elem_id="ab", apply_default_css=False)
                with gr.Tab(TRANSLATIONS("tab.code"), id="code"):
                    code = gr.HTML(elem_id="code", apply_default_css=False)
            gr.on([model_tab.select, version.input], self._model, version, model, **private)
            ab_tab.select(self._ab, None, ab, **private)
            opened_at = gr.JSON(visible=False)
            self.blocks.load(
                self._opened, opened_at, [tab.version, version, batch, compare, code], js=_ADDRESS, **private
            )
            add_endpoints(service)

    def _header(self) -> str:
        names = self._classifier.versions.default.manifest.class_names
        shown = joined([class_name(name) for name in names[:_NAMES_SHOWN]])
        if len(names) > _NAMES_SHOWN:
            shown = joined([shown, type(shown)("…", "…")])
        sign_out = f'<a id="sign-out" href="/signout">{say("sign_out")}</a>' if self._settings.oidc_provider_url else ""
        return (
            f'<div class="top"><h1>CIFAR Space</h1>{sign_out}<div class="languages" role="group" aria-label="Language · 语言">'
            '<button type="button" data-language="en" lang="en">English</button>'
            '<button type="button" data-language="zh-CN" lang="zh-CN">中文</button></div></div>'
            f"<p>{say('intro', count=len(names), names=shown)}</p>"
            f'<p id="page-problem" class="problem" role="alert" hidden></p>'
        )

    def _opened(self, opened_at: Any) -> tuple[Any, Any, str, str, str]:
        """What may differ each time the page opens: the versions, and its address."""
        numbers = self._classifier.versions.registry.numbers()
        shown = [(str(number), number) for number in reversed(numbers)]
        several = len(numbers) > 1
        return (
            gr.update(choices=[(AUTOMATIC, ""), *shown], value="", visible=several),
            gr.update(choices=shown, value=self._classifier.versions.default.number, visible=several),
            batch_html(self._classifier, self._settings),
            compare_html(self._classifier, self._settings),
            code_html(opened_at.get("address") if isinstance(opened_at, dict) else None, mcp=self._settings.mcp),
        )

    def _model(self, number: object) -> str:
        try:
            version = self._classifier.versions.registry.get(whole_number("version", number))
            return model_html(version.manifest, self._drift(version.number))
        except Exception as error:
            return problem_html(error_words(known(error)))

    def _drift(self, number: int) -> str:
        """Drift of one version; "" where nothing is recorded."""
        if self._recorded is None:
            return ""
        try:
            return drift_html(self._recorded.drift(number), self._settings)
        except CifarError as error:
            return problem_html(error_words(error))

    def _ab(self) -> str:
        if self._recorded is None:
            return f'<p class="missing">{say("ab.off")}</p>'
        try:
            return ab_html(self._recorded.report(), self._settings)
        except Exception as error:
            return problem_html(error_words(known(error)))
