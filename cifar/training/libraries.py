"""Which library versions made a run or a version."""

from __future__ import annotations

import platform
from importlib import metadata


def library_versions() -> dict[str, str]:
    """Name to version, of what can change a model's weights or its files."""
    tensorflow = "tensorflow-cpu" if _installed("tensorflow-cpu") else "tensorflow"
    names = (tensorflow, "keras", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
