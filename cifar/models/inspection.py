"""Descriptions of versions for the command line, from their manifests. No machine-learning library is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cifar.errors import VersionNotFound
from cifar.models.registry import Registry


def inspect_version(folder: Path) -> dict[str, Any]:
    """Verify the version in `folder`, and return its manifest and, as `bytes`, the total size of its files.

    Raises:
        VersionNotFound: there is no such folder.
        VersionUnusable: the folder is not a version, or a file differs from the exported one.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise VersionNotFound(
            f"The folder {folder} does not exist. Name a version's folder, such as saved_model/NAME/1."
        )
    version = Registry(folder.parent.parent, folder.parent.name).get_folder(folder.name)
    version.verify()
    return {**version.manifest.model_dump(), "bytes": sum(file.bytes for file in version.manifest.files.values())}


def list_versions(registry: Registry) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each usable version, ascending, and a message for each folder that is not one."""
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
    """Format the result of `inspect_version` as tables for a terminal."""
    lines = [
        f"{report['name']} version {report['version']}, exported {report['created']}, {report['bytes']:,} bytes",
        f"classes ({len(report['class_names'])}): {', '.join(report['class_names'])}",
        *(["multi-label: each class has a probability of its own"] if report["task"] == "multi_label" else []),
        f"input: {_shape(list(report['image'].values()))} pixels; {report['preprocessing']}",
        f"pixels as the Keras model takes them: {_pixels(report)}",
        f"largest difference from the Keras model: {report['parity']['max_abs_difference']:.2g} over {report['parity']['images']} images",
        *(
            f"largest difference of assets.extra/model.{name}: {report['parity'][key]:.2g}"
            for name in ("onnx", "keras")
            if (key := f"{name}_max_abs_difference") in report["parity"]
        ),
    ]
    if confidence := report["confidence"]:
        lines.append(
            f"confidence: temperature {confidence['temperature']:g}; out-of-distribution score: {confidence['method']}, "
            f"threshold {confidence['threshold']:g}"
        )
    lines += _precision_lines(report["quantization"])
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


def _pixels(report: dict[str, Any]) -> str:
    if pixels := report["pixels"]:
        return (
            f"{pixels['preparation']}, known by {pixels['found_by']}{pixels['evidence'] and ': '}{pixels['evidence']}"
        )
    return "{:g},{:g}".format(*report["input_range"])


def _precision_lines(quantization: dict[str, Any] | None) -> list[str]:
    if not quantization:
        return []
    lines = [f"precision of the LiteRT file: {quantization['reason']}"]
    if layers := quantization["int8_layers"]:
        lines.append(f"  int8: {', '.join(layers)}")
        lines.append(f"  float32: {', '.join(quantization['float32_layers']) or 'none of the large layers'}")
    if figures := quantization["figures"]:
        lines.append(f"  compared on {quantization['images']:,} images ({quantization['source']}):")
    for name, figure in figures.items():
        values = "" if figure["int8"] is None else f"{figure['float32']:.4f} in float32, {figure['int8']:.4f} in int8: "
        lines.append(
            f"  {name.replace('_', ' ')}: {values}difference {figure['difference']:.4f}, at most {figure['bound']:g}"
        )
    return lines


def _shape(sizes: list[int | None]) -> str:
    return " x ".join("n" if size is None else str(size) for size in sizes)
