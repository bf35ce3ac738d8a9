"""The tabs Batch and Compare: one widget for many photos, asking one version or two.

`batch.js` unpacks, sends and shows: each photo is one `POST /predict`, so a batch stores nothing here, holds no place
in any queue, waits where a limit says so, works with any number of workers, and ends when its page says so.
"""

from __future__ import annotations

import html

from cifar.serving.inference.classify import Classifier
from cifar.serving.page.texts import AUTOMATIC, say
from cifar.settings import Settings


def batch_html(classifier: Classifier, settings: Settings) -> str:
    """The widget that asks one version."""
    numbers = classifier.versions.registry.numbers()
    choice = _select("version", "version", numbers, None) if len(numbers) > 1 else ""
    return f"<p>{say('batch.intro')}</p>{_widget('batch', choice, classifier, settings)}"


def compare_html(classifier: Classifier, settings: Settings) -> str:
    """The widget that asks two, or a sentence where there is but one."""
    numbers = classifier.versions.registry.numbers()
    default = classifier.versions.default.number
    others = [number for number in numbers if number != default]
    if not others:
        return f'<p class="missing">{say("compare.one", number=default)}</p>'
    choices = _select("compare.first", "version", numbers, default) + _select(
        "compare.second", "second", numbers, others[-1]
    )
    return f"<p>{say('compare.intro')}</p>{_widget('compare', choices, classifier, settings)}"


def _select(key: str, name: str, numbers: list[int], chosen: int | None) -> str:
    options = f'<option value="">{AUTOMATIC}</option>' if chosen is None else ""
    options += "".join(
        f"<option{' selected' if number == chosen else ''}>{number}</option>" for number in reversed(numbers)
    )
    return f'<label class="choice">{say(key)}<select data-{name}>{options}</select></label>'


def _widget(kind: str, choices: str, classifier: Classifier, settings: Settings) -> str:
    limits = {
        "files": settings.max_batch_files,
        "bytes": settings.max_batch_bytes,
        "each": settings.max_body_bytes,
        "ratio": settings.max_zip_ratio,
        "classes": len(classifier.versions.default.manifest.class_names),
    }
    data = " ".join(f'data-{name}="{value}"' for name, value in limits.items())
    megabytes = {"megabytes": limits["bytes"] // 1024**2, "each": limits["each"] // 1024**2}
    formats = html.escape("image/*,.heic,.heif,.avif,.tif,.tiff,.zip")
    return (
        f'<div class="many" data-many="{kind}" {data}>'
        f'<div class="choices">{choices}</div>'
        f'<label class="drop"><span id="{kind}-title">{say("batch.drop")}</span>'
        f'<span class="plain">{say("batch.choose")}</span><input type="file" multiple accept="{formats}">'
        f"<small>{say('batch.limits', files=limits['files'], **megabytes)}</small></label>"
        f'<div class="run" hidden><progress max="1" value="0" aria-labelledby="{kind}-title"></progress>'
        f'<p id="{kind}-progress" class="progress"></p>'
        f'<button type="button" class="plain" data-do="cancel" hidden>{say("batch.cancel")}</button></div>'
        '<ul class="problems"></ul><div class="report"></div></div>'
    )
