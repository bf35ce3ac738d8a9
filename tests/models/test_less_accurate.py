"""An export of a version that was measured to be less accurate than the one in service."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cifar.cli.main import main
from cifar.models.registry import Version


def copied(version: Version, folder: Path, metrics: dict[str, float]) -> Path:
    """Copy a version with other measurements."""
    shutil.copytree(version.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "metrics": metrics}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("new", "words"),
    [
        (
            {"test_accuracy": 0.7},
            "less accurate than version 1 on test images: 0.7000 instead of 0.9000. To serve that one",
        ),
        ({"test_accuracy": 0.95}, ""),
        ({"validation_accuracy": 0.5}, "on held-out images: 0.5000 instead of 0.8000"),
        ({"test_accuracy": 0.95, "validation_accuracy": 0.5}, ""),
        ({}, ""),
    ],
)
def test_an_export_that_replaces_a_better_version_says_so(small_version, tmp_path, monkeypatch, capsys, new, words):
    """The newest version serves all users unless another was promoted, so a worse one must not come unnoticed."""
    copied(small_version, tmp_path / "registry/shapes/1", {"test_accuracy": 0.9, "validation_accuracy": 0.8})
    source = copied(small_version, tmp_path / "source/shapes/1", new)
    monkeypatch.setenv("CIFAR_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("CIFAR_MODEL_NAME", "shapes")
    assert main(["export", str(source)]) == 0
    message = capsys.readouterr().err
    assert "It is the stable version" in message
    assert words in message
    assert ("less accurate" in message) == bool(words)
