"""Builds the page from its tabs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from cifar.errors import CifarError, MissingScope
from cifar.format import percent
from cifar.models.manifest import Manifest
from cifar.serving.gradio.calls import requester_of
from cifar.serving.gradio.components import Blocks, Choice, plain_html
from cifar.serving.gradio.endpoints import add_endpoints
from cifar.serving.inference.classify import whole_number
from cifar.serving.inference.service import Service
from cifar.serving.page.ab_tab import ab_html
from cifar.serving.page.answer import error_html
from cifar.serving.page.batch_tab import batch_html, compare_html
from cifar.serving.page.classify_tab import ClassifyTab
from cifar.serving.page.code_tab import code_html
from cifar.serving.page.model_tab import drift_html, model_html
from cifar.serving.page.texts import AUTOMATIC, TRANSLATIONS, Text, class_name, html_text, join, share_range
from cifar.settings import Settings

_MAX_NAMES = 20
"""Number of class names that the introduction shows; a longer list ends with an ellipsis."""
_READ_ADDRESS = "() => [{address: location.origin + location.pathname}]"


class Page:
    """The page with its tabs, and the endpoints for Gradio's clients. Gradio mounts its `blocks`."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._versions = service.classifier.versions
        self._classifier = service.classifier
        self._analytics = service.analytics
        self._settings = settings
        private: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        with Blocks(title="CIFAR Space", analytics_enabled=False) as self.blocks:
            plain_html(self._header(), elem_id="header", js_on_load="cifar.setLanguage()")
            with gr.Tabs(elem_id="tabs"):
                with gr.Tab(TRANSLATIONS("tab.classify"), id="classify"):
                    classify = ClassifyTab(service, settings)
                with gr.Tab(TRANSLATIONS("tab.batch"), id="batch"):
                    batch = plain_html(elem_id="batch")
                with gr.Tab(TRANSLATIONS("tab.compare"), id="compare"):
                    compare = plain_html(elem_id="compare")
                with gr.Tab(TRANSLATIONS("tab.model"), id="model") as model_tab:
                    version = Choice(
                        visible=False, label=TRANSLATIONS("version.label"), elem_id="model-version", interactive=True
                    )
                    model = plain_html(elem_id="model")
                with gr.Tab(TRANSLATIONS("tab.ab"), id="ab", visible=False) as ab_tab:
                    ab = plain_html(elem_id="ab")
                with gr.Tab(TRANSLATIONS("tab.code"), id="code"):
                    code = plain_html(elem_id="code")
            gr.on([model_tab.select, version.input], self._show_model, version, model, **private)
            ab_tab.select(self._show_ab, None, ab, **private)
            opened_at = gr.JSON(visible=False)
            self.blocks.load(
                self._open,
                opened_at,
                [classify.version, version, batch, compare, code, ab_tab],
                js=_READ_ADDRESS,
                **private,
            )
            add_endpoints(service)

    def _header(self) -> str:
        manifest = self._versions.default.manifest
        names = manifest.class_names
        intro = "header.intro_multi_label" if manifest.is_multi_label else "header.intro"
        shown = [class_name(name) for name in names[:_MAX_NAMES]]
        if len(names) > _MAX_NAMES:
            shown.append(Text("…", "…"))
        sign_out = (
            f'<a id="sign-out" href="signout">{html_text("header.sign_out")}</a>'
            if self._settings.oidc_provider_url
            else ""
        )
        return (
            f'<div class="top"><span class="mark"></span><h1>CIFAR Space</h1>{sign_out}<div class="languages" role="group" aria-label="Language · 语言">'
            '<button type="button" data-language="en" lang="en">English</button>'
            '<button type="button" data-language="zh-CN" lang="zh-CN">中文</button></div></div>'
            f"<p>{html_text(intro, count=len(names), names=join(shown))}</p>{_good_for(manifest)}"
            f'<p id="page-problem" class="problem" role="alert" hidden></p><p id="page-note" class="note" role="status" hidden></p>'
        )

    def _open(self, opened_at: Any, request: gr.Request) -> tuple[Any, Any, str, str, str, Any]:
        """Return the content that depends on when, where and by whom the page was opened."""
        numbers = self._versions.registry.numbers()
        choices = [(str(number), number) for number in reversed(numbers)]
        several = len(numbers) > 1
        return (
            gr.update(choices=[(AUTOMATIC, ""), *choices], value="", visible=several),
            gr.update(choices=choices, value=self._versions.default.number, visible=several),
            batch_html(self._classifier, self._settings),
            compare_html(self._classifier, self._settings),
            code_html(opened_at.get("address") if isinstance(opened_at, dict) else None, mcp=self._settings.mcp),
            gr.update(visible=self._is_operator(request)),
        )

    def _is_operator(self, request: gr.Request) -> bool:
        """Return whether the A/B test and drift are shown: with sign-in to the scope `admin`, otherwise by a setting."""
        if not self._settings.requires_sign_in:
            return self._settings.operator_tabs
        requester = requester_of(request)
        return requester is not None and "admin" in requester.scopes

    def _show_model(self, number: object, request: gr.Request) -> str:
        try:
            version = self._versions.registry.get(whole_number("version", number))
            drift = self._drift(version.number) if self._is_operator(request) else ""
            return model_html(version.manifest, drift)
        except Exception as error:
            return error_html(error)

    def _drift(self, number: int) -> str:
        """Return the drift of a version as HTML; empty if records are switched off."""
        if self._analytics is None:
            return ""
        try:
            return drift_html(self._analytics.drift(number))
        except CifarError as error:
            return error_html(error)

    def _show_ab(self, request: gr.Request) -> str:
        if not self._is_operator(request):
            return error_html(MissingScope("The A/B test is shown to operators only."))
        if self._analytics is None:
            return f'<p class="missing">{html_text("ab.off")}</p>'
        try:
            return ab_html(self._analytics.report())
        except Exception as error:
            return error_html(error)


def _good_for(manifest: Manifest) -> str:
    """Return a sentence on what the version is good for, from its measured accuracy; empty if its manifest has none."""
    metrics = manifest.metrics
    accuracy = (metrics.get("test") or {}).get("accuracy", metrics.get("test_accuracy"))
    if accuracy is None:
        return ""
    photographs = metrics.get("photographs")
    key = "header.good_for" if photographs else "header.good_for_alike"
    shown = {"photos": share_range([each["accuracy"] for each in photographs])} if photographs else {}
    return f'<p class="good-for">{html_text(key, test=percent(accuracy), **shown)}</p>'
