"""Plots as SVG and HTML that take their colours from the page's CSS, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from cifar.serving.page.answer import percent
from cifar.serving.page.texts import Words, class_name, say, spans, words

_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 10, 40


class Series(NamedTuple):
    """A line: what it is, its CSS class, and its points; None where nothing was measured."""

    name: Words
    style: str
    values: Sequence[float | None]


def class_bars(per_class: dict[str, Any]) -> str:
    """Accuracy of each class as a bar, with the interval as a whisker."""
    rows = []
    for name, measured in per_class.items():
        low, high = measured["interval"]
        rows.append(
            f'<li style="--share:{measured["accuracy"]:.4f};--low:{low:.4f};--high:{high:.4f}">'
            f'<span class="name">{spans(class_name(name))}</span>'
            f'<span class="score">{percent(measured["accuracy"])}</span><span class="track whisker"></span></li>'
        )
    return f'<ol class="bars">{"".join(rows)}</ol>'


def confusion_table(matrix: list[list[int]], class_names: list[str]) -> str:
    """Shares of each true class, as a table whose cells are shaded."""
    head = "".join(f'<th scope="col"><span>{spans(class_name(name))}</span></th>' for name in class_names)
    rows = []
    for truth, (name, counts) in enumerate(zip(class_names, matrix, strict=True)):
        total = max(1, sum(counts))
        cells = "".join(
            f'<td class="{"right" if said == truth else "wrong"}" style="--share:{count / total:.3f}">{_whole(count / total)}</td>'
            for said, count in enumerate(counts)
        )
        rows.append(f'<tr><th scope="row">{spans(class_name(name))}</th>{cells}</tr>')
    return (
        '<div class="wide" tabindex="0" role="region" aria-labelledby="confusion-title"><table class="confusion">'
        f"<thead><tr><td>{say('model.confusion_corner')}</td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _whole(share: float) -> str:
    return f"{share * 100:.0f}" if share >= 0.005 else ""


def reliability_diagram(bins: list[dict[str, Any]]) -> str:
    """Share of right answers against confidence; the area of a dot is the number of images."""
    most = max((measured["images"] for measured in bins), default=0) or 1
    dots = []
    for measured in bins:
        if not measured["images"]:
            continue
        told = words(
            "model.bin",
            low=f"{measured['low']:.2f}",
            high=f"{measured['high']:.2f}",
            images=measured["images"],
            accuracy=percent(measured["accuracy"]),
        )
        radius = 3 + 8 * (measured["images"] / most) ** 0.5
        dots.append(
            f'<circle cx="{_x(measured["confidence"]):.1f}" cy="{_y(measured["accuracy"]):.1f}" r="{radius:.1f}">{_titles(told)}</circle>'
        )
    diagonal = f'<line class="diagonal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>'
    return _svg(
        _grid(_ticks(0, 1), [f"{value:.1f}" for value in (0, 0.5, 1)])
        + diagonal
        + f'<g class="dots">{"".join(dots)}</g>',
        across=words("model.axis_confidence"),
        upwards=words("model.axis_accuracy"),
        title=words("model.reliability"),
    )


def curves(title: Words, series: list[Series]) -> str:
    """Lines over the epochs, and what each is; of one epoch, dots. What is not finite counts as not measured."""
    series = [
        line._replace(values=[v if v is not None and math.isfinite(v) else None for v in line.values])
        for line in series
    ]
    known = [value for line in series for value in line.values if value is not None]
    if not known:
        return ""
    ticks = _ticks(min(known), max(known))
    low, high = ticks[0], ticks[-1]
    epochs = max(len(line.values) for line in series)

    def drawn(line: Series) -> str:
        points = [
            (f"{_x(at / (epochs - 1) if epochs > 1 else 0.5):.1f}", f"{_y((value - low) / (high - low)):.1f}")
            for at, value in enumerate(line.values)
            if value is not None
        ]
        if len(points) == 1:  # a line would not be seen
            return f'<circle class="{line.style}" cx="{points[0][0]}" cy="{points[0][1]}" r="5"/>'
        return f'<polyline class="{line.style}" points="{" ".join(map(",".join, points))}"/>'

    lines = "".join(map(drawn, series))
    legend = "".join(
        f'<li class="{line.style}">{spans(line.name)}</li>'
        for line in series
        if any(v is not None for v in line.values)
    )
    return (
        f'<figure class="plot"><figcaption>{spans(title)}</figcaption>'
        + _svg(
            _grid(ticks, ["1", "", str(epochs)] if epochs > 1 else ["", "1", ""]) + lines,
            across=words("model.epoch"),
            upwards=Words("", ""),
            title=title,
        )
        + f'<ul class="legend">{legend}</ul></figure>'
    )


def band(title: Words, across: Words, looks: Sequence[tuple[int, float, float, float]]) -> str:
    """A value and its interval over a count: `(count, value, low, high)`. The first, widest quarter may be cut off."""
    settled = looks[len(looks) // 4 :]
    ticks = _ticks(min(0.0, *(look[2] for look in settled)), max(0.0, *(look[3] for look in settled)))
    low, high = ticks[0], ticks[-1]
    first, last = looks[0][0], looks[-1][0]

    def point(count: int, value: float) -> str:
        share = (min(high, max(low, value)) - low) / (high - low)
        return f"{_x((count - first) / max(1, last - first)):.1f},{_y(share):.1f}"

    edge = [point(look[0], look[3]) for look in looks] + [point(look[0], look[2]) for look in reversed(looks)]
    middle = " ".join(point(look[0], look[1]) for look in looks)
    zero = _y(-low / (high - low))
    return (
        f'<figure class="plot"><figcaption>{spans(title)}</figcaption>'
        + _svg(
            _grid(ticks, [f"{first:,}", f"{last:,}"])
            + f'<polygon class="band" points="{" ".join(edge)}"/><polyline class="first" points="{middle}"/>'
            + f'<line class="diagonal" x1="{_x(0)}" y1="{zero:.1f}" x2="{_x(1)}" y2="{zero:.1f}"/>',
            across=across,
            upwards=Words("", ""),
            title=title,
        )
        + "</figure>"
    )


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers, evenly from at most `low` to at least `high`."""
    least = (high - low or 1) / 4
    power = 10.0 ** math.floor(math.log10(least))
    step = next(times * power for times in (1, 2, 2.5, 5, 10) if times * power > least * 0.999)
    last = math.ceil(high / step - 0.001)
    return [step * at for at in range(min(last - 1, math.floor(low / step + 0.001)), last + 1)]


def _grid(upwards: list[float], across: list[str]) -> str:
    """Lines with their values, and words under the axis."""
    low, high = upwards[0], upwards[-1]
    digits = len(f"{upwards[1] - low:.9f}".rstrip("0").partition(".")[2])
    lines = ""
    for value in upwards:
        y = _y((value - low) / (high - low))
        lines += (
            f'<line class="grid" x1="{_x(0)}" y1="{y:.1f}" x2="{_x(1)}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.{digits}f}</text>'
        )
    ticks = "".join(
        f'<text x="{_x(at / max(1, len(across) - 1)):.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{text}</text>'
        for at, text in enumerate(across)
    )
    return lines + ticks


def _svg(content: str, *, across: Words, upwards: Words, title: Words) -> str:
    middle = f'x="{(_x(0) + _x(1)) / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle"'
    turned = f'transform="translate(13 {_y(0.5):.0f}) rotate(-90)" text-anchor="middle"'
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{_titles(title)}{content}'
        f"{_both(across, middle)}{_both(upwards, turned)}</svg>"
    )


def _both(text: Words, place: str) -> str:
    return "".join(f'<text class="{field}" {place}>{said}</text>' for field, said in text._asdict().items())


def _titles(text: Words) -> str:
    """A name for screen readers and the mouse: SVG shows the first title, so both languages share it."""
    return f"<title>{text.en} · {text.zh}</title>"
