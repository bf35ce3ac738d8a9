"""The library versions that a run or an exported version was made with."""

from __future__ import annotations

import platform
from importlib import metadata


def library_versions() -> dict[str, str]:
    """Return Python and the libraries that can change a model's weights or files, by name."""
    tensorflow = "tensorflow-cpu" if any(metadata.distributions(name="tensorflow-cpu")) else "tensorflow"
    names = (tensorflow, "keras", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
