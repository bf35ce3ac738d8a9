"""A registry for the page's tests: the shipped version, and a second one with invented measurements.

Version 2 is version 1 with its first two classes' names exchanged, so that the two disagree on those alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from cifar.settings import ROOT

SHIPPED = ROOT / "saved_model" / "cifar_classifier" / "1"


def write_two_versions(registry: Path) -> Path:
    """Write both under `registry`; version 1 is without `test` and `history`, whatever the shipped one has."""
    base = registry / "cifar_classifier"
    base.mkdir(parents=True)
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    for name in ("test", "history"):
        manifest["metrics"].pop(name, None)
    names = manifest["class_names"]
    _write(base / "1", manifest)
    exchanged = [names[1], names[0], *names[2:]]
    metrics = {**manifest["metrics"], "test": invented_measures(exchanged), "history": invented_history()}
    _write(base / "2", {**manifest, "version": 2, "class_names": exchanged, "metrics": metrics})
    return registry


def _write(folder: Path, manifest: dict) -> None:
    shutil.copytree(SHIPPED, folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def invented_measures(class_names: list[str]) -> dict:
    """What a test of 10,000 images could have given, in the shape that training writes."""
    dice = np.random.default_rng(0)
    matrix = dice.integers(0, 40, (len(class_names), len(class_names)))
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, 1000 - matrix.sum(axis=1))
    shares = matrix.diagonal() / 1000
    edges = np.linspace(0, 1, 16)
    bins = [
        {"low": low, "high": high, "images": 40 * at**2, "confidence": (low + high) / 2, "accuracy": (low + high) / 2.2}
        for at, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    ]
    bins[0] |= {"confidence": None, "accuracy": None}
    accuracy = float(shares.mean())
    return {
        "images": 10_000,
        "accuracy": accuracy,
        "accuracy_interval": [accuracy - 0.007, accuracy + 0.007],
        "per_class": {
            name: {"images": 1000, "accuracy": float(share), "interval": [float(share) - 0.03, float(share) + 0.03]}
            for name, share in zip(class_names, shares, strict=True)
        },
        "confusion_matrix": matrix.tolist(),
        "top_k": {"1": accuracy, "2": 0.93, "3": 0.96, "5": 0.99},
        "loss": 0.47,
        "ece": 0.021,
        "reliability": bins,
    }


def invented_history() -> list[dict]:
    """Eight epochs that went well."""
    return [
        {
            "epoch": epoch,
            "loss": 1.8 / epoch**0.6,
            "accuracy": 0.4 + 0.25 * np.log10(epoch + 0.5),
            "val_loss": 1.9 / epoch**0.5,
            "val_accuracy": 0.4 + 0.22 * np.log10(epoch + 0.5),
            "seconds": 20.0,
        }
        for epoch in range(1, 9)
    ]
