"""What a version holds, from its manifest, after its files were compared with it. Needs no TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cifar.errors import VersionNotFound
from cifar.models.registry import Registry


def inspect_version(folder: Path) -> dict[str, Any]:
    """The manifest of the version in `folder`, verified, with `bytes`: the size of all its files.

    Raises:
        VersionNotFound: there is no such folder.
        VersionUnusable: the folder is no version, or a file is not what was exported.
    """
    folder = folder.resolve()
    registry = Registry(folder.parent.parent, folder.parent.name)
    if not folder.is_dir():
        raise VersionNotFound(f"{folder} is not there; a version's folder is expected, such as saved_model/NAME/1.")
    version = registry.get_folder(folder.name)
    version.verify()
    return {**version.manifest.model_dump(), "bytes": sum(file.bytes for file in version.manifest.files.values())}


def list_versions(registry: Registry) -> tuple[list[dict[str, Any]], list[str]]:
    """The usable versions, a row for each, ascending; and a sentence for each folder that is none."""
    problems = registry.problems()
    rows = [
        {
            "version": version.number,
            "created": version.manifest.created,
            "classes": len(version.manifest.class_names),
            "image": "x".join(map(str, version.manifest.image.shape)),
            "test_accuracy": version.manifest.metrics.get("test_accuracy"),
        }
        for version in (registry.get(number) for number in registry.numbers() if str(number) not in problems)
    ]
    return rows, list(problems.values())


def as_text(report: dict[str, Any]) -> str:
    """The report as tables for a terminal."""
    lines = [
        f"{report['name']} version {report['version']}, exported {report['created']}, {report['bytes']:,} bytes",
        f"classes ({len(report['class_names'])}): {', '.join(report['class_names'])}",
        f"input: {_shape(list(report['image'].values()))} pixels; {report['preprocessing']}",
        f"input range of the Keras model: {report['input_range'][0]:g} to {report['input_range'][1]:g}",
        f"parity: {report['parity']['max_abs_difference']:.2g} at most over {report['parity']['images']} images",
    ]
    if known := report["confidence"]:
        lines.append(
            f"confidence: temperature {known['temperature']:g}; out of distribution by {known['method']}, "
            f"above {known['threshold']:g}"
        )
    lines += [f"{name}: {value}" for name, value in report["metrics"].items() if not isinstance(value, dict | list)]
    for name, signature in report["signatures"].items():
        lines.append(f"\n{name}")
        for side in ("inputs", "outputs"):
            for tensor, info in signature[side].items():
                lines.append(f"  {side[:-1]:<7} {tensor:<14} {info['dtype']:<8} {_shape(info['shape'])}")
    lines.append("\nfile" + " " * 40 + "bytes  sha256")
    for name, info in report["files"].items():
        lines.append(f"{name:<38} {info['bytes']:>10,}  {info['sha256'][:16]}…")
    return "\n".join(lines)


def _shape(sizes: list[int | None]) -> str:
    return " x ".join("n" if size is None else str(size) for size in sizes)
