"""One answer as HTML: a sentence, bars, and what the model saw."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image

from cifar.models.manifest import Manifest
from cifar.models.predictor import Prediction
from cifar.records.tables import NONE, feedback_labels
from cifar.serving.inference.classify import Classification
from cifar.serving.page.texts import Words, class_name, joined, say, spans, with_article, words

_TIERS = ((0.9, "answer.certain"), (0.6, "answer.probable"), (0.35, "answer.perhaps"), (0.0, "answer.unsure"))
_POSSIBLE = 0.1
"""From this score on a second class is worth a word."""
_MOST_POSSIBLE = 2
_CALIBRATION_IMAGES = 200
"""Fitted on fewer, confidence may be off by chance: of 200 answers, a share right has a standard error of up to 3.5 %."""
_CALIBRATION_ERROR = 0.05
"""With a larger measured error (ECE), of answers called almost certain (from 0.9 on) not one in ten is wrong but more than one in seven."""


def sentence(prediction: Prediction) -> Words:
    """The answer in words, such as "Probably a cat; a dog is possible"."""
    if prediction.in_distribution is False:
        return words("answer.none")
    ranked = sorted(prediction.class_scores.items(), key=lambda item: -item[1])
    first, score = ranked[0]
    opening = words(next(key for least, key in _TIERS if score >= least), first=with_article(first))
    others = [with_article(name) for name, share in ranked[1 : 1 + _MOST_POSSIBLE] if share >= _POSSIBLE]
    either = words("answer.or")
    possible = words("answer.possible", others=joined(others, en=either.en, zh=either.zh)) if others else Words("", "")
    return joined([opening, possible, words("answer.stop")], en="", zh="")


def answer_html(answer: Classification, *, manifest: Manifest, explains: bool, request_id: str | None = None) -> str:
    """What a person sees of an answer.

    Args:
        answer: the classification.
        manifest: of the version that answered, for what is known of its confidence.
        explains: whether each bar asks "Why?".
        request_id: of the answer, where the page asks whether it is right.
    """
    prediction = answer.prediction
    none = prediction.in_distribution is False
    warning = f'<p class="none">{say("answer.none_why", count=len(prediction.class_scores))}</p>' if none else ""
    bars = "".join(_bar(name, score, explains=explains) for name, score in prediction.top_k)
    return (
        f'<div class="answer{" doubtful" if none else ""}" data-label="{html.escape(prediction.top_k[0][0])}">'
        f"<h2>{spans(sentence(prediction))}</h2>{warning}"
        f'<ol class="bars">{bars}</ol>{_asks(prediction, request_id) if request_id else ""}'
        f"{_seen(answer, manifest)}</div>"
    )


def _asks(prediction: Prediction, request_id: str) -> str:
    """Whether it is right, and if not, what is: `feedback.js` sends what is pressed."""
    none = prediction.in_distribution is False
    said = NONE if none else prediction.top_k[0][0]
    others = [name for name in feedback_labels(prediction.class_scores) if name != said]
    choices = "".join(
        _choice(name, spans(words("feedback.none") if name == NONE else class_name(name))) for name in others
    )
    return (
        f'<div class="feedback" data-request="{html.escape(request_id)}"><div role="group">{say("feedback.ask_none" if none else "feedback.ask")} '
        f"{_choice(said, say('feedback.right'))}"
        f'<button type="button" class="plain" aria-expanded="false">{say("feedback.wrong")}</button></div>'
        f'<div class="choices" role="group" hidden>{choices}</div><p role="status"></p></div>'
    )


def _choice(label: str, shown: str) -> str:
    return f'<button type="button" class="plain" data-right="{html.escape(label)}">{shown}</button>'


def _bar(name: str, score: float, *, explains: bool) -> str:
    shown = class_name(name)
    why = f'<button type="button" data-why="{html.escape(name)}">{say("why", name=shown)}</button>' if explains else ""
    return (
        f'<li style="--share:{score:.4f}"><span class="name">{spans(shown)}</span>{why}'
        f'<span class="score">{percent(score)}</span><span class="track"></span></li>'
    )


def _seen(answer: Classification, manifest: Manifest) -> str:
    height, width = answer.seen.shape[:2]
    took = say("answer.kept") if answer.inference_ms is None else say("answer.took", ms=f"{answer.inference_ms:.1f}")
    lines = [
        say("answer.seen", size=f"{width} x {height}"),
        say("answer.version", name=answer.model_name, number=answer.version),
        took,
        *_calibration(manifest),
    ]
    if answer.prediction.in_distribution is None:
        lines.append(say("answer.cannot_tell"))
    return (
        f'<figure class="seen"><img src="{data_url(answer.seen)}" alt="">'
        f"<figcaption>{'<br>'.join(lines)}</figcaption></figure>"
    )


def _calibration(manifest: Manifest) -> list[str]:
    """That confidence is calibrated, or what speaks against it."""
    if not manifest.confidence:
        return [say("answer.uncalibrated")]
    images, measured = manifest.confidence.held_out_images, manifest.metrics.get("test") or {}
    doubts = [say("answer.hardly_calibrated", count=images)] if images < _CALIBRATION_IMAGES else []
    if (error := measured.get("ece") or 0) > _CALIBRATION_ERROR:
        doubts.append(say("answer.miscalibrated", error=percent(error), count=f"{measured['images']:,}"))
    return doubts or [say("answer.calibrated")]


def percent(share: float) -> str:
    """A share as people write it; what is not quite everything never looks like it."""
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{share * 100:.1f} %"


def problem_html(problem: Words) -> str:
    """An error in place."""
    return f'<p class="problem" role="alert">{spans(problem)}</p>'


def data_url(pixels: np.ndarray) -> str:
    """`(height, width[, channels])` `uint8` as an inline PNG, so that no file is left behind."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
