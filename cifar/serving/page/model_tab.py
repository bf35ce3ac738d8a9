"""The tab Model: what the manifest of a version contains, and the version's drift."""

from __future__ import annotations

import html
from typing import Any

from cifar.analytics.drift_report import MIN_IMAGES, WINDOW_HOURS, VersionDrift
from cifar.format import percent
from cifar.models.manifest import ConfidenceInfo, Manifest, SignatureInfo
from cifar.serving.page.plots import Series, class_bars, confusion_table, curves, reliability_diagram, wide_table
from cifar.serving.page.texts import as_html, html_text, text

_MAX_MATRIX_CLASSES = 30
"""With more classes, the confusion matrix would be too dense to read, so it is left out."""
_FEATURES = {
    "labels": "drift.labels",
    "confidence": "drift.confidence",
    "brightness": "drift.brightness",
    "contrast": "drift.contrast",
    "in_distribution": "drift.in_distribution",
}
_LEVELS = {"none": "drift.none", "warn": "drift.warn", "alert": "drift.alert"}


def model_html(manifest: Manifest, drift: str = "") -> str:
    """Return the tab's content for one version. `drift` is the content of a section, which is left out if it is empty."""
    measured = manifest.metrics.get("test")
    history = manifest.metrics.get("history")
    sections = [_section("model.facts", _facts(manifest))]
    if drift:
        sections.append(_section("model.drift", drift))
    sections += _measured(measured, manifest.class_names) if measured else [_missing("model.missing_test")]
    if not history:
        sections.append(_missing("model.missing_history"))
    elif len(history) > 1:  # one epoch has no course
        sections.append(_section("model.curves", _curves(history)))
    sections.append(_section("model.signatures", _signatures(manifest.signatures)))
    return f'<div class="model">{"".join(sections)}</div>'


def _section(title: str, content: str) -> str:
    name = title.removeprefix("model.")
    return f'<section class="card {name}"><h2 class=part id="{name}-title">{html_text(title)}</h2>{content}</section>'


def _missing(key: str) -> str:
    return f'<p class="missing">{html_text(key)}</p>'


def _measured(measured: dict[str, Any], class_names: list[str]) -> list[str]:
    reliability = f"<p>{html_text('model.reliability_help')}</p>{reliability_diagram(measured['reliability'])}"
    sections = [
        _section("model.per_class", class_bars(measured["per_class"])),
        _section("model.reliability", reliability),
    ]
    if len(class_names) <= _MAX_MATRIX_CLASSES:
        table = confusion_table(measured["confusion_matrix"], class_names)
        sections.append(_section("model.confusion", f"<p>{html_text('model.confusion_help')}</p>{table}"))
    return sections


def _facts(manifest: Manifest) -> str:
    """Return a list of facts; those with an empty value are left out."""
    metrics = manifest.metrics
    spec = manifest.image
    seconds, parameters = metrics.get("training_seconds"), metrics.get("parameters")
    facts = [
        (html_text("model.version"), html.escape(f"{manifest.name} {manifest.version}")),
        (html_text("model.created"), html.escape(manifest.created.replace("T", " ").replace("+00:00", " UTC"))),
        *_scores(metrics),
        (html_text("model.task"), html_text("answer.multi_label") if manifest.is_multi_label else ""),
        (html_text("model.confidence"), _confidence(manifest.confidence)),
        (html_text("model.parameters"), f"{parameters:,}" if isinstance(parameters, int) else ""),
        (html_text("model.size"), f"{sum(file.bytes for file in manifest.files.values()) / 1e6:.1f} MB"),
        (html_text("model.input"), f"{spec.width} x {spec.height} x {spec.channels}"),
        (html_text("model.preprocessing"), _preprocessing(manifest.preprocessing)),
        (html_text("model.data"), _data(manifest.training.get("data", {}))),
        (html_text("model.seconds"), html_text("model.seconds_value", seconds=f"{seconds:.0f}") if seconds else ""),
        (html_text("model.libraries"), html.escape(", ".join(" ".join(item) for item in manifest.libraries.items()))),
    ]
    rows = "".join(f"<dt>{title}</dt><dd>{value}</dd>" for title, value in facts if value)
    return f"<dl>{rows}</dl>"


def _scores(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    measured = metrics.get("test") or {}
    accuracy = measured.get("accuracy", metrics.get("test_accuracy"))
    images = measured.get("images", metrics.get("test_images"))
    loss = measured.get("loss", metrics.get("test_loss"))
    rows = []
    if accuracy is not None:
        value = html_text("model.accuracy_of", accuracy=percent(accuracy), images=f"{images:,}")
        if interval := measured.get("accuracy_interval"):
            value += " · " + html_text("model.interval", low=percent(interval[0]), high=percent(interval[1]))
        rows.append((html_text("model.accuracy"), value))
    measured_photographs = metrics.get("photographs") or [None]
    rows += [(html_text("model.photographs"), _photographs(folder)) for folder in measured_photographs]
    for k, share in measured.get("top_k", {}).items():
        if k != "1":
            rows.append((html_text("model.top_k", k=k), percent(share)))
    if metrics.get("validation_accuracy") is not None:
        rows.append((html_text("model.validation"), percent(metrics["validation_accuracy"])))
    if loss is not None:
        rows.append((html_text("model.loss"), f"{loss:.3f}"))
    if measured.get("ece") is not None:
        rows.append((html_text("model.ece"), f"{measured['ece']:.3f}"))
    return rows


def _photographs(measured: dict[str, Any] | None) -> str:
    if not measured:
        return html_text("model.photographs_missing")
    low, high = map(percent, measured["accuracy_interval"])
    value = html_text("model.accuracy_of", accuracy=percent(measured["accuracy"]), images=measured["images"])
    source = html.escape(measured["source"])
    return f"{value} · {html_text('model.interval', low=low, high=high)}<br><small>{source}</small>"


def _confidence(fitted: ConfidenceInfo | None) -> str:
    if not fitted:
        return html_text("answer.uncalibrated")
    temperature, count = f"{fitted.temperature:.2f}", f"{fitted.held_out_images:,}"
    return html_text("model.temperature", temperature=temperature, count=count)


def _preprocessing(description: str) -> str:
    """Return the description in both languages if it is the usual one, otherwise as the manifest has it."""
    known = text("model.preprocessing_known")
    return as_html(known) if description == known.en else html.escape(description)


def _data(data: dict[str, Any]) -> str:
    source = html.escape(str(data.get("source", "")))
    if "train_images" not in data:
        return source
    train, test = f"{data['train_images']:,}", f"{data.get('test_images') or 0:,}"
    return f"{source}<br>{html_text('model.data_images', train=train, test=test)}"


def _curves(history: list[dict[str, Any]]) -> str:
    def lines(name: str) -> list[Series]:
        return [
            Series(text("model.series_train"), "first", [epoch.get(name) for epoch in history]),
            Series(text("model.series_validation"), "second", [epoch.get(f"val_{name}") for epoch in history]),
        ]

    plots = curves(text("model.curve_accuracy"), lines("accuracy")) + curves(text("model.curve_loss"), lines("loss"))
    return f'<div class="plots">{plots}</div>'


def _signatures(signatures: dict[str, SignatureInfo]) -> str:
    def tensors(named: dict[str, Any]) -> str:
        return "<br>".join(
            html.escape(f"{name}: {info.dtype} [{', '.join('n' if d is None else str(d) for d in info.shape)}]")
            for name, info in named.items()
        )

    rows = [
        f'<tr><th scope="row"><code>{html.escape(name)}</code></th><td><code>{tensors(info.inputs)}</code></td>'
        f"<td><code>{tensors(info.outputs)}</code></td></tr>"
        for name, info in signatures.items()
    ]
    return wide_table("signatures", map(html_text, ("model.signature", "model.inputs", "model.outputs")), rows)


def drift_html(drift: VersionDrift) -> str:
    """Return the section on drift of one version."""
    hours, images = f"{WINDOW_HOURS:g}", f"{drift.images:,}"
    if drift.status == "no_reference":
        return f"<p>{html_text('drift.no_reference')}</p>"
    if drift.status == "few":
        return f"<p>{html_text('drift.few', hours=hours, images=images, minimum=f'{MIN_IMAGES:,}')}</p>"
    columns = ("drift.feature", "drift.psi", "drift.chance", "drift.level")
    rows = [
        f'<tr class="drifts-{each.level}"><th scope="row">{html_text(_FEATURES[each.feature])}</th>'
        f"<td>{each.psi:.3f}</td><td>{each.chance:.3f}</td><td>{html_text(_LEVELS[each.level])}</td></tr>"
        for each in drift.features
    ]
    explanation = html_text("drift.help", hours=hours, images=images, reference=f"{drift.reference_images:,}")
    return f"<p>{explanation}</p>{wide_table('drift', map(html_text, columns), rows)}"
