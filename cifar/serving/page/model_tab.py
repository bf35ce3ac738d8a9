"""The tab that shows what is known of a version: all of it from its manifest, and what is not there is said."""

from __future__ import annotations

import html
from typing import Any

from cifar.models.manifest import ConfidenceInfo, Manifest, SignatureInfo
from cifar.serving.page.answer import percent
from cifar.serving.page.plots import Series, class_bars, confusion_table, curves, reliability_diagram
from cifar.serving.page.texts import Words, say, spans, words

_MOST_IN_A_MATRIX = 30
"""Classes; a larger table would show nothing."""


def model_html(manifest: Manifest, drift: str = "") -> str:
    """The tab's content for one version; `drift` is that section's, if there is one."""
    measured = manifest.metrics.get("test")
    history = manifest.metrics.get("history")
    sections = [_section("facts", _facts(manifest))]
    if drift:
        sections.append(_section("drift", drift))
    if measured:
        sections += _measured(measured, manifest.class_names)
    else:
        sections.append(f'<p class="missing">{say("model.missing_test")}</p>')
    if history:
        sections.append(_section("curves", _curves(history)))
    else:
        sections.append(f'<p class="missing">{say("model.missing_history")}</p>')
    sections.append(_section("signatures", _signatures(manifest.signatures)))
    return f'<div class="model">{"".join(sections)}</div>'


def _section(key: str, content: str) -> str:
    return f'<section class="card {key}"><h2 class=part id="{key}-title">{say(f"model.{key}")}</h2>{content}</section>'


def _measured(measured: dict[str, Any], class_names: list[str]) -> list[str]:
    sections = [_section("per_class", class_bars(measured["per_class"]))]
    sections.append(
        _section("reliability", f"<p>{say('model.reliability_help')}</p>{reliability_diagram(measured['reliability'])}")
    )
    if len(class_names) <= _MOST_IN_A_MATRIX:
        table = confusion_table(measured["confusion_matrix"], class_names)
        sections.append(_section("confusion", f"<p>{say('model.confusion_help')}</p>{table}"))
    return sections


def _facts(manifest: Manifest) -> str:
    """What is known, one line each; lines of which nothing is known are left out."""
    metrics, data = manifest.metrics, manifest.training.get("data", {})
    spec = manifest.image
    facts: list[tuple[str, str]] = [
        ("version", html.escape(f"{manifest.name} {manifest.version}")),
        ("created", html.escape(manifest.created.replace("T", " ").replace("+00:00", " UTC"))),
        *_scores(metrics),
        ("confidence", _confidence(manifest.confidence)),
        ("parameters", _number(metrics.get("parameters"))),
        ("size", f"{sum(file.bytes for file in manifest.files.values()) / 1e6:.1f} MB"),
        ("input", f"{spec.width} x {spec.height} x {spec.channels}"),
        ("preprocessing", _preprocessing(manifest.preprocessing)),
        ("data", _data(data)),
        ("seconds", say("model.seconds_value", seconds=f"{metrics['training_seconds']:.0f}"))
        if metrics.get("training_seconds")
        else ("seconds", ""),
        ("libraries", html.escape(", ".join(f"{name} {number}" for name, number in manifest.libraries.items()))),
    ]
    rows = "".join(
        f"<dt>{say(f'model.{key}') if not isinstance(key, Words) else spans(key)}</dt><dd>{value}</dd>"
        for key, value in facts
        if value
    )
    return f"<dl>{rows}</dl>"


def _scores(metrics: dict[str, Any]) -> list[tuple[Any, str]]:
    measured = metrics.get("test") or {}
    accuracy, images = metrics.get("test_accuracy"), metrics.get("test_images")
    accuracy, images = measured.get("accuracy", accuracy), measured.get("images", images)
    rows: list[tuple[Any, str]] = []
    if accuracy is not None:
        value = say("model.accuracy_of", accuracy=percent(accuracy), images=f"{images:,}")
        if interval := measured.get("accuracy_interval"):
            value += " · " + say("model.interval", low=percent(interval[0]), high=percent(interval[1]))
        rows.append(("accuracy", value))
    rows += [(words("model.top_k", k=k), percent(share)) for k, share in measured.get("top_k", {}).items() if k != "1"]
    if metrics.get("validation_accuracy") is not None:
        rows.append(("validation", percent(metrics["validation_accuracy"])))
    loss = measured.get("loss", metrics.get("test_loss"))
    if loss is not None:
        rows.append(("loss", f"{loss:.3f}"))
    if measured.get("ece") is not None:
        rows.append(("ece", f"{measured['ece']:.3f}"))
    return rows


def _confidence(fitted: ConfidenceInfo | None) -> str:
    """What was fitted for honest confidence, where it was."""
    if not fitted:
        return say("answer.uncalibrated")
    return say("model.temperature", temperature=f"{fitted.temperature:.2f}", count=f"{fitted.held_out_images:,}")


def _preprocessing(described: str) -> str:
    known = words("model.preprocessing_known")
    return spans(known) if described == known.en else html.escape(described)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _data(data: dict[str, Any]) -> str:
    source = html.escape(str(data.get("source", "")))
    if "train_images" not in data:
        return source
    counts = say("model.data_images", train=f"{data['train_images']:,}", test=f"{data.get('test_images') or 0:,}")
    return f"{source}<br>{counts}"


def _curves(history: list[dict[str, Any]]) -> str:
    def lines(name: str) -> list[Series]:
        return [
            Series(words("model.series_train"), "first", [epoch.get(name) for epoch in history]),
            Series(words("model.series_validation"), "second", [epoch.get(f"val_{name}") for epoch in history]),
        ]

    plots = curves(words("model.curve_accuracy"), lines("accuracy")) + curves(words("model.curve_loss"), lines("loss"))
    return f'<div class="plots">{plots}</div>'


def _signatures(signatures: dict[str, SignatureInfo]) -> str:
    def tensors(named: dict[str, Any]) -> str:
        return "<br>".join(
            html.escape(f"{name}: {info.dtype} [{', '.join('n' if d is None else str(d) for d in info.shape)}]")
            for name, info in named.items()
        )

    rows = "".join(
        f'<tr><th scope="row"><code>{html.escape(name)}</code></th><td><code>{tensors(info.inputs)}</code></td>'
        f"<td><code>{tensors(info.outputs)}</code></td></tr>"
        for name, info in signatures.items()
    )
    head = "".join(f'<th scope="col">{say(f"model.{key}")}</th>' for key in ("signature", "inputs", "outputs"))
    return (
        '<div class="wide" tabindex="0" role="region" aria-labelledby="signatures-title">'
        f'<table class="signatures"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
