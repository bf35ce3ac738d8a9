"""Folders of tiny pictures in the forms that people have."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from support.pictures import encoded, noise

_random = np.random.default_rng(0)


def put(path: Path, picture: Image.Image | bytes | None = None) -> Path:
    """Write a picture in the format of the ending; by default one of 8x8 random pixels, another one each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(picture, bytes):
        picture = picture or noise(8, 8, seed=int(_random.integers(1 << 31)))
        picture = encoded(picture, Image.registered_extensions().get(path.suffix.lower(), "PNG"))
    path.write_bytes(picture)
    return path


def flat(root: Path, ending: str = ".png", **counts: int) -> Path:
    """Write class folders with this number of pictures, and return their folder."""
    for name, count in counts.items():
        for number in range(count):
            put(root / name / f"{number}{ending}")
    return root


def parts(root: Path, *names: str, **counts: int) -> Path:
    """Write a folder of classes for each part."""
    for name in names or ("train", "test"):
        flat(root / name, **(counts or {"cat": 4, "dog": 4}))
    return root


PICTURE = None


class Link(str):
    """The target of a symbolic link."""

    __slots__ = ()


def tree(root: Path, contents: Mapping[str, int | bytes | str | Link | None], named: str = ".") -> Path:
    """Write a folder, and return the path `named` in it.

    Args:
        root: the folder.
        contents: by path: the number of pictures in a folder, the content of a file, or `PICTURE` for a picture.
        named: a path in the folder.
    """
    root.mkdir(parents=True)
    for name, content in contents.items():
        path = root / name
        if isinstance(content, int):
            path.mkdir(parents=True, exist_ok=True)
            flat(root, **{name: content})
        elif isinstance(content, Link):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(content)
        else:
            put(path, content.encode() if isinstance(content, str) else content)
    return root / named


def in_parts(*names: str) -> dict[str, int]:
    """Return the contents of a folder that has these parts of four cats and four dogs each."""
    return {f"{part}/{name}": 4 for part in names for name in ("cat", "dog")}


def zipped(folder: Path, archive: Path) -> Path:
    """Pack a folder, with itself as the only member at the top, and remove it."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent))
    shutil.rmtree(folder)
    return archive


def tarred(folder: Path, archive: Path, compression: str) -> Path:
    """Do the same as a tar archive; compression is `gz`, `xz`, `bz2` or empty."""
    with tarfile.open(archive, f"w:{compression}") as file:
        file.add(folder, folder.name)
    shutil.rmtree(folder)
    return archive


def packed(path: Path, members: Mapping[str, bytes], *, links: Mapping[str, str] | None = None) -> Path:
    """Write a zip or a tar with these members, and links in a tar."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info)
    return path


def table(
    root: Path, header: str, rows: list[tuple[object, ...]], name: str = "labels.csv", delimiter: str = ","
) -> Path:
    """Write a table; without a header the rows begin at the first line."""
    lines = ([header] if header else []) + [delimiter.join(map(str, row)) for row in rows]
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / name
