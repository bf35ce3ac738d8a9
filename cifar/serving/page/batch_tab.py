"""The tabs Batch and Compare: a widget that classifies many photos with one version or with two.

`batch.js` unpacks zip files, sends each photo in its own `POST /predict`, and shows the answers. A batch therefore stores nothing
on the server, does not use Gradio's queue, respects the rate limits, works with any number of workers, and ends when the page
is closed.
"""

from __future__ import annotations

from collections.abc import Sequence

from cifar.images.views import ALLOWED_VIEWS
from cifar.serving.inference.archives import MAX_RATIO
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.page.texts import AUTOMATIC, html_text
from cifar.settings import Settings

_FORMATS = "image/*,.heic,.heif,.avif,.tif,.tiff,.zip"


def batch_html(classifier: RecordedClassifier, settings: Settings) -> str:
    """Return the widget for one version."""
    numbers = classifier.versions.registry.numbers()
    choice = _select("version.label", "version", numbers, None) if len(numbers) > 1 else ""
    return f"<p>{html_text('batch.intro')}</p>{_widget('batch', choice, classifier, settings)}"


def compare_html(classifier: RecordedClassifier, settings: Settings) -> str:
    """Return the widget for two versions, or a sentence if there is only one."""
    numbers = classifier.versions.registry.numbers()
    default = classifier.versions.default.number
    others = [number for number in numbers if number != default]
    if not others:
        return f'<p class="missing">{html_text("compare.one", number=default)}</p>'
    choices = _select("compare.first", "version", numbers, default) + _select(
        "compare.second", "second", numbers, others[-1]
    )
    return f"<p>{html_text('compare.intro')}</p>{_widget('compare', choices, classifier, settings)}"


def _select(label: str, name: str, numbers: Sequence[int | str], selected: int | None) -> str:
    options = f'<option value="">{AUTOMATIC}</option>' if selected is None else ""
    options += "".join(
        f"<option{' selected' if number == selected else ''}>{number}</option>" for number in reversed(numbers)
    )
    return f'<label class="choice">{html_text(label)}<select data-{name}>{options}</select></label>'


def _widget(kind: str, choices: str, classifier: RecordedClassifier, settings: Settings) -> str:
    limits = {
        "files": settings.max_batch_files,
        "bytes": settings.max_batch_bytes,
        "each": settings.max_body_bytes,
        "ratio": MAX_RATIO,
        "classes": len(classifier.versions.default.manifest.class_names),
    }
    data = " ".join(f'data-{name}="{value}"' for name, value in limits.items())
    views = _select("views.label", "views", list(reversed(ALLOWED_VIEWS)), 1)
    megabytes = {"megabytes": limits["bytes"] // 1024**2, "each": limits["each"] // 1024**2}
    return (
        f'<div class="many" data-many="{kind}" {data}>'
        f'<div class="choices">{choices}{views}</div>'
        f'<label class="drop"><span id="{kind}-title">{html_text("batch.drop")}</span>'
        f'<span class="plain">{html_text("batch.choose")}</span><input type="file" multiple accept="{_FORMATS}">'
        f"<small>{html_text('batch.limits', files=limits['files'], **megabytes)}</small></label>"
        f'<div class="run" hidden><progress max="1" value="0" aria-labelledby="{kind}-title"></progress>'
        f'<p id="{kind}-progress" class="progress"></p>'
        f'<button type="button" class="plain" data-do="cancel" hidden>{html_text("batch.cancel")}</button></div>'
        '<ul class="problems"></ul><div class="report"></div></div>'
    )
