"""An answer as HTML: a sentence, a bar for each label, buttons for feedback, and the image that the model received."""

from __future__ import annotations

import html

from cifar.format import data_url, percent, png
from cifar.models.grades import CERTAIN, Grade
from cifar.models.manifest import Manifest
from cifar.models.predictor import Prediction
from cifar.records.values import NONE_LABEL, feedback_labels
from cifar.serving.gradio.calls import as_cifar_error
from cifar.serving.inference.classify import Classification
from cifar.serving.page.texts import (
    Text,
    as_html,
    class_name,
    error_text,
    html_text,
    join,
    share_range,
    text,
    with_article,
)

_POSSIBLE_SCORE = 0.1
"""The sentence also names other classes whose score is at least this high."""
_MAX_POSSIBLE = 2
_SHOWN_SCORE = 0.5
"""The sentence for a multi-label version names the classes with at least this probability."""
_CALIBRATION_IMAGES = 200
"""If confidence was fitted on fewer images, the page says so. On 200 images, a share has a standard error of up to 3.5 %."""
_CALIBRATION_ERROR = 0.05
"""If the measured error (ECE) is larger, the page says so. Of answers with confidence 0.9, more than 15 % are then wrong, not 10 %."""
_VIEWS = {2: "answer.views_2", 6: "answer.views_6"}


def headline(prediction: Prediction) -> Text:
    """Return the answer as a sentence, such as "Probably a cat; a dog is possible."."""
    grade = prediction.grade
    if grade == "none":
        return text("answer.none")
    ranked = sorted(prediction.class_scores.items(), key=lambda item: -item[1])
    if prediction.multi_label:
        shown = [class_name(name) for name, share in ranked if share >= _SHOWN_SCORE]
        return (
            text("answer.shows", names=join(shown))
            if shown
            else text("answer.shows_none", first=class_name(ranked[0][0]))
        )
    first, score = ranked[0]
    beginning = "answer.unsure" if grade == "unsure" else "answer.certain" if score >= CERTAIN else "answer.probable"
    opening = text(beginning, first=with_article(first))
    others = [with_article(name) for name, share in ranked[1 : 1 + _MAX_POSSIBLE] if share >= _POSSIBLE_SCORE]
    either = text("answer.or")
    possible = text("answer.possible", others=join(others, en=either.en, zh=either.zh)) if others else Text("", "")
    return join([opening, possible, text("answer.stop")], en="", zh="")


def answer_html(answer: Classification, *, manifest: Manifest, explains: bool, request_id: str | None = None) -> str:
    """Return an answer as HTML. The version's manifest tells how confidence was calibrated.

    If it `explains`, each bar has a button "Why?". With a `request_id`, it asks whether the answer is right.
    """
    prediction = answer.prediction
    # A multi-label version has no single right label to ask for.
    feedback = _feedback(answer, request_id) if request_id and not prediction.multi_label else ""
    bars = "".join(_bar(name, score, explains=explains) for name, score in prediction.top_k)
    return (
        f'<div class="answer" data-grade="{prediction.grade}" data-label="{html.escape(prediction.top_k[0][0])}">'
        f"<h2>{as_html(headline(prediction))}</h2>{_warning(answer)}"
        f'<ol class="bars">{bars}</ol>{feedback}'
        f"{_seen(answer, manifest)}</div>"
    )


def _warning(answer: Classification) -> str:
    """Return why the answer is unsure or none of the classes, and what the person can do about it."""
    prediction = answer.prediction
    if prediction.grade == "class" or (prediction.multi_label and prediction.grade == "unsure"):
        return ""
    if prediction.grade == "none":
        reason = text("answer.none_why", count=len(prediction.class_scores))
    else:
        reason = text("answer.unlike_why" if prediction.in_distribution is False else "answer.unclear_why")
    return f'<p class="doubt">{as_html(join([reason, _advice(answer)], en=" ", zh=""))}</p>'


def _advice(answer: Classification) -> Text:
    return text("answer.advice", size=_size(answer))


def _size(answer: Classification) -> str:
    height, width = answer.seen.shape[:2]
    return f"{width} x {height}"


def _feedback(answer: Classification, request_id: str) -> str:
    """Return the question whether the answer is right, with a button for each label; `feedback.js` sends the chosen one."""
    prediction = answer.prediction
    none = prediction.grade == "none"
    advice = f"<small>{as_html(_advice(answer))}</small>" if prediction.grade == "class" else ""
    answered = NONE_LABEL if none else prediction.top_k[0][0]
    others = [name for name in feedback_labels(prediction.class_scores) if name != answered]
    choices = "".join(
        _feedback_button(name, html_text("feedback.none") if name == NONE_LABEL else as_html(class_name(name)))
        for name in others
    )
    return (
        f'<div class="feedback" data-request="{html.escape(request_id)}">'
        f'<div role="group">{html_text("feedback.ask_none" if none else "feedback.ask")} '
        f"{_feedback_button(answered, html_text('feedback.right'))}"
        f'<button type="button" class="plain" aria-expanded="false">{html_text("feedback.wrong")}</button></div>'
        f'<div class="choices" role="group" hidden>{choices}{advice}</div><p role="status"></p></div>'
    )


def _feedback_button(label: str, title: str) -> str:
    return f'<button type="button" class="plain" data-right="{html.escape(label)}">{title}</button>'


def _bar(name: str, score: float, *, explains: bool) -> str:
    title = class_name(name)
    why = (
        f'<button type="button" data-why="{html.escape(name)}">{html_text("why.title", name=title)}</button>'
        if explains
        else ""
    )
    return (
        f'<li style="--share:{score:.4f}"><span class="name">{as_html(title)}</span>{why}'
        f'<span class="score">{percent(score)}</span><span class="track"></span></li>'
    )


def _seen(answer: Classification, manifest: Manifest) -> str:
    """Return the image that the model received, and facts about the version and its confidence."""
    lines = [
        html_text("answer.seen", size=_size(answer)),
        html_text("answer.version", name=answer.model_name, number=answer.version),
        *([html_text(views)] if (views := _VIEWS.get(len(answer.inputs))) else []),
        *([html_text("answer.multi_label")] if manifest.is_multi_label else []),
        *_calibration(manifest, answer.prediction.grade),
    ]
    if answer.prediction.in_distribution is None:
        lines.append(html_text("answer.cannot_tell"))
    return (
        f'<figure class="seen"><img src="{data_url(png(answer.seen))}" alt="">'
        f"<figcaption>{'<br>'.join(lines)}</figcaption></figure>"
    )


def _calibration(manifest: Manifest, grade: Grade) -> list[str]:
    """Return the reasons to doubt the confidence. Without any, return for the grade `class` the sentence that it is calibrated."""
    if not manifest.confidence:
        return [html_text("answer.uncalibrated")]
    images, measured = manifest.confidence.held_out_images, manifest.metrics.get("test") or {}
    doubts = [html_text("answer.hardly_calibrated", count=images)] if images < _CALIBRATION_IMAGES else []
    if (error := measured.get("ece") or 0) > _CALIBRATION_ERROR:
        doubts.append(html_text("answer.miscalibrated", error=f"{error * 100:.1f}", count=f"{measured['images']:,}"))
    if doubts or grade != "class":
        return doubts
    photographs = manifest.metrics.get("photographs")
    error = share_range([folder["ece"] for folder in photographs]) if photographs else None
    return [html_text("answer.calibrated"), *([html_text("answer.photographs", error=error)] if error else [])]


def error_html(error: Exception) -> str:
    """Return the message of an error as HTML. An unexpected error is logged, and the page shows a general message."""
    return f'<p class="problem" role="alert">{as_html(error_text(as_cifar_error(error)))}</p>'
