"""Finds the parts (training, validation, test) and the classes of a scanned folder."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cifar import CLASS_NAMES
from cifar.errors import DataError
from cifar.training.data.folders.contents import (
    BESIDE_PARTS,
    NO_PICTURES,
    OUTSIDE_CLASSES,
    PARTS,
    SIDE_FILES,
    TEST,
    TRAIN,
    VALIDATION,
    WITHOUT_CLASSES,
    Contents,
    some,
)
from cifar.training.data.folders.names import key_of, part_of
from cifar.training.data.folders.scan import Folder

_WORD_OF_PART = re.compile(r"(?<![a-z])(?:(train(?:ing)?)|(val(?:id(?:ation)?)?)|(test(?:ing)?))(?![a-z])")
"""Finds the part in a longer name: pets_train, train_small."""
_PIECE = re.compile(r"(?<![a-z])(?:images?|imgs?|pictures|photos|batch|part|chunk|fold|split)(?![a-z])")
"""Words in the names of folders that hold numbered pieces of one collection, such as batch_1 and batch_2."""
_LIKE_PART = re.compile(rf"{_WORD_OF_PART.pattern}|(?<![a-z])(?:fold|split|part|set)(?![a-z])")

_KINDS_OF_FILES = re.compile(
    r"(?:images?|imgs?|jpe?gimages|pictures|photos)|(masks?|annotations?|labels?|(?:semantic_?)?segmentations?|trimaps?|depths?|ground_?truths?|gt)"
)
"""Names of folders that sort files by kind; those of the group never hold pictures of a class."""
_UNSORTED = re.compile(
    r"un-?label+ed|un-?sorted|unsup(?:ervised)?|new folder|1\d\d[a-z0-9_]{5}|(?:19|20)\d\d(?:[-_.]?\d\d){0,2}"
)
"""Names of folders that rarely are classes: of unlabelled pictures, of cameras (DCIM/100APPLE), years, months and days."""

Classes = dict[str, list[Path]]
"""The pictures of each class."""


@dataclass
class Layout:
    """The pictures by part and class. There is always a training part; its keys are the class names."""

    parts: dict[str, Classes] = field(default_factory=dict)
    unsplit: bool = False
    """True if the source has no parts, so that test pictures have to be chosen from `parts["train"]`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in CIFAR's order if they are CIFAR's, otherwise in the order of the training part."""
        names = tuple(self.parts[TRAIN])
        return CLASS_NAMES if set(names) == set(CLASS_NAMES) else names


def has_class_folders(top: Folder) -> bool:
    """Return whether there are class folders. Folders of parts, of numbered pieces and of kinds of files are none."""
    folder = top
    while len(folder.filled) == 1 and not folder.pictures:
        (folder,) = folder.filled
    common = _parts_with_a_common_name(folder).values()
    parts = [sub for sub in folder.filled if part_of(sub.name) or any(sub in subs for subs in common)]
    others = [sub for sub in folder.filled if sub not in parts]
    return _are_classes(others) or any(_are_classes(part.filled) for part in parts)


def _are_classes(folders: list[Folder]) -> bool:
    names = {re.sub(r"\d+", "", folder.name.casefold()) for folder in folders}
    pieces = all(map(_PIECE.match, names)) or (len(names) == 1 and all(map(_PIECE.search, names)))
    return bool(names) and not pieces and not _are_kinds(names)


def _are_kinds(names: Iterable[str]) -> bool:
    """Return whether folders sort files by kind, such as images and masks."""
    kinds = [_KINDS_OF_FILES.fullmatch(name.casefold()) for name in names]
    return all(kinds) and any(kind and kind[1] for kind in kinds)


def find_layout(top: Folder, contents: Contents) -> Layout:
    """Find parts and classes below `top`.

    Raises:
        DataError: there are fewer than two classes, or the folder can be understood in more than one way.
    """
    folder = top
    while not _parts(folder) and (deeper := _wrapped(folder, ())):
        folder = deeper
    if folder is not top:
        contents.notes.append(f"The class folders are in {folder.path.relative_to(top.path)}.")
    parts = _parts(folder)
    if TRAIN in parts:
        layout = _with_parts(folder, parts, top, contents)
    elif parts:
        found = some([part.name for part in parts.values()])
        raise DataError(
            f"{folder.path} has {found} but no training part. Call the folder of the training pictures train."
        )
    elif _has_parts_in_classes(folder):
        layout = _parts_in_classes(folder)
    else:
        _refuse_unclear_folders(folder, contents)
        layout = Layout({TRAIN: _classes(folder, top, contents)}, unsplit=True)
        _note_doubts(folder, contents)
        contents.leave_out_paths(OUTSIDE_CLASSES, folder.pictures, top.path)
    return check_layout(layout, str(folder.path), contents)


def check_layout(layout: Layout, where: str, contents: Contents) -> Layout:
    """Refuse fewer than two classes and unusable names; use a validation part without a test part for testing, and say so."""
    classes, parts = layout.parts[TRAIN], layout.parts
    refuse_twins(classes, where)
    if _are_kinds(classes):
        raise DataError(
            f"{where} has no class folders, but folders of kinds of files ({some(list(classes))}). Sort the pictures into a folder for each "
            f"class, or name a table of paths and labels.{contents.hint}"
        )
    if odd := next((name for name in classes if any(unicodedata.category(sign) == "Cc" for sign in name)), None):
        raise DataError(
            f"{where} has a class {odd!r}, whose name holds a line break or another control character: rename it."
        )
    if len(classes) < 2:
        found = f" ({next(iter(classes))})" if classes else ""
        raise DataError(
            f"{where} has {len(classes)} class{'' if found else 'es'}{found} with pictures; at least two are needed: "
            f"one folder for each class, or a table of paths and labels.{contents.hint}"
        )
    for part in (VALIDATION, TEST):
        if part in parts:
            parts[part] = _like_training(parts[part], classes, part, where, contents)
    if VALIDATION in parts and TEST not in parts:
        parts[TEST] = parts.pop(VALIDATION)
        contents.notes.append("There is no test part, so the validation part is used for testing.")
    return layout


def refuse_twins(names: Iterable[str], where: str) -> None:
    """Refuse class names that differ only in case: on some systems they would be one folder."""
    by_key: dict[str, str] = {}
    for name in names:
        if (twin := by_key.setdefault(key_of(name), name)) != name:
            raise DataError(
                f"{where} has the classes {twin} and {name}, which differ only in case, in spaces, or in how accents are written: merge or rename them."
            )


def _like_training(found: Classes, classes: Classes, part: str, where: str, contents: Contents) -> Classes:
    """Return a part with the class names of the training part."""
    names = {key_of(name): name for name in classes}
    if other := [name for name in found if key_of(name) not in names]:
        raise DataError(
            f"The {part} part of {where} has the classes {some(other)}, which the training part lacks "
            f"({some(list(classes))}). They must be the same."
        )
    if absent := [name for name in classes if key_of(name) not in map(key_of, found)]:
        contents.notes.append(f"The {part} part has no picture of {some(absent)}.")
    return {names[key_of(name)]: files for name, files in found.items()}


def _wrapped(folder: Folder, class_names: Iterable[str]) -> Folder | None:
    """Return the sub-folder that a folder only wraps: the only one with pictures, with folders of its own, and not a class."""
    if folder.pictures or len(folder.filled) != 1:
        return None
    (only,) = folder.filled
    return only if only.filled and only.name not in class_names else None


def _class_level(folder: Folder, class_names: Iterable[str] = ()) -> Folder:
    """Step down to the folder of the class folders."""
    while deeper := _wrapped(folder, class_names):
        folder = deeper
    return folder


def _parts(folder: Folder) -> dict[str, Folder]:
    """Return the sub-folders that are parts. A folder `train` full of pictures beside other classes is a class."""
    named: dict[str, list[Folder]] = {}
    for sub in folder.folders:
        if part := part_of(sub.name):
            named.setdefault(part, []).append(sub)
    if TRAIN not in named:
        named = _parts_with_a_common_name(folder) or named
    others = [sub for sub in folder.filled if not any(sub in subs for subs in named.values())]
    if others and len(named) == 1 and not any(sub.folders for subs in named.values() for sub in subs):
        return {}
    parts = {}
    for part, subs in named.items():
        filled = [sub for sub in subs if sub.has_pictures] or subs[:1]
        if len(filled) > 1:
            raise DataError(
                f"{folder.path} has {some([sub.name for sub in filled])}: which is the {part} part? Rename or move the others."
            )
        parts[part] = filled[0]
    return parts


def _parts_with_a_common_name(folder: Folder) -> dict[str, list[Folder]]:
    """Return parts whose names differ only in the word for the part: pets_train and pets_test."""
    by_rest: dict[str, dict[str, list[Folder]]] = {}
    for sub in folder.filled:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", sub.name).casefold()  # trainA is train A
        if found := _WORD_OF_PART.search(name):
            rest = f"{name[: found.start()]}*{name[found.end() :]}"
            part = PARTS[(found.lastindex or 1) - 1]
            by_rest.setdefault(rest, {}).setdefault(part, []).append(sub)
    pairs = [parts for parts in by_rest.values() if TRAIN in parts and len(parts) > 1]
    if len(pairs) > 1:
        names = [sub.name for parts in pairs for subs in parts.values() for sub in subs]
        raise DataError(
            f"{folder.path} has {some(names)}. If each is a part of a class, sort them as train/CLASS and test/CLASS."
        )
    return pairs[0] if pairs else {}


def _with_parts(folder: Folder, parts: dict[str, Folder], top: Folder, contents: Contents) -> Layout:
    train = _class_level(parts[TRAIN])
    classes = _classes(train, top, contents)
    if not classes and train.pictures:
        raise DataError(_without_classes(train, contents))
    layout = Layout({TRAIN: classes})
    contents.leave_out_paths(OUTSIDE_CLASSES, train.pictures, top.path)
    for part in (VALIDATION, TEST):
        if part not in parts:
            continue
        level = _class_level(parts[part], classes)
        keys = {key_of(sub.name) for sub in level.folders}
        if keys & {key_of(name) for name in classes}:
            layout.parts[part] = _classes(level, top, contents)
            contents.leave_out_paths(OUTSIDE_CLASSES, level.pictures, top.path)
        elif pictures := level.all_pictures():
            contents.leave_out_paths(WITHOUT_CLASSES, pictures, top.path)
            contents.notes.append(
                f"{parts[part].name} has no folder of a class of the training part: its {len(pictures):,} pictures are not used."
            )
        else:
            contents.notes.append(f"{parts[part].name} holds no pictures.")
    for sub in folder.folders:
        if sub not in parts.values():
            contents.leave_out_paths(BESIDE_PARTS, sub.all_pictures(), top.path)
    contents.leave_out_paths(OUTSIDE_CLASSES, folder.pictures, top.path)
    return layout


def _classes(folder: Folder, top: Folder, contents: Contents) -> Classes:
    """Return the pictures of each sub-folder."""
    _refuse_two_levels(folder)
    refuse_twins([sub.name for sub in folder.folders], str(folder.path))
    found: Classes = {}
    nested = 0
    for sub in folder.folders:
        if sub.has_pictures:
            found[sub.name] = sub.all_pictures()
            nested += len(found[sub.name]) - len(sub.pictures)
        elif sub.is_empty:
            reason = sub.error or (f"broken links: {sub.broken_links:,}" if sub.broken_links else "")
            raise DataError(
                f"{sub.path} has no image{f' ({reason})' if reason else ''}: add some, or remove the folder."
            )
        else:
            contents.leave_out_paths(NO_PICTURES, [sub.path], top.path)
    if nested:
        contents.notes.append(
            f"Pictures of {folder.name} that are in sub-folders of their class, and are read too: {nested:,}."
        )
    inner = [inner for sub in folder.filled for inner in sub.filled]
    if (
        nested == sum(map(len, found.values()))
        and len({sub.name for sub in inner}) > len(found) > 1
        and _are_classes(inner)
    ):
        contents.notes.append(
            f"The classes are {some(list(found))}. If the folders in them ({some([sub.name for sub in inner])}) are the classes, move those up."
        )
    return found


def _has_parts_in_classes(folder: Folder) -> bool:
    """Return whether every class folder has its own train/ and test/: cat/train, cat/test, dog/train, dog/test."""
    classes = folder.filled
    return len(classes) > 1 and all(
        not sub.pictures
        and TRAIN in _parts(sub)
        and all(part_of(below.name) and not below.filled for below in sub.filled)
        for sub in classes
    )


def _parts_in_classes(folder: Folder) -> Layout:
    layout = Layout({TRAIN: {}})
    for sub in folder.filled:
        for part, below in _parts(sub).items():
            layout.parts.setdefault(part, {})[sub.name] = below.all_pictures()
    return layout


def _refuse_unclear_folders(folder: Folder, contents: Contents) -> None:
    if sets := [sub.name for sub in folder.filled if TRAIN in _parts(_class_level(sub))]:
        raise DataError(
            f"{folder.path} holds more than one data set ({some(sets)} and others beside it). Name one of them."
        )
    if not folder.filled and folder.pictures:
        raise DataError(_without_classes(folder, contents))
    like_parts = [sub for sub in folder.filled if _LIKE_PART.search(re.sub(r"\d", "", sub.name.casefold()))]
    below = [{inner.name for inner in sub.filled} for sub in like_parts]
    if len(below) > 1 and set.intersection(*below):
        raise DataError(
            f"{folder.path} has {some([sub.name for sub in like_parts])}, each with the folders {some(sorted(below[0]))}. If they are parts, "
            "call them train, val and test, or name one of them."
        )


def _refuse_two_levels(folder: Folder) -> None:
    """Refuse folders that contain the same folders, such as color/rose and gray/rose: either level can be the classes."""
    below = {sub.name: [inner.name for inner in _class_level(sub).filled] for sub in folder.filled if not sub.pictures}
    names = {sub.name for sub in folder.filled}
    for name, inner in below.items():
        if len(again := [sub for sub in inner if sub in names - {name}]) > 1:
            raise DataError(
                f"{folder.path} has {some(again)}, and once more below {name}. Move {name} away, or name it if it is the one to use."
            )
    counts = Counter(name for inner in below.values() for name in inner)
    shared = [name for name, count in counts.items() if count > 1 and 2 * count > len(folder.filled)]
    if len(shared) > 1 and not all(_PIECE.search(name.casefold()) for name in shared):
        raise DataError(
            f"{folder.path} has {some([sub.name for sub in folder.filled])}, and several of them have the folders {some(shared)}: either can be the "
            "classes. If the outer ones are parts, call them train, val and test; otherwise name one of them, move the pictures out of the "
            "inner ones, or name a CSV file of paths and labels."
        )


def _without_classes(folder: Folder, contents: Contents) -> str:
    return (
        f"{folder.path} has {len(folder.pictures):,} pictures but no class folders. If they are all of one class, name the folder above; "
        f"otherwise sort them into a folder for each class, or name a CSV file of paths and labels.{contents.hint}"
    )


def _note_doubts(folder: Folder, contents: Contents) -> None:
    """Note reasons to doubt that the sub-folders are the classes, or all of them."""
    names = [sub.name for sub in folder.filled]
    if not _are_classes(folder.filled):
        contents.notes.append(
            f"Are these classes? The names {some(names)} differ only in a number, or say nothing but that they are pictures."
        )
    elif odd := [name for name in names if _UNSORTED.fullmatch(name.casefold())]:
        contents.notes.append(
            f"Are these classes? {some(odd)}. If not, move them away, or name the folder of the classes."
        )
    if lists := [name for name in contents.left_out.get(SIDE_FILES, []) if part_of(Path(name).stem) == TEST]:
        contents.notes.append(
            f"{some(lists)} may say which pictures are for testing, but is not used: for that, sort them into train/CLASS and test/CLASS."
        )
    note_other_parts(folder.path, contents)


def note_other_parts(path: Path, contents: Contents) -> None:
    """Note the test part beside a training part, a folder or a table, that the user named alone."""
    if part_of(path.stem) != TRAIN:
        return
    try:
        beside = sorted(
            other.name
            for other in path.parent.iterdir()
            if part_of(other.stem) in {VALIDATION, TEST} and other.suffix == path.suffix
        )
    except OSError:
        return
    if beside:
        contents.notes.append(f"{some(beside)} beside {path} is not used; name {path.parent} to use it.")
