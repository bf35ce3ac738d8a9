"""Mounts the page at `/`, with its theme, styles and scripts."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from cifar.format import data_url
from cifar.serving.gradio.mount import mount_blocks
from cifar.serving.inference.service import Service
from cifar.serving.page.layout import Page
from cifar.serving.page.texts import TRANSLATIONS
from cifar.serving.process.worker_slot import WorkerSlot
from cifar.settings import Settings

_STATIC = Path(__file__).parent / "static"
_SCRIPTS = ("page", "server", "files", "live", "feedback", "zip", "batch")
"""`page.js` comes first: the others use its functions."""


def mount_page(api: FastAPI, service: Service, settings: Settings, worker: WorkerSlot | None) -> None:
    """Build the page for `service` and mount it at `/` of `api`."""
    mark = data_url(_read("mark.svg").encode(), "image/svg+xml")
    mount_blocks(
        api,
        lambda: Page(service, settings).blocks,
        settings,
        worker,
        theme=gr.themes.Default(
            primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=_read("page.css"),
        # not as Gradio's `favicon_path`: with it, Gradio would draw the icon in any size that a request asks for
        head=f'<link rel="icon" href="{mark}"><style>:root {{ --mark: url("{mark}"); }} {_read("phone.css")}</style>'
        + "".join(f"<script>{_read(f'{name}.js')}</script>" for name in _SCRIPTS),
        i18n=TRANSLATIONS,
    )


def _read(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")
