"""Walks a folder once, and separates pictures from other files. Nothing is decoded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cifar.images.decode import begins_like_an_image
from cifar.training.data.folders.contents import (
    BROKEN_LINKS,
    HIDDEN_FILES,
    HIDDEN_FOLDERS,
    HIDDEN_PICTURES,
    LOOPS,
    NO_FILES,
    SIDE_FILES,
    TOO_DEEP,
    UNOPENED,
    Contents,
    printable,
)

_PICTURE = re.compile(
    r"\.(jpe?g|jpe|jfif|a?png|gif|bmp|dib|webp|tiff?|hei[cf]|hif|avif"
    # Pictures in formats that cannot be decoded. They are reported as damaged, not left out as other files.
    r"|p[pgbn]m|svg|psd|jp2|jxl|tga|ico|pcx|exr|hdr|dng|cr[23]|nef|arw|orf|rw2)"
)
_SIDE_FILE = re.compile(
    r"\.(txt|md|rst|csv|tsv|jsonl?|xml|ya?ml|html?|url|log|ini|cfg|toml|db|sqlite|pdf|docx?|xlsx?|py|ipynb|sh|bat|m|mat|np[yz]|h5"
    r"|hdf5|pkl|parquet|tfrecord|zip|tar|gz|tgz|xz|bz2|7z|rar|lnk|mp4|avi|mov|webm|mp3|wav|cache|names|data)"
)
_OF_SYSTEMS = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found"}
    | {"system volume information", "__pycache__"}
)
_MAX_DEPTH = 40


@dataclass
class Folder:
    """A folder with its pictures and sub-folders, sorted by name. Hidden ones are not listed."""

    path: Path
    pictures: list[Path] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    side_files: int = 0
    broken_links: int = 0
    error: str = ""
    """Why the folder cannot be opened."""

    @property
    def name(self) -> str:
        return printable(self.path.name)

    def all_pictures(self) -> list[Path]:
        """Return the pictures in this folder and in all folders below it."""
        return self.pictures + [path for folder in self.folders for path in folder.all_pictures()]

    @property
    def filled(self) -> list[Folder]:
        """The sub-folders that hold pictures, directly or further below."""
        return [folder for folder in self.folders if folder.has_pictures]

    @property
    def has_pictures(self) -> bool:
        return bool(self.pictures) or any(folder.has_pictures for folder in self.folders)

    @property
    def is_empty(self) -> bool:
        """True if the folder and those in it have no files at all."""
        return not (self.pictures or self.side_files) and all(folder.is_empty for folder in self.folders)


class Scanner:
    """Walks the folders below a root, and records in `contents` what it leaves out."""

    def __init__(self, root: Path, contents: Contents) -> None:
        self._root = root
        self._real_root = Path(os.path.realpath(root))
        self._contents = contents
        self.links_outside = 0
        """Number of links to files or folders outside the root. They are followed."""

    def scan(self) -> Folder:
        return self._scan(self._root, ())

    def _scan(self, path: Path, above: tuple[tuple[int, int], ...]) -> Folder:
        folder = Folder(path)
        try:
            status = path.stat()
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            folder.error = error.strerror or str(error)
            self._leave_out(UNOPENED, path)
            return folder
        identity = (status.st_dev, status.st_ino)
        if identity in above or len(above) > _MAX_DEPTH:
            self._leave_out(LOOPS if identity in above else TOO_DEEP, path)
            return folder
        for entry in entries:
            self._add(entry, folder, (*above, identity))
        return folder

    def _add(self, entry: os.DirEntry[str], folder: Folder, above: tuple[tuple[int, int], ...]) -> None:
        path = folder.path / entry.name
        if entry.name.startswith(".") or entry.name.casefold() in _OF_SYSTEMS:
            self._leave_out_hidden(entry, path)
            return
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself
            is_folder = is_file = False
        if entry.is_symlink():
            if not path.exists():
                folder.broken_links += 1
                self._leave_out(BROKEN_LINKS, path)
                return
            self.links_outside += not Path(os.path.realpath(path)).is_relative_to(self._real_root)
        if is_folder:
            folder.folders.append(self._scan(path, above))
        elif not is_file:
            self._leave_out(NO_FILES, path)
        elif _is_picture(path):
            folder.pictures.append(path)
        else:
            folder.side_files += 1
            self._leave_out(SIDE_FILES, path)

    def _leave_out_hidden(self, entry: os.DirEntry[str], path: Path) -> None:
        if not entry.is_dir(follow_symlinks=False):
            self._leave_out(HIDDEN_FILES, path)
            return
        self._leave_out(HIDDEN_FOLDERS, path)
        if entry.name != ".git":
            for picture in _pictures_below(path):
                self._leave_out(HIDDEN_PICTURES, picture)

    def _leave_out(self, reason: str, path: Path) -> None:
        self._contents.leave_out_paths(reason, [path], self._root)


def _is_picture(path: Path) -> bool:
    """Return whether a file is a picture: by its ending, or by its first bytes if the ending is unknown."""
    ending = path.suffix.lower()
    if _PICTURE.fullmatch(ending) or _SIDE_FILE.fullmatch(ending):
        return bool(_PICTURE.fullmatch(ending))
    try:
        with path.open("rb") as file:
            return begins_like_an_image(file.read(16))
    except OSError:
        return True  # decoding will report why it cannot be read


def _pictures_below(path: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(path):
        for name in sorted(names):
            if _PICTURE.fullmatch(Path(name).suffix.lower()) and not name.startswith("._"):
                yield Path(folder, name)
