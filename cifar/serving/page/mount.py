"""Mounts the page at `/`, with its theme, styles and scripts."""

from __future__ import annotations

import os
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from cifar.serving.gradio.mount import mount_blocks
from cifar.serving.inference.service import Service
from cifar.serving.page.layout import TRANSLATIONS, create_page
from cifar.serving.process.worker_slot import WorkerSlot
from cifar.settings import Settings

_STATIC = Path(__file__).parent / "static"
_SCRIPTS = ("page.js", "live.js", "feedback.js", "zip.js", "batch.js")


def mount_page(api: FastAPI, service: Service, settings: Settings, worker: WorkerSlot | None = None) -> None:
    """Build the page for `service` and mount it at `/` of `api`."""
    os.environ["GRADIO_TEMP_DIR"] = str(settings.uploads)  # each component reads this folder when it is created
    mount_blocks(
        api,
        create_page(service, settings),
        settings,
        worker,
        theme=gr.themes.Default(
            primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=_read("page.css"),
        head="".join(f"<script>{_read(name)}</script>" for name in _SCRIPTS),
        i18n=TRANSLATIONS,
    )


def _read(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")
