"""An evaluation in words: tables for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_PICTURES = {
    "confusion_matrix.png": "Answers to 100 images of each class",
    "reliability.png": "Accuracy by confidence",
    "robustness.png": "Accuracy by strength of each disturbance",
    "mistakes.png": "The wrong answers given with most confidence",
}


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """What a terminal shows of a report."""
    names = list(report["per_class"])
    short = {
        "version": report["version"],
        "engine": report["engine"],
        "images": report["images"],
        "accuracy": with_interval(report["accuracy"], report["accuracy_interval"]),
        "top_k": {f"top {k}": percent(share) for k, share in report["top_k"].items()},
        "calibration_error": percent(report["ece"]),
        "accuracy_by_class": {name: percent(entry["accuracy"]) for name, entry in report["per_class"].items()},
        "confusion": dict(zip(names, report["confusion_matrix"], strict=True)),
    }
    if report["in_distribution"]:
        short["in_distribution"] = percent(report["in_distribution"]["share"])
    if views := report["views"]:
        short[f"accuracy_of_{views['views']}_views"] = (
            f"{with_interval(views['accuracy'], views['accuracy_interval'])}, in {views['times_the_single_view']:g} times the processor time"
        )
    if report["robustness"]:
        short["robustness"] = {
            name: ", ".join(f"{strength} {share}" for strength, share in points)
            for name, points in _robustness_points(report)
        }
    return short


def report_as_markdown(report: dict[str, Any], pictures: Sequence[str]) -> str:
    """The report as a page of its own.

    Args:
        report: see `make_report`.
        pictures: names of the PNG files beside it.
    """
    measured = (
        f"Measured {report['created'][:10]} on {report['source']}, through the Predictor that serves it ({report['engine']}, "
        f"{report['threads']} threads, {report['seconds']:g} s), {report['machine']}; {libraries(report['libraries'])}. "
        "Intervals are 95 % (Wilson)."
    )
    sections = [
        f"# {report['name']} version {report['version']} on {report['images']:,} test images",
        measured,
        figures(report),
        *(section for section in (views(report), known(report)) if section),
        "## Classes",
        classes(report),
        picture("confusion_matrix.png", pictures),
        "## Calibration",
        calibration(report),
        picture("reliability.png", pictures),
    ]
    if report["robustness"]:
        sections += ["## Robustness", robustness(report), picture("robustness.png", pictures)]
    sections += ["## Mistakes", mistakes(report), picture("mistakes.png", pictures)]
    return "\n\n".join(section for section in sections if section) + "\n"


def percent(share: float | None) -> str:
    """`66.8 %`, or `none` where there is no figure."""
    return "none" if share is None else f"{share * 100:.1f} %"


def with_interval(share: float | None, interval: Sequence[float] | None) -> str:
    """`66.8 % (65.8 to 67.7 %)`."""
    if interval is None:
        return percent(share)
    return f"{percent(share)} ({interval[0] * 100:.1f} to {interval[1] * 100:.1f} %)"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a class may be called a|b."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def picture(name: str, there: Sequence[str], folder: str = "") -> str:
    """A Markdown picture, or nothing where the report has none."""
    return f"![{_PICTURES[name]}]({folder}{name})" if name in there else ""


def libraries(versions: dict[str, str]) -> str:
    """`python 3.11.7, keras 3.15.1`."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def figures(report: dict[str, Any]) -> str:
    """Accuracy with its interval, top-k, loss and calibration error."""
    rows = [("accuracy", with_interval(report["accuracy"], report["accuracy_interval"]))]
    rows += [(f"among the {k} most probable", percent(share)) for k, share in report["top_k"].items() if k != "1"]
    rows += [("loss", f"{report['loss']:.4f}"), ("calibration error (15 bins)", percent(report["ece"]))]
    return table(["measure", "value"], rows)


def views(report: dict[str, Any]) -> str:
    """What averaging over views gains, and what it costs; empty where it was not measured."""
    if not (views := report["views"]):
        return ""
    return (
        f"**From {views['views']} views** of each image (mirrored, moved by a pixel): "
        f"{with_interval(views['accuracy'], views['accuracy_interval'])}, calibration error {percent(views['ece'])}, "
        f"in {views['times_the_single_view']:g} times the processor time. The service answers from the single view."
    )


def known(report: dict[str, Any]) -> str:
    """What share of the test images the version takes for images of its classes."""
    if not (found := report["in_distribution"]):
        return "**Out of distribution**: this version says nothing about it."
    return (
        f"**In distribution**: it takes {with_interval(found['share'], found['interval'])} of these images for images of its classes. "
        f"Accuracy among them {percent(found['accuracy_inside'])}, among the others {percent(found['accuracy_outside'])}."
    )


def classes(report: dict[str, Any]) -> str:
    """Accuracy of each class, and what it is most often taken for."""
    names = list(report["per_class"])
    return table(
        ["class", "images", "accuracy", "most often taken for"],
        [
            (name, entry["images"], with_interval(entry["accuracy"], entry["interval"]), _taken_for(name, names, row))
            for (name, entry), row in zip(report["per_class"].items(), report["confusion_matrix"], strict=True)
        ],
    )


def _taken_for(name: str, names: Sequence[str], row: Sequence[int]) -> str:
    count, other = max((count, other) for other, count in zip(names, row, strict=True) if other != name)
    return f"{other} ({count / sum(row) * 100:.1f} %)" if count else "none"


def calibration(report: dict[str, Any]) -> str:
    """The filled bins of the reliability diagram."""
    return table(
        ["confidence", "images", "mean confidence", "accuracy"],
        [
            (
                f"{entry['low']:.2f} to {entry['high']:.2f}",
                entry["images"],
                percent(entry["confidence"]),
                percent(entry["accuracy"]),
            )
            for entry in report["reliability"]
            if entry["images"]
        ],
    )


def robustness(report: dict[str, Any]) -> str:
    """Accuracy at each strength."""
    found = report["robustness"]
    undisturbed = found["undisturbed"]
    return (
        f"Of {found['images']:,} of these images (seed {found['seed']}), undisturbed: "
        f"{with_interval(undisturbed['accuracy'], undisturbed['interval'])}, mean confidence {percent(undisturbed['confidence'])}.\n\n"
    ) + table(
        ["disturbance", "strength: accuracy"],
        [
            (
                f"{name}: {found['disturbances'][name]['unit']}",
                ", ".join(f"{strength}: {share}" for strength, share in points),
            )
            for name, points in _robustness_points(report)
        ],
    )


def _robustness_points(report: dict[str, Any]) -> Iterable[tuple[str, list[tuple[str, str]]]]:
    for name, disturbance in report["robustness"]["disturbances"].items():
        yield name, [(f"{point['strength']:g}", percent(point["accuracy"])) for point in disturbance["points"]]


def mistakes(report: dict[str, Any]) -> str:
    """The sentence above the contact sheet."""
    wrong = report["images"] - sum(row[at] for at, row in enumerate(report["confusion_matrix"]))
    if not wrong:
        return "There are none."
    return (
        f"{wrong:,} answers are wrong. The {len(report['mistakes'])} given with most confidence, with what they were:"
    )
