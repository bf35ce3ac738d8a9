"""Kinds of image folders: parts, class folders, side files and links. `test_folders.py` reads them, and has more kinds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from support.folders import PICTURE, Link, flat, in_parts, tree

SPLIT = "no test part: 20% of each class"


@dataclass(frozen=True)
class Kind:
    """One kind of folder, and what reading it must give."""

    build: Callable[[Path], Path]
    train: int
    test: int
    validation: int
    classes: tuple[str, ...]
    says: tuple[str, ...]
    """Texts that must be among the findings."""
    left_out: dict[str, int]
    damaged: int


def of(build, train=8, test=8, validation=0, classes=("cat", "dog"), says=(), left_out=None, damaged=0) -> Kind:
    """Return a kind of folder, from the function that builds it and from what reading it must give."""
    says = (says,) if isinstance(says, str) else says
    return Kind(build, train, test, validation, classes, says, left_out or {}, damaged)


def folder(contents, **expected) -> Kind:
    """Return a kind of folder, from its contents (see `tree`) and from what reading it must give."""
    return of(partial(tree, contents=contents), **expected)


unsplit = partial(folder, train=16, test=4)
"""A folder of 20 pictures without parts: a fifth of each class is set apart for testing."""
TWENTY = {"cat": 10, "dog": 10}
SIDE_FILES = "_about.txt annotations.xml metadata.json labels.txt README data.yaml classes.csv list.pdf notes"
SYSTEM_FILES = (".DS_Store", "Thumbs.db", "desktop.ini", "._1.png", ".gitkeep", "Icon\r")

KINDS = {
    "train_and_test": folder(in_parts("train", "test")),
    "parts_in_capitals": folder(in_parts("Train", "TEST")),
    "training_and_testing": folder(in_parts("Training", "Testing")),
    "training_set_and_test_set_that_wrap_themselves": folder(
        in_parts("training_set/training_set", "test_set/test_set")
    ),
    "seg_train_seg_test_and_unlabelled_seg_pred": folder(
        in_parts("seg_train/seg_train", "seg_test/seg_test") | {"seg_pred": 3},
        left_out={"pictures in folders beside the parts": 3},
    ),
    "parts_with_a_common_name": folder(
        in_parts("Pets_Train", "Pets_Test") | {"extra": 3},
        left_out={"pictures in folders beside the parts": 3},
        says="pictures in folders beside the parts: 3 .extra",
    ),
    "alphabet_train_that_wraps_itself_and_unsorted_alphabet_test": folder(
        in_parts("asl_alphabet_train/asl_alphabet_train") | {"asl_alphabet_test/asl_alphabet_test": 3},
        left_out={"pictures of parts without class folders": 3},
        test=0,
    ),
    "train_alone": folder(in_parts("train"), test=0),
    "train_val_and_test": folder(in_parts("train", "val", "test"), validation=8),
    "train_valid_and_test_as_label_tools_export_them": folder(
        in_parts("train", "valid", "test") | {"data.yaml": "names: [cat, dog]", "README.roboflow.txt": "x"},
        validation=8,
        left_out={"files that are not pictures": 2},
    ),
    "numbered_parts_by_other_names": folder(in_parts("01_train", "02_dev", "03 eval"), validation=8),
    "train_and_validation": folder(
        in_parts("train", "validation"), says="no test part, so the validation part is used for testing"
    ),
    "unlabelled_test_beside_val": folder(
        in_parts("train", "val") | {"test": 5},
        left_out={"pictures of parts without class folders": 5},
        says=("test has no folder of a class", "no test part"),
    ),
    "a_test_part_that_lacks_a_class": folder(
        in_parts("train") | {"test/cat": 4}, test=4, says="The test part has no picture of dog"
    ),
    "class_names_whose_case_differs_between_parts": folder(in_parts("train") | {"test/Cat": 4, "test/dog": 4}),
    "parts_within_each_class": folder({"cat/train": 4, "cat/test": 2, "dog/train": 4, "dog/test": 2}, train=8, test=4),
    "parts_one_folder_too_high": folder(in_parts("pets/train", "pets/test"), says="The class folders are in"),
    "flat_class_folders": unsplit(TWENTY, says=SPLIT),
    "names_that_are_not_utf_8": unsplit(
        {"cat": 10} | {os.fsdecode(b"caf\xe9/%d\xe9.png" % number): PICTURE for number in range(10)},
        classes=("caf\N{REPLACEMENT CHARACTER}", "cat"),
    ),
    "the_same_folders_below_each_class": unsplit(
        {"cat/batch1": 5, "cat/batch2": 5, "dog/batch1": 5, "dog/batch2": 5},
        says="in sub-folders of their class, and are read too: 20",
    ),
    "a_class_of_two": unsplit(
        {"cat": 10, "dog": 2},
        train=10,
        test=2,
        says=(SPLIT, "Classes that are too small for that, and are not tested: dog"),
    ),
    "a_class_called_train": unsplit(
        {"cat": 8, "dog": 7, "train": 7}, train=18, classes=("cat", "dog", "train"), says=SPLIT
    ),
    "two_folders_too_high": unsplit(
        {"download/pets/cat": 10, "download/pets/dog": 10, "LICENSE.txt": "x"},
        says=("The class folders are in", SPLIT),
        left_out={"files that are not pictures": 1},
    ),
    "pictures_in_folders_below_a_class": unsplit(
        {"cat": 10, "dog/poodle": 5, "dog/beagle": 5},
        says="Pictures of pets that are in sub-folders of their class, and are read too: 10",
    ),
    "annotations_beside_the_classes": unsplit(
        TWENTY | {"annotations/1.xml": "<x/>", "annotations/2.xml": "<x/>"},
        left_out={"folders without pictures": 1, "files that are not pictures": 2},
    ),
    "pictures_beside_the_class_folders": unsplit(
        TWENTY | {"cover.png": PICTURE, "logo.png": PICTURE}, left_out={"pictures outside the class folders": 2}
    ),
    "class_names_that_are_not_english": unsplit({"cat": 10, "日本犬 é": 10}, classes=("cat", "日本犬 é")),
    "classes_one_folder_deeper": unsplit(
        {"colon/colon_n": 5, "colon/colon_x": 5, "lung/lung_n": 5, "lung/lung_x": 5},
        classes=("colon", "lung"),
        says="If the folders in them .colon_n, colon_x, lung_n and 1 more. are the classes, move those up",
    ),
    "folders_that_rarely_are_classes": unsplit(
        {"2024-05-31": 7, "100APPLE": 5, "unlabeled": 5},
        train=14,
        test=3,
        classes=("100APPLE", "2024-05-31", "unlabeled"),
        says="Are these classes. 100APPLE, 2024-05-31, unlabeled",
    ),
    "a_list_of_the_test_pictures": unsplit(
        {"images/cat": 10, "images/dog": 10, "meta/test.txt": "cat/0"},
        left_out={"files that are not pictures": 1},
        says="meta/test.txt may say which pictures are for testing",
    ),
    "broken_links": unsplit(
        TWENTY | {"cat/a.png": Link("gone.png"), "cat/loop.png": Link("loop.png")}, left_out={"broken links": 2}
    ),
    "a_link_to_a_folder_above": unsplit(
        TWENTY | {"dog/up": Link("..")}, left_out={"links to a folder that contains them": 1}
    ),
    "side_files_of_systems_and_label_tools": folder(
        in_parts("train", "test")
        | {
            f"{folder}/{name}": "BMW is no bitmap" if name.endswith("txt") else "x"
            for folder in ("train", "test/cat")
            for name in (*SIDE_FILES.split(), *SYSTEM_FILES)
        },
        left_out={"files that are not pictures": 18, "hidden files and files of operating systems": 12},
    ),
    "hidden_folders_one_of_them_with_pictures": folder(
        in_parts("train", "test") | {".git": 0, "train/.ipynb_checkpoints": 3},
        left_out={"hidden folders": 2, "pictures in hidden folders": 3},
    ),
}


def kind(*pictures, **expected):
    """Register a function that builds a kind of folder; see `of`."""

    def register(build):
        KINDS[build.__name__] = of(build, *pictures, **expected)
        return build

    return register


@kind(16, 4, says=("test beside .* is not used", SPLIT))
def only_the_training_folder_named(root):
    contents = {f"{part}/{name}": 10 for part in ("train", "test") for name in ("cat", "dog")}
    return tree(root, contents, named="train")


@kind(16, 4, says="Links that lead out of the folder and are followed: 10")
def links_out_of_the_folder(root):
    elsewhere = flat(root.with_name("elsewhere"), dog=10)
    links = {f"dog/{path.name}": Link(path) for path in (elsewhere / "dog").iterdir()}
    return tree(root, {"cat": 10} | links)


@kind(16, 4, left_out={"entries that are neither file nor folder": 1})
def a_pipe_that_would_never_end(root):
    tree(root, TWENTY)
    os.mkfifo(root / "cat" / "pipe.png")
    return root
