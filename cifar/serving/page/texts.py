"""The page's texts in English and Chinese, from `texts.json`.

The page contains both languages at once, and `page.css` shows one of them by `html[lang]`. Switching the language therefore
needs no request and loses nothing. Everything for programs (CSV, JSON, the API) is in English.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from cifar.errors import CifarError
from cifar.format import percent, percent_range


class Text(NamedTuple):
    """One text in both languages."""

    en: str
    zh: str


LANGUAGES = {"en": "en", "zh": "zh-CN"}
"""The fields of `Text`, and the language tags that browsers and Gradio use for them."""

AUTOMATIC = "auto"
"""The choice of version that leaves it to the rollout's traffic split. It is the same in both languages."""

TEXTS = {
    key: Text(**both)
    for key, both in json.loads(Path(__file__).with_name("texts.json").read_text(encoding="utf-8")).items()
}
"""Every text by its key. `error.CODE` is the text for an error, `class.NAME` the name of one of CIFAR-10's classes."""

TRANSLATIONS = gr.I18n(
    **{tag: {key: getattr(both, field) for key, both in TEXTS.items()} for field, tag in LANGUAGES.items()}
)
"""The same texts, for the labels of Gradio's components and for the page's scripts."""


def text(key: str, **values: object) -> Text:
    """Return a text with its placeholders filled in. A value that is a `Text` is filled in by language."""

    def filled(at: int) -> str:
        by_language = {name: value[at] if isinstance(value, Text) else value for name, value in values.items()}
        return TEXTS[key][at].format_map(by_language)

    return Text(filled(0), filled(1))


def class_name(name: str) -> Text:
    """Return the name of a class in both languages. Classes other than CIFAR-10's keep their name."""
    return TEXTS.get(f"class.{name}", Text(name, name))


def with_article(name: str) -> Text:
    """Return the name of a class, in English with its article: `an airplane`."""
    english, chinese = class_name(name)
    return Text(f"{'an' if english[:1].lower() in 'aeiou' else 'a'} {english}", chinese)


def join(parts: list[Text], *, en: str = ", ", zh: str = "、") -> Text:
    """Join texts with a separator for each language."""
    return Text(en.join(part.en for part in parts), zh.join(part.zh for part in parts))


def share_range(shares: list[float]) -> Text:
    """Return the lowest and the highest of some shares as percentages."""
    low, high = min(shares), max(shares)
    shown = percent(low) if low == high else percent_range(low, high)
    return Text(shown, shown.replace(" to ", " 至 "))


def error_text(error: CifarError) -> Text:
    """Return the text of an error for the page. The English one is often the API's message."""
    return text(f"error.{error.code}", details=error)


def as_html(both: Text) -> str:
    """Return HTML that contains both languages, of which CSS shows the one of the page."""
    if both.en == both.zh:
        return html.escape(both.en)
    return "".join(
        f'<span class="{field}" lang="{LANGUAGES[field]}">{html.escape(value)}</span>'
        for field, value in both._asdict().items()
    )


def html_text(key: str, **values: object) -> str:
    """Return `text(key, **values)` as HTML."""
    return as_html(text(key, **values))
