"""Plots as SVG, and tables as HTML. `page.css` sets their colours, so that they follow the light and the dark theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cifar.format import percent
from cifar.serving.page.texts import Text, as_html, class_name, html_text, text

_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 10, 40
"""Margins around the plot area, in SVG units."""
_NO_TITLE = Text("", "")


class Series(NamedTuple):
    """One line of a plot."""

    name: Text
    style: str
    """Its CSS class."""
    values: Sequence[float | None]
    """Its values; None where there is no measurement."""


def class_bars(per_class: dict[str, Any]) -> str:
    """Return a bar for the accuracy of each class, with its interval as a whisker."""
    rows = []
    for name, measured in per_class.items():
        low, high = measured["interval"]
        rows.append(
            f'<li style="--share:{measured["accuracy"]:.4f};--low:{low:.4f};--high:{high:.4f}">'
            f'<span class="name">{as_html(class_name(name))}</span>'
            f'<span class="score">{percent(measured["accuracy"])}</span><span class="track whisker"></span></li>'
        )
    return f'<ol class="bars">{"".join(rows)}</ol>'


def wide_table(name: str, columns: Iterable[str], rows: Iterable[str], *, corner: str = "") -> str:
    """Return a table that scrolls sideways within itself. The heading above it has the id `NAME-title`.

    `columns` are the contents of the header cells, `corner` the cell in front of them, and `rows` the `<tr>` elements of the body.
    """
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-labelledby="{name}-title"><table class="{name}">'
        f"<thead><tr>{corner}{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def confusion_table(matrix: list[list[int]], class_names: list[str]) -> str:
    """Return the confusion matrix as a table whose cells are shaded by their share of the row."""
    rows = []
    for truth, (name, counts) in enumerate(zip(class_names, matrix, strict=True)):
        total = max(1, sum(counts))
        cells = "".join(
            f'<td class="{"right" if predicted == truth else "wrong"}" style="--share:{count / total:.3f}">'
            f"{_whole_percent(count / total)}</td>"
            for predicted, count in enumerate(counts)
        )
        rows.append(f'<tr><th scope="row">{as_html(class_name(name))}</th>{cells}</tr>')
    columns = (f"<span>{as_html(class_name(name))}</span>" for name in class_names)
    return wide_table("confusion", columns, rows, corner=f"<td>{html_text('model.confusion_corner')}</td>")


def _whole_percent(share: float) -> str:
    return f"{share * 100:.0f}" if share >= 0.005 else ""


def reliability_diagram(bins: list[dict[str, Any]]) -> str:
    """Plot accuracy against confidence; the area of a dot is proportional to its number of images."""
    largest = max((measured["images"] for measured in bins), default=0) or 1
    dots = []
    for measured in bins:
        if not measured["images"]:
            continue
        title = text(
            "model.bin",
            low=f"{measured['low']:.2f}",
            high=f"{measured['high']:.2f}",
            images=measured["images"],
            accuracy=percent(measured["accuracy"]),
        )
        radius = 3 + 8 * (measured["images"] / largest) ** 0.5
        dots.append(
            f'<circle cx="{_x(measured["confidence"]):.1f}" cy="{_y(measured["accuracy"]):.1f}" r="{radius:.1f}">{_title(title)}</circle>'
        )
    diagonal = f'<line class="diagonal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>'
    return _svg(
        _grid(_ticks(0, 1), [f"{value:.1f}" for value in (0, 0.5, 1)])
        + diagonal
        + f'<g class="dots">{"".join(dots)}</g>',
        x_title=text("model.axis_confidence"),
        y_title=text("model.axis_accuracy"),
        title=text("model.reliability"),
    )


def curves(title: Text, series: list[Series]) -> str:
    """Plot lines over the epochs, with a legend. A single epoch is a dot. Values that are not finite are left out."""
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
        if len(points) == 1:  # a line through one point is invisible
            return f'<circle class="{line.style}" cx="{points[0][0]}" cy="{points[0][1]}" r="5"/>'
        return f'<polyline class="{line.style}" points="{" ".join(map(",".join, points))}"/>'

    legend = "".join(
        f'<li class="{line.style}">{as_html(line.name)}</li>'
        for line in series
        if any(v is not None for v in line.values)
    )
    svg = _svg(
        _grid(ticks, ["1", "", str(epochs)] if epochs > 1 else ["", "1", ""]) + "".join(map(drawn, series)),
        x_title=text("model.epoch"),
        y_title=_NO_TITLE,
        title=title,
    )
    return (
        f'<figure class="plot"><figcaption>{as_html(title)}</figcaption>{svg}<ul class="legend">{legend}</ul></figure>'
    )


def interval_plot(title: Text, x_title: Text, looks: Sequence[tuple[int, float, float, float]]) -> str:
    """Plot a value and its interval against a count: `looks` are `(count, value, low, high)`, by ascending count.

    The scale follows the later three quarters. The intervals of the first quarter are the widest and may be cut off.
    """
    later = looks[len(looks) // 4 :]
    ticks = _ticks(min(0.0, *(look[2] for look in later)), max(0.0, *(look[3] for look in later)))
    low, high = ticks[0], ticks[-1]
    first, last = looks[0][0], looks[-1][0]

    def point(count: int, value: float) -> str:
        share = (min(high, max(low, value)) - low) / (high - low)
        return f"{_x((count - first) / max(1, last - first)):.1f},{_y(share):.1f}"

    edge = [point(look[0], look[3]) for look in looks] + [point(look[0], look[2]) for look in reversed(looks)]
    middle = " ".join(point(look[0], look[1]) for look in looks)
    zero = _y(-low / (high - low))
    svg = _svg(
        _grid(ticks, [f"{first:,}", f"{last:,}"])
        + f'<polygon class="band" points="{" ".join(edge)}"/><polyline class="first" points="{middle}"/>'
        + f'<line class="diagonal" x1="{_x(0)}" y1="{zero:.1f}" x2="{_x(1)}" y2="{zero:.1f}"/>',
        x_title=x_title,
        y_title=_NO_TITLE,
        title=title,
    )
    return f'<figure class="plot"><figcaption>{as_html(title)}</figcaption>{svg}</figure>'


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _ticks(low: float, high: float) -> list[float]:
    """Return two to six evenly spaced round numbers that enclose `low` and `high`."""
    smallest = (high - low or 1) / 4
    power = 10.0 ** math.floor(math.log10(smallest))
    step = next(times * power for times in (1, 2, 2.5, 5, 10) if times * power > smallest * 0.999)
    last = math.ceil(high / step - 0.001)
    return [step * at for at in range(min(last - 1, math.floor(low / step + 0.001)), last + 1)]


def _grid(y_ticks: list[float], x_labels: list[str]) -> str:
    """Return horizontal grid lines with their values, and labels evenly spaced under the horizontal axis."""
    low, high = y_ticks[0], y_ticks[-1]
    digits = len(f"{y_ticks[1] - low:.9f}".rstrip("0").partition(".")[2])
    lines = ""
    for value in y_ticks:
        y = _y((value - low) / (high - low))
        lines += (
            f'<line class="grid" x1="{_x(0)}" y1="{y:.1f}" x2="{_x(1)}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.{digits}f}</text>'
        )
    labels = "".join(
        f'<text x="{_x(at / max(1, len(x_labels) - 1)):.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{label}</text>'
        for at, label in enumerate(x_labels)
    )
    return lines + labels


def _svg(content: str, *, x_title: Text, y_title: Text, title: Text) -> str:
    below = f'x="{(_x(0) + _x(1)) / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle"'
    beside = f'transform="translate(13 {_y(0.5):.0f}) rotate(-90)" text-anchor="middle"'
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{_title(title)}{content}'
        f"{_svg_text(x_title, below)}{_svg_text(y_title, beside)}</svg>"
    )


def _svg_text(both: Text, attributes: str) -> str:
    return "".join(f'<text class="{field}" {attributes}>{value}</text>' for field, value in both._asdict().items())


def _title(both: Text) -> str:
    """Return the name that screen readers and tooltips use. Browsers use only the first title, so it contains both languages."""
    return f"<title>{both.en} · {both.zh}</title>"
