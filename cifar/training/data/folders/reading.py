"""Reads a folder, an archive or a table of pictures: lists and decodes them, and sets a test part apart if there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar import IMAGE_SHAPE
from cifar.errors import DataError
from cifar.training.data.folders.archive import is_archive, unpacked
from cifar.training.data.folders.contents import (
    OTHER_TABLES,
    PARTS,
    SIDE_FILES,
    TEST,
    TRAIN,
    UNLISTED,
    VALIDATION,
    Contents,
    printable,
    some,
)
from cifar.training.data.folders.decoding import LFS_POINTER, count, decode
from cifar.training.data.folders.layout import Layout, find_layout, has_class_folders, note_other_parts
from cifar.training.data.folders.names import part_of
from cifar.training.data.folders.scan import Folder, Scanner
from cifar.training.data.folders.table import TABLE_ENDINGS, has_labels, read_tables
from cifar.training.data.photographs import PHOTO_SHAPE, are_few_photographs
from cifar.training.data.split import TEST_SHARE, split_test

_MAX_TABLES = 20
"""Number of tables that are tried; label tools may write one for each picture."""


@dataclass(frozen=True)
class Reading:
    """All pictures of a source that could be decoded, the training part first, then the validation and the test part."""

    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    sizes: tuple[int, int, int]
    """Number of training, validation and test pictures."""
    contents: Contents


def read_pictures(path: Path, image_shape: tuple[int, int, int] | None, max_pixels: int) -> Reading:
    """Read a folder, an archive or a table of pictures.

    Pictures that cannot be decoded are left out and recorded in `contents.damaged`. Without `image_shape`, photographs get the
    input of `--arch photo`, and other pictures that of CIFAR.

    Raises:
        DataError: the source cannot be understood, has fewer than two classes, or all pictures of a class are damaged.
    """
    contents = Contents()
    with _layout(path, contents) as (layout, root):
        return _decoded(path, layout, root, contents, image_shape=image_shape, max_pixels=max_pixels)


@contextmanager
def _layout(path: Path, contents: Contents) -> Iterator[tuple[Layout, Path]]:
    """Yield the pictures by part and class, and the folder that their names are relative to."""
    if path.is_dir():
        yield _folder_layout(path, contents, contained=False), path
    elif path.suffix.lower() in TABLE_ENDINGS:
        note_other_parts(path, contents)
        yield read_tables({TRAIN: path}, str(path), contents, contained=False), path.parent
    elif path.name.lower().endswith(OTHER_TABLES):
        raise DataError(
            f"{path} is a kind of table that is not supported. Save it as a .csv file with a column of paths and a column of labels; pictures "
            "inside the table must become files first."
        )
    elif is_archive(path):
        with unpacked(path, contents) as folder:
            try:
                layout = _folder_layout(folder, contents, contained=True)
            except DataError as error:
                raise DataError(str(error).replace(str(folder), str(path))) from error
            contents.notes[:] = [note.replace(str(folder), str(path)) for note in contents.notes]
            yield layout, folder
    else:
        raise DataError(
            f"{path} is {_description(path)}: it is neither a zip or tar archive nor a .csv or .tsv table of paths and labels. Unpack other "
            "archives, and name the folder."
        )


def _description(path: Path) -> str:
    """Describe a file that is neither an archive nor a table."""
    with path.open("rb") as file:
        start = file.read(100).lstrip().lower()
    if start.startswith(LFS_POINTER):
        return "a Git LFS pointer (`git lfs pull` fetches the file)"
    return "a web page, so the download failed" if start.startswith((b"<!doctype html", b"<html")) else "no data set"


def _folder_layout(path: Path, contents: Contents, *, contained: bool) -> Layout:
    scanner = Scanner(path, contents)
    top = scanner.scan()
    if top.error:
        raise DataError(f"{path} cannot be opened: {top.error}.")
    if not top.has_pictures:
        others = "; ".join(f"{reason}: {some(names, 2)}" for reason, names in contents.left_out.items())
        raise DataError(
            f"{path} holds no pictures{others and f'; left out: {others}'}. Unpack archives in it, and convert other files to JPEG or PNG, in a "
            "folder for each class."
        )
    if scanner.links_outside:
        contents.notes.append(f"Links that lead out of the folder and are followed: {scanner.links_outside:,}.")
    if not has_class_folders(top) and (tables := _tables(top, contents)):
        return _table_layout(tables, top, contents, contained=contained)
    return find_layout(top, contents)


def _table_layout(tables: dict[str, Path], top: Folder, contents: Contents, *, contained: bool) -> Layout:
    """Read a folder without class folders by the tables in it."""
    try:
        layout = read_tables(tables, str(top.path), contents, contained=contained, below=top.path)
    except DataError as error:
        raise DataError(f"{top.path} has no class folders, and {error}") from error
    names = [table.relative_to(top.path).as_posix() for table in tables.values()]
    contents.notes.append(f"There are no class folders; the labels are those of {some(names)}.")
    for name in contents.left_out.pop(SIDE_FILES, []):
        if name not in names:
            contents.leave_out(SIDE_FILES, name)
    listed = {file for classes in layout.parts.values() for files in classes.values() for file in files}
    contents.leave_out_paths(UNLISTED, [path for path in top.all_pictures() if path not in listed], top.path)
    return layout


def _tables(top: Folder, contents: Contents) -> dict[str, Path]:
    """Return the tables of a folder by part: the only usable one, or one named after each part, or one in the folder of each part."""
    root = top.path
    while len(top.folders) == 1 and not top.pictures and not _tables_in(top.path, root):
        top = top.folders[0]
    tables = _tables_in(top.path, root)
    parts = {part_of(table.stem) or "": table for table in tables}
    if not tables:
        parts = {part_of(sub.name) or "": table for sub in top.folders for table in _tables_in(sub.path, root)[:1]}
    if TRAIN in parts and len(tables) != 1:
        others = {part: parts[part] for part in (VALIDATION, TEST) if part in parts and has_labels(parts[part], root)}
        return {TRAIN: parts[TRAIN]} | others
    if len(tables) == 1:
        return {TRAIN: tables[0]}
    below = [root / name for name in contents.left_out.get(SIDE_FILES, [])]
    tables = tables or [path for path in below if _may_be_table(path)]
    readable = [table for table in tables[:_MAX_TABLES] if _is_readable(table, root)]
    if len(readable) > 1:
        raise DataError(
            f"{top.path} has no class folders, but several tables of labels ({some([table.name for table in readable])}): name one."
        )
    return {TRAIN: readable[0]} if readable else {}


def _is_readable(table: Path, below: Path) -> bool:
    try:
        read_tables({TRAIN: table}, str(table), Contents(), contained=True, below=below)
    except DataError:
        return False
    return True


def _tables_in(folder: Path, root: Path) -> list[Path]:
    found = [path for path in sorted(folder.iterdir()) if _may_be_table(path) and path.is_file()]
    return [path for path in found if path.suffix.lower() != ".txt" or has_labels(path, root)]


def _may_be_table(path: Path) -> bool:
    """Return whether a file may be a table, by its name. Few text files are: only those that are named like a list or a part."""
    ending, name = path.suffix.lower(), path.stem.lower()
    return ending in TABLE_ENDINGS and (ending != ".txt" or bool(part_of(name)) or "label" in name or "list" in name)


def _decoded(
    source: Path,
    layout: Layout,
    root: Path,
    contents: Contents,
    *,
    image_shape: tuple[int, int, int] | None,
    max_pixels: int,
) -> Reading:
    class_names = layout.class_names
    listed = [
        (part, label, file)
        for part in PARTS
        for label, name in enumerate(class_names)
        for file in layout.parts.get(part, {}).get(name, [])
    ]
    files = [file for _, _, file in listed]
    contents.few_photographs = are_few_photographs(files, max_pixels)
    shape = image_shape or (PHOTO_SHAPE if contents.few_photographs else IMAGE_SHAPE)
    images, pictures = decode(files, shape, max_pixels)
    contents.formats, contents.conversions = count(pictures)
    names = [_relative(file, root) for _, _, file in listed]
    contents.damaged = {name: picture.problem for name, picture in zip(names, pictures, strict=True) if picture.problem}
    good = [number for number, picture in enumerate(pictures) if not picture.problem]
    labels = np.array([listed[number][1] for number in good], np.int64)
    parts = np.array([PARTS.index(listed[number][0]) for number in good], np.int64)
    _refuse_lost_classes(source, class_names, labels[parts == 0], contents)
    if layout.unsplit:
        parts[split_test(labels, [pictures[number].content for number in good])] = 2
        contents.notes.append(
            f"There is no test part: {TEST_SHARE:.0%} of each class are set apart for testing, always the same ones."
        )
        untested = np.setdiff1d(labels, labels[parts == 2])
        if len(untested):
            names_of_untested = [class_names[label] for label in untested.tolist()]
            contents.notes.append(
                f"Classes that are too small for that, and are not tested: {some(names_of_untested)}."
            )
    order = np.argsort(parts, kind="stable")
    contents.names = [names[good[position]] for position in order]
    sizes = np.bincount(parts, minlength=3)
    return Reading(
        class_names=class_names,
        images=images if (order[:-1] < order[1:]).all() else images[order],
        labels=labels[order],
        sizes=(int(sizes[0]), int(sizes[1]), int(sizes[2])),
        contents=contents,
    )


def _refuse_lost_classes(source: Path, class_names: tuple[str, ...], labels: np.ndarray, contents: Contents) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    if lost := [name for name, found in zip(class_names, counts, strict=True) if not found]:
        damaged = [f"{name}: {reason}" for name, reason in contents.damaged.items()]
        reason = f"; {len(damaged):,} pictures are damaged ({some(damaged, 1)})" if damaged else ""
        raise DataError(
            f"{source} has no training picture of class {some(lost)} that can be read{reason}. Add some, or remove the class."
        )


def _relative(file: Path, root: Path) -> str:
    return printable(file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file))
