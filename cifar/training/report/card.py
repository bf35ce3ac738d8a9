"""The model card of a version, from its manifest and the report of its evaluation. The text is in `card.md.j2`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from jinja2 import Environment, FileSystemLoader

from cifar.errors import DataError
from cifar.files import replacing
from cifar.format import markdown_table, percent
from cifar.models.manifest import Manifest
from cifar.models.registry import MANIFEST, Registry, Version
from cifar.settings import Settings
from cifar.training.report import text
from cifar.training.report.photographs import figures_of_the_page
from cifar.training.report.report import read_report

PICTURES = "docs/model_card"
"""Folder of the card's pictures, relative to the folder of the card."""
_WORST_CLASSES = 3


def write_card(
    report_folder: Path, settings: Settings, out: Path, notes: Path | None, *, license_id: str = "unknown"
) -> Path:
    """Write the model card of the version that a report (`evaluate --out`) describes, and return its path.

    An existing card is replaced, and the report's pictures are copied to `docs/model_card` beside it. `notes` is a Markdown file
    to insert; the licence is named as in Hugging Face's model cards, such as `mit`. If the report has photographs, the version's
    manifest gets their figures, which the page shows.

    Raises:
        DataError: there is no report, its version number was exported again since, or the notes cannot be read.
        VersionNotFound: the registry no longer holds the version.
    """
    report = read_report(report_folder)
    version = Registry(settings.registry, report["name"]).get(report["version"])
    manifest = version.manifest
    if report["exported"] != manifest.created:
        raise DataError(
            f"{report_folder} describes a version {manifest.version} that was exported {report['exported']}, but the one in the registry "
            f"was exported {manifest.created}. Repeat: python -m cifar evaluate --version {manifest.version} --data SOURCE --out DIR"
        )
    pictures = sorted(report_folder.glob("*.png"))
    try:
        notes_text = notes.read_text(encoding="utf-8") if notes else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{notes} cannot be read: {error}.") from error
    names = [picture.name for picture in pictures]
    repeat = commands(manifest, report, out, notes, license_id=license_id)
    content = card(manifest, report, names, notes_text, repeat, license_id=license_id)
    folder = out.parent / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        shutil.copyfile(picture, folder / picture.name)
    with replacing(out) as temporary:
        temporary.write_text(content, encoding="utf-8")
    _record_photographs(version, report)
    return out


def _record_photographs(version: Version, report: dict[str, Any]) -> None:
    """Write the figures of the report's photographs into the version's manifest, for the number of views that the page takes."""
    if measured := report.get("photographs"):
        shown = [figures_of_the_page(each, version.manifest.gains_from_views) for each in measured]
        update = {"metrics": version.manifest.metrics | {"photographs": shown}}
        with replacing(version.path / MANIFEST) as temporary:
            temporary.write_text(version.manifest.model_copy(update=update).model_dump_json(indent=2) + "\n")


def card(
    manifest: Manifest,
    report: dict[str, Any],
    pictures: Sequence[str],
    notes: str,
    repeat_commands: Sequence[str],
    *,
    license_id: str = "unknown",
) -> str:
    """Return the card as Markdown, with the YAML front matter of Hugging Face's model cards.

    `pictures` are the names of the report's PNG files, `notes` Markdown to insert, and `repeat_commands` those of `commands`.
    """
    environment = Environment(  # noqa: S701 - the card is Markdown, so nothing is escaped
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["percent"] = percent
    content = environment.get_template("card.md.j2").render(
        m=manifest,
        report=report,
        megabytes=sum(file.bytes for file in manifest.files.values()) / 1e6,
        license_id=license_id,
        trained_on=_name_of(manifest.training.get("data", {}).get("source")),
        tested_on=_name_of(report["source"]),
        figures=text.figures(report),
        comparison=text.comparison(report),
        photographs=text.photographs(report),
        views=text.views(report),
        classes=text.classes(report),
        in_distribution=text.in_distribution(report),
        precision=text.precision(manifest.quantization),
        robustness=text.robustness(report) if report["robustness"] else "",
        mistakes=text.mistakes(report),
        worst_classes=_worst_classes(report),
        picture=lambda name: text.picture(name, pictures, f"{PICTURES}/"),
        confidence=_confidence(manifest),
        notes=notes.strip(),
        settings=_settings_table(manifest),
        commands=repeat_commands,
    )
    return re.sub(r"\n{3,}", "\n\n", content)  # a missing picture leaves an empty paragraph


def _name_of(source: str | None) -> str | None:
    """Return the name of a data set, without the folders that only this machine has."""
    return Path(source).name if source else None


def commands(
    manifest: Manifest, report: dict[str, Any], out: Path, notes: Path | None, *, license_id: str = "unknown"
) -> list[str]:
    """Return the shell commands that repeat the training, the export, the evaluation and the card of a version."""
    lines = []
    training = manifest.training
    if "config" in training and "data" in training:
        side = manifest.image.height
        options = "".join(_option(name, value) for name, value in training["config"].items())
        size = f" --image-size {side}" if side != 32 else ""
        lines.append(f"train --data {quote(training['data']['source'])}{options}{size} --out runs/again")
        lines.append("export runs/again")
    measures = f" --views {report['views']['views']}" if report["views"] else ""
    if report["robustness"]:
        measures += f" --robustness {report['robustness']['images']}"
    measures += "".join(f" --photos {quote(each['source'] + '=DIR')}" for each in report.get("photographs", []))
    folder = f"reports/{manifest.version}"
    lines.append(f"evaluate --version {manifest.version} --data {quote(report['source'])}{measures} --out {folder}")
    more = f" --notes {quote(str(notes))}" if notes else ""
    more += f" --license {quote(license_id)}" if license_id != "unknown" else ""
    lines.append(f"card {folder} --out {quote(str(out))}{more}")
    default = Settings.model_fields["model_name"].default
    name = [f"export CIFAR_MODEL_NAME={quote(manifest.name)}"] if manifest.name != default else []
    return name + [f".venv/bin/python -m cifar {line}" for line in lines]


def _option(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    if isinstance(value, list):
        return "".join(_option(name, each) for each in value)
    return f" --{name.replace('_', '-')}" + ("" if value is True else f" {quote(str(value))}")


def _confidence(manifest: Manifest) -> str:
    fitted = manifest.model_dump()["confidence"] or {}
    facts = [f"{name.replace('_', ' ')} {fact}" for name, fact in fitted.items() if isinstance(fact, str | int | float)]
    # Manifests before 2026-11-26 call the synthetic outliers "pictures of nothing".
    return ", ".join(facts).replace("pictures of nothing", "synthetic outliers")


def _worst_classes(report: dict[str, Any]) -> list[tuple[str, float]]:
    measured = {name: entry["accuracy"] for name, entry in report["per_class"].items() if entry["images"]}
    return sorted(measured.items(), key=lambda item: (item[1], item[0]))[:_WORST_CLASSES]


def _settings_table(manifest: Manifest) -> str:
    config = manifest.training.get("config", {})
    values = {name: ", ".join(value) if isinstance(value, list) else value for name, value in config.items()}
    rows = [(name.replace("_", " "), "default" if value in (None, "") else value) for name, value in values.items()]
    if seconds := manifest.metrics.get("training_seconds"):
        rows.append(("training time", f"{seconds:,.0f} s"))
    rows += [("exported", manifest.created), ("libraries", text.libraries(manifest.libraries))]
    rows += [(name, value) for name, value in manifest.training.items() if isinstance(value, str)]
    return markdown_table(["setting", "value"], rows)
