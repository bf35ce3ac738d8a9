"""Kinds of image folders: parts, class folders, side files and links. `test_folders.py` has more, and reads them all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.folders import flat, parts, put

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


KINDS: dict[str, Kind] = {}


def kind(train=8, test=8, validation=0, classes=("cat", "dog"), says=(), left_out=None, damaged=0):
    """Register a function that builds a kind of folder."""

    def register(build):
        KINDS[build.__name__] = Kind(
            build, train, test, validation, classes, (says,) if isinstance(says, str) else says, left_out or {}, damaged
        )
        return build

    return register


# --- parts ------------------------------------------------------------------------------------------------------------


@kind()
def train_and_test(root):
    return parts(root)


@kind()
def parts_in_capitals(root):
    return parts(root, "Train", "TEST")


@kind()
def training_and_testing(root):
    return parts(root, "Training", "Testing")


@kind()
def training_set_and_test_set_that_wrap_themselves(root):
    parts(root / "training_set", "training_set")
    parts(root / "test_set", "test_set")
    return root


@kind(left_out={"pictures in folders beside the parts": 3})
def seg_train_seg_test_and_unlabelled_seg_pred(root):
    for part in ("seg_train", "seg_test"):
        parts(root / part, part)
    return flat(root, seg_pred=3)


@kind(left_out={"pictures in folders beside the parts": 3}, says="pictures in folders beside the parts: 3 .extra")
def parts_with_a_common_name(root):
    parts(root, "Pets_Train", "Pets_Test")
    return flat(root, extra=3)


@kind(left_out={"pictures of parts without class folders": 3}, test=0)
def alphabet_train_that_wraps_itself_and_unsorted_alphabet_test(root):
    parts(root / "asl_alphabet_train", "asl_alphabet_train")
    flat(root / "asl_alphabet_test", asl_alphabet_test=3)
    return root


@kind(test=0)
def train_alone(root):
    return parts(root, "train")


@kind(validation=8)
def train_val_and_test(root):
    return parts(root, "train", "val", "test")


@kind(validation=8, left_out={"files that are not pictures": 2})
def train_valid_and_test_as_label_tools_export_them(root):
    (parts(root, "train", "valid", "test") / "data.yaml").write_text("names: [cat, dog]")
    (root / "README.roboflow.txt").write_text("x")
    return root


@kind(validation=8)
def numbered_parts_by_other_names(root):
    return parts(root, "01_train", "02_dev", "03 eval")


@kind(says="no test part, so the validation part is used for testing")
def train_and_validation(root):
    return parts(root, "train", "validation")


@kind(left_out={"pictures of parts without class folders": 5}, says=("test has no folder of a class", "no test part"))
def unlabelled_test_beside_val(root):
    parts(root, "train", "val")
    return flat(root, test=5)


@kind(test=4, says="The test part has no picture of dog")
def a_test_part_that_lacks_a_class(root):
    parts(root)
    shutil.rmtree(root / "test" / "dog")
    return root


@kind()
def class_names_whose_case_differs_between_parts(root):
    parts(root)
    (root / "test" / "cat").rename(root / "test" / "Cat")
    return root


@kind(train=8, test=4)
def parts_within_each_class(root):
    for name in ("cat", "dog"):
        flat(root / name, train=4, test=2)
    return root


@kind(16, 4, says=("test beside .* is not used", SPLIT))
def only_the_training_folder_named(root):
    return parts(root, "train", "test", cat=10, dog=10) / "train"


# --- class folders without parts --------------------------------------------------------------------------------------


@kind(16, 4, says=SPLIT)
def flat_class_folders(root):
    return flat(root, cat=10, dog=10)


@kind(16, 4, classes=("caf\N{REPLACEMENT CHARACTER}", "cat"))
def names_that_are_not_utf_8(root):
    flat(root, cat=10)
    for number in range(10):
        put(root / os.fsdecode(b"caf\xe9") / os.fsdecode(b"%d\xe9.png" % number))
    return root


@kind(16, 4, says="in sub-folders of their class, and are read too: 20")
def the_same_folders_below_each_class(root):
    for name in ("cat", "dog"):
        flat(root / name, batch1=5, batch2=5)
    return root


@kind(10, 2, says=(SPLIT, "Classes that are too small for that, and are not tested: dog"))
def a_class_of_two(root):
    return flat(root, cat=10, dog=2)


@kind(18, 4, classes=("cat", "dog", "train"), says=SPLIT)
def a_class_called_train(root):
    return flat(root, cat=8, dog=7, train=7)


@kind(16, 4, says=("The class folders are in", SPLIT), left_out={"files that are not pictures": 1})
def two_folders_too_high(root):
    flat(root / "download" / "pets", cat=10, dog=10)
    (root / "LICENSE.txt").write_text("x")
    return root


@kind(says="The class folders are in")
def parts_one_folder_too_high(root):
    parts(root / "pets")
    return root


@kind(16, 4, says="Pictures of pets that are in sub-folders of their class, and are read too: 10")
def pictures_in_folders_below_a_class(root):
    flat(root, cat=10)
    flat(root / "dog", poodle=5, beagle=5)
    return root


@kind(16, 4, left_out={"folders without pictures": 1, "files that are not pictures": 2})
def annotations_beside_the_classes(root):
    flat(root, cat=10, dog=10)
    for name in ("1.xml", "2.xml"):
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / name).write_text("<x/>")
    return root


@kind(16, 4, left_out={"pictures outside the class folders": 2})
def pictures_beside_the_class_folders(root):
    put(root / "cover.png")
    put(root / "logo.png")
    return flat(root, cat=10, dog=10)


@kind(16, 4, classes=("cat", "日本犬 é"))
def class_names_that_are_not_english(root):
    return flat(root, **{"cat": 10, "日本犬 é": 10})


@kind(
    16,
    4,
    classes=("colon", "lung"),
    says="If the folders in them .colon_n, colon_x, lung_n and 1 more. are the classes, move those up",
)
def classes_one_folder_deeper(root):
    flat(root / "colon", colon_n=5, colon_x=5)
    return flat(root / "lung", lung_n=5, lung_x=5).parent


@kind(14, 3, classes=("100APPLE", "cat", "unlabeled"), says="Are these classes. 100APPLE, unlabeled")
def folders_that_rarely_are_classes(root):
    return flat(root, cat=7, **{"100APPLE": 5, "unlabeled": 5})


@kind(16, 4, left_out={"files that are not pictures": 1}, says="meta/test.txt may say which pictures are for testing")
def a_list_of_the_test_pictures(root):
    flat(root / "images", cat=10, dog=10)
    (root / "meta").mkdir()
    (root / "meta" / "test.txt").write_text("cat/0")
    return root


# --- side files, links and hidden things ------------------------------------------------------------------------------

_SIDE_FILES = "_about.txt annotations.xml metadata.json labels.txt README data.yaml classes.csv list.pdf notes"


@kind(left_out={"files that are not pictures": 18, "hidden files and files of operating systems": 12})
def side_files_of_systems_and_label_tools(root):
    parts(root)
    for folder in (root / "train", root / "test" / "cat"):
        for name in _SIDE_FILES.split():
            (folder / name).write_text("BMW is no bitmap" if name.endswith("txt") else "x")
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._1.png", ".gitkeep", "Icon\r"):
            (folder / name).write_bytes(b"x")
    return root


@kind(left_out={"hidden folders": 2, "pictures in hidden folders": 3})
def hidden_folders_one_of_them_with_pictures(root):
    parts(root)
    (root / ".git").mkdir()
    flat(root / "train", **{".ipynb_checkpoints": 3})
    return root


@kind(16, 4, left_out={"broken links": 2})
def broken_links(root):
    flat(root, cat=10, dog=10)
    for name in ("a.png", "loop.png"):
        (root / "cat" / name).symlink_to("loop.png" if name == "loop.png" else "gone.png")
    return root


@kind(16, 4, says="Links that lead out of the folder and are followed: 10")
def links_out_of_the_folder(root):
    elsewhere = flat(root.with_name("elsewhere"), dog=10)
    flat(root, cat=10)
    (root / "dog").mkdir()
    for path in (elsewhere / "dog").iterdir():
        (root / "dog" / path.name).symlink_to(path)
    return root


@kind(16, 4, left_out={"links to a folder that contains them": 1})
def a_link_to_a_folder_above(root):
    flat(root, cat=10, dog=10)
    (root / "dog" / "up").symlink_to(root)
    return root


@kind(16, 4, left_out={"entries that are neither file nor folder": 1})
def a_pipe_that_would_never_end(root):
    flat(root, cat=10, dog=10)
    os.mkfifo(root / "cat" / "pipe.png")
    return root
