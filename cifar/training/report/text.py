"""The evaluation report as text: a summary for the terminal, `report.md`, and the sections that it shares with the model card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cifar.format import markdown_table, percent, percent_range
from cifar.models.manifest import Quantization

_PICTURES = {
    "confusion_matrix.png": "Predictions for each class, in percent",
    "reliability.png": "Accuracy by confidence",
    "robustness.png": "Accuracy by strength of each disturbance",
    "mistakes.png": "The wrong predictions with the highest confidence",
}
_VIEWS = {2: "plain and mirrored", 6: "plain and mirrored, each also moved by one pixel to two sides"}

_COMPARED_STRENGTHS = {"JPEG": 30, "blur": 1, "noise": 16, "brightness": 0.5, "shift": 4}
"""The strength of each disturbance that is compared with the undisturbed images."""

Report = dict[str, Any]
"""The content of `report.json`; see `make_report`."""


def summary(report: Report) -> dict[str, Any]:
    """Return the figures that the command `evaluate` prints."""
    names = list(report["per_class"])
    shown = {
        "version": report["version"],
        "engine": report["engine"],
        "images": report["images"],
        "accuracy": with_interval(report["accuracy"], report["accuracy_interval"]),
        **({"balanced_accuracy": percent(report["balanced_accuracy"])} if "balanced_accuracy" in report else {}),
        "top_k": {f"top {k}": percent(share) for k, share in report["top_k"].items()},
        "calibration_error": percent(report["ece"]),
        "accuracy_by_class": {name: percent(entry["accuracy"]) for name, entry in report["per_class"].items()},
        "confusion": dict(zip(names, report["confusion_matrix"], strict=True)),
    }
    if report["in_distribution"]:
        shown["in_distribution"] = percent(report["in_distribution"]["share"])
    if views := report["views"]:
        shown[f"accuracy_of_{views['views']}_views"] = (
            f"{with_interval(views['accuracy'], views['accuracy_interval'])}, with {views['times_the_single_view']:g} times the processor time"
        )
    for found in report.get("photographs", []):
        for number, measured in found["views"].items():
            shown[f"photographs_{found['source']}_views_{number}"] = _photographs_summary(found, measured)
    if report["robustness"]:
        shown["robustness"] = {
            name: ", ".join(f"{strength} {share}" for strength, share in points)
            for name, _, points in _robustness_points(report)
        }
    return shown


def report_as_markdown(report: Report, pictures: Sequence[str]) -> str:
    """Return the report as Markdown; `pictures` are the names of the PNG files in the same folder."""
    sections = [
        f"# {report['name']} version {report['version']} on {report['images']:,} test images",
        (
            f"Measured {report['created'][:10]} on {report['source']} with the Predictor that also serves requests ({report['engine']}, "
            f"{report['threads']} threads, {report['seconds']:g} s), {report['machine']}; {libraries(report['libraries'])}. "
            "Intervals are 95 % (Wilson)."
        ),
        figures(report),
        views(report),
        in_distribution(report),
        comparison(report),
        photographs(report),
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


def with_interval(share: float | None, interval: Sequence[float] | None) -> str:
    """Format a share with its interval, such as `66.8 % (65.8 to 67.7 %)`."""
    return percent(share) if interval is None else f"{percent(share)} ({percent_range(*interval)})"


def picture(name: str, pictures: Sequence[str], folder: str = "") -> str:
    """Return a Markdown image, or an empty string if the report has no picture of that name."""
    return f"![{_PICTURES[name]}]({folder}{name})" if name in pictures else ""


def libraries(versions: dict[str, str]) -> str:
    """Format library versions, such as `python 3.11.7, keras 3.15.1`."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def figures(report: Report) -> str:
    """Return a table of accuracy, top-k accuracy, loss and calibration error."""
    rows = [("accuracy", with_interval(report["accuracy"], report["accuracy_interval"]))]
    if "balanced_accuracy" in report:  # older reports have none
        rows.append(("balanced accuracy (mean over the classes)", percent(report["balanced_accuracy"])))
    rows += [(f"top-{k} accuracy", percent(share)) for k, share in report["top_k"].items() if k != "1"]
    rows += [("loss", f"{report['loss']:.4f}"), ("calibration error (15 bins)", percent(report["ece"]))]
    return markdown_table(["measure", "value"], rows)


def comparison(report: Report) -> str:
    """Return a table of the test images, a strength of each disturbance, and the photographs; empty if only the first were measured."""
    found = report["robustness"] or {"images": 0, "disturbances": {}}
    rows = [_compared("test images", report)]
    for name, strength in _COMPARED_STRENGTHS.items():
        points = found["disturbances"].get(name, {}).get("points", [])
        rows += [
            _compared(f"test images, {name} {strength:g}", point | {"images": found["images"]})
            for point in points
            if point["strength"] == strength
        ]
    for folder in report.get("photographs", []):
        for views, measured in folder["views"].items():
            rows.append(_compared(f"photographs: {folder['source']}, views={views}", measured))
    head = ["pictures", "number", "accuracy", "mean over the classes", "calibration error", "in distribution"]
    return markdown_table(head, rows) if len(rows) > 1 else ""


def _compared(name: str, measured: dict[str, Any]) -> tuple[object, ...]:
    accuracy = with_interval(measured["accuracy"], measured.get("accuracy_interval", measured.get("interval")))
    has_balanced = "balanced_interval" in measured
    balanced = with_interval(measured["balanced_accuracy"], measured["balanced_interval"]) if has_balanced else ""
    inside = measured.get("in_distribution")
    shown = with_interval(inside["share"], inside["interval"]) if inside else ""
    error = percent(measured.get("ece"), missing="")
    return name, f"{measured['images']:,}", accuracy, balanced, error, shown


def photographs(report: Report) -> str:
    """Return a table of the grades of the photographs, and of those of none of the classes; empty if none were measured."""
    rows = []
    for folder in report.get("photographs", []):
        for views, measured in folder["views"].items():
            caught = measured["caught"]
            rows.append(
                (
                    f"{folder['source']}, views={views}",
                    _grades(measured["grades"]),
                    folder["others"],
                    _grades(measured["others_grades"]) if folder["others"] else "",
                    "" if caught is None else with_interval(caught["share"], caught["interval"]),
                    "" if caught is None else with_decimals(measured["auroc"], measured["auroc_interval"]),
                    f"{measured['milliseconds']:g} ms",
                )
            )
    head = [
        "photographs",
        "grades: class / unsure / none",
        "others",
        "their grades",
        "others caught",
        "AUROC",
        "processor time",
    ]
    if not rows:
        return ""
    return (
        "Photographs are decoded as the server decodes uploads. *Others* show none of the classes; they are *caught* if they are not in distribution. AUROC: of "
        f"the out-of-distribution score, classes against others (95 % bootstrap interval). Processor time includes decoding.\n\n{markdown_table(head, rows)}"
    )


def _grades(grades: dict[str, Any]) -> str:
    return " / ".join(percent(grade["share"]) for grade in grades.values())


def _photographs_summary(folder: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    shown = {
        "images": f"{folder['images']} of classes, {folder['others']} others, {folder['unreadable']} unreadable",
        "accuracy": with_interval(measured["accuracy"], measured["accuracy_interval"]),
        "balanced_accuracy": with_interval(measured["balanced_accuracy"], measured["balanced_interval"]),
        "calibration_error": percent(measured["ece"]),
    }
    shown |= {f"graded_{grade}": percent(found["share"]) for grade, found in measured["grades"].items()}
    if caught := measured["caught"]:
        shown["auroc"] = with_decimals(measured["auroc"], measured["auroc_interval"])
        shown["others_caught"] = with_interval(caught["share"], caught["interval"])
        shown |= {
            f"others_graded_{grade}": percent(found["share"]) for grade, found in measured["others_grades"].items()
        }
    return shown


def with_decimals(value: float, interval: Sequence[float]) -> str:
    """Format a value in [0, 1] with its interval, such as `0.807 (0.743 to 0.862)`."""
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def views(report: Report) -> str:
    """Describe the gain and the cost of test-time augmentation, or return an empty string if it was not measured."""
    if not (measured := report["views"]):
        return ""
    return (
        f"**Test-time augmentation**, the mean of {measured['views']} views ({_VIEWS[measured['views']]}): "
        f"{with_interval(measured['accuracy'], measured['accuracy_interval'])}, calibration error {percent(measured['ece'])}, "
        f"with {measured['times_the_single_view']:g} times the processor time. The APIs use a single view unless a request says otherwise (`views={measured['views']}`)."
    )


def in_distribution(report: Report) -> str:
    """Describe which share of the test images is in distribution."""
    if not (found := report["in_distribution"]):
        return "**Out of distribution**: this version has no out-of-distribution score."
    return (
        f"**In distribution**: {with_interval(found['share'], found['interval'])} of these images, all of which show one of the classes, "
        f"count as in distribution. Accuracy: {percent(found['accuracy_inside'])} on those, {percent(found['accuracy_outside'])} on the others."
    )


def classes(report: Report) -> str:
    """Return a table of each class's accuracy and most frequent wrong prediction."""
    names = list(report["per_class"])
    rows = [
        (name, entry["images"], with_interval(entry["accuracy"], entry["interval"]), _mistaken_for(name, names, row))
        for (name, entry), row in zip(report["per_class"].items(), report["confusion_matrix"], strict=True)
    ]
    return markdown_table(["class", "images", "accuracy", "most often mistaken for"], rows)


def _mistaken_for(name: str, names: Sequence[str], row: Sequence[int]) -> str:
    count, other = max((count, other) for other, count in zip(names, row, strict=True) if other != name)
    return f"{other} ({percent(count / sum(row))})" if count else "none"


def calibration(report: Report) -> str:
    """Return a table of the bins of the reliability diagram that are not empty."""
    rows = [
        (f"{one['low']:.2f} to {one['high']:.2f}", one["images"], percent(one["confidence"]), percent(one["accuracy"]))
        for one in report["reliability"]
        if one["images"]
    ]
    return markdown_table(["confidence", "images", "mean confidence", "accuracy"], rows)


def precision(quantization: Quantization | None) -> str:
    """Return the differences between the int8 and the float32 LiteRT file as a table; empty if nothing was compared."""
    if quantization is None or not quantization.figures:
        return ""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    rows = [
        (name.replace("_", " "), shown(figure.float32), shown(figure.int8), shown(figure.difference), figure.bound)
        for name, figure in quantization.figures.items()
    ]
    table = markdown_table(["figure", "float32", "int8", "difference", "bound"], rows)
    return f"Compared on {quantization.images:,} images ({quantization.source}):\n\n{table}"


def robustness(report: Report) -> str:
    """Return accuracy and calibration error on undisturbed images, and a table of both at each strength of each disturbance."""
    found = report["robustness"]
    undisturbed = found["undisturbed"]
    rows = [
        (f"{name}: {unit}", ", ".join(f"{strength}: {share}" for strength, share in points))
        for name, unit, points in _robustness_points(report)
    ]
    table = markdown_table(["disturbance", "strength: accuracy / calibration error"], rows)
    return (
        f"On {found['images']:,} of these images (seed {found['seed']}). Undisturbed: "
        f"{with_interval(undisturbed['accuracy'], undisturbed['interval'])}, mean confidence {percent(undisturbed['confidence'])}, "
        f"calibration error {percent(undisturbed['ece'])}.\n\n{table}"
    )


def _robustness_points(report: Report) -> Iterable[tuple[str, str, list[tuple[str, str]]]]:
    """Yield the name and the unit of each disturbance, with pairs of strength and result."""
    for name, found in report["robustness"]["disturbances"].items():
        shares = [f"{percent(each['accuracy'])} / {percent(each['ece'])}" for each in found["points"]]
        strengths = [f"{each['strength']:g}" for each in found["points"]]
        yield name, found["unit"], list(zip(strengths, shares, strict=True))


def mistakes(report: Report) -> str:
    """Return the text above the picture of the mistakes."""
    wrong = report["images"] - sum(row[number] for number, row in enumerate(report["confusion_matrix"]))
    if not wrong:
        return "No prediction is wrong."
    return f"{wrong:,} predictions are wrong. The {len(report['mistakes'])} with the highest confidence, with the true class:"
