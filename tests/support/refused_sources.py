"""Sources of pictures that cannot be read: what they contain, and the words that their refusal must have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from support.folders import PICTURE, Link, flat, in_parts, put, tree, zipped

TWO_LABELS = "id,label\n0,cat\n1,dog\n"

# Folders: the words, the contents (see `tree`), and what the user names in the folder, by default the folder itself.
FOLDERS = {
    "an_empty_folder": ("holds no pictures", {}),
    "a_folder_of_other_files": (
        r"holds no pictures; left out: files that are not pictures: x\.parquet",
        {"x.parquet": b"PAR1"},
    ),
    "pictures_with_the_class_in_their_name": (
        r"has 3 pictures but no class folders. .* a CSV file of paths and labels. labels\.json may hold labels",
        {f"train/{name}.png": PICTURE for name in ("cat.0", "cat.1", "dog.0")}
        | {"test1/1.png": PICTURE, "labels.json": b"{}"},
    ),
    "a_single_class_folder_named_by_itself": (
        "If they are all of one class, name the folder above",
        {"cat": 3},
        "cat",
    ),
    "one_class": (r"has 1 class \(cat\) with pictures; at least two", {"cat": 3}),
    "an_empty_class": (
        "train/bird has no image: add some, or remove the folder",
        in_parts("train", "test") | {"train/bird": 0},
    ),
    "a_class_of_broken_links": (
        r"dog has no image \(broken links: 1\)",
        {"cat": 3, "bird": 3, "dog/1.png": Link("gone.png")},
    ),
    "class_names_that_differ_in_case_and_spaces": (
        "Cat  and cat, which differ only in case, in spaces",
        {"Cat ": 3, "cat": 3, "dog": 3},
    ),
    "a_class_name_with_a_line_break": (
        r"has a class 'cat\\n', whose name holds a line break",
        {"cat\n": 3, "dog": 3},
    ),
    "a_table_whose_label_has_a_line_break": (
        r"has a class 'big\\ncat', whose name holds a line break",
        {"0.png": PICTURE, "1.png": PICTURE, "labels.csv": 'path,label\n0.png,"big\ncat"\n1.png,dog\n'},
        "labels.csv",
    ),
    "a_test_part_with_another_class": (
        "test part of .* has the classes bird, which the training part lacks",
        in_parts("train", "test") | {"test/bird": 2},
    ),
    "two_training_parts": ("has Train, training: which is the train part", in_parts("Train", "training", "test")),
    "a_test_part_alone": ("has test but no training part", in_parts("test")),
    "two_data_sets_side_by_side": (
        r"holds more than one data set \(flowers, pets",
        in_parts("flowers/train", "flowers/test", "pets/train", "pets/test"),
    ),
    "folds_of_a_cross_validation": (
        "has fold_1, fold_2, each with the folders cat, dog. If they are parts, call them train",
        in_parts("fold_1", "fold_2"),
    ),
    "parts_of_each_class_as_image_translation_has_them": (
        "has testA, trainA, testB and 1 more. If each is a part of a class",
        {"trainA": 3, "trainB": 3, "testA": 3, "testB": 3},
    ),
    "parts_of_each_class_side_by_side": (
        "has cats_test, cats_train, dogs_test and 1 more. If each is a part of a class",
        {"cats_train": 3, "cats_test": 3, "dogs_train": 3, "dogs_test": 3},
    ),
    "the_same_classes_in_two_forms": (
        "has color, gray, and several of them have the folders cat, dog: either can be the classes",
        in_parts("color", "gray/images"),
    ),
    "the_classes_once_more_in_a_folder_beside_them": (
        "has no, yes, and once more below all. Move all away",
        {"all/yes": 3, "all/no": 3, "yes": 3, "no": 3},
    ),
    "pictures_and_their_masks": (
        r"no class folders, but folders of kinds of files \(annotations, images\)",
        {"annotations/trimaps": 3, "images": 3},
    ),
    "a_class_with_test_pictures_only": (
        "has no training picture of class dog that can be read. Add some",
        {"cat/train": 3, "cat/test": 3, "dog/test": 3, "dog/train": 0},
    ),
    "a_class_whose_pictures_are_all_damaged": (
        "has no training picture of class dog that can be read; 2 pictures are damaged",
        {"cat": 3, "dog/0.jpg": b"", "dog/1.jpg": b""},
    ),
    "an_empty_class_beside_a_table": (
        "bird has no image: add some",
        {"cat": 3, "dog": 3, "bird": 0, "labels.csv": b"path,label\nx,y\n"},
    ),
    "a_table_and_the_same_pictures_in_two_sizes": (
        r"names pictures that are there more than once, such as '0' \(.*/images_large/0.png",
        {"images_large": 2, "images_small": 2, "labels.csv": TWO_LABELS},
    ),
    "a_table_of_names_that_are_in_several_folders": (
        r"names pictures that are there more than once, such as '0' \(.*/test/0.png, .*/train/0.png\). Write the folder",
        {"train": 2, "test": 2, "labels.csv": TWO_LABELS},
    ),
    "two_tables": (
        r"several tables of labels \(a.csv, b.csv\): name one",
        {"images": 2, "a.csv": TWO_LABELS, "b.csv": TWO_LABELS},
    ),
    "a_folder_with_a_table_of_other_pictures": (
        "has no class folders, and .* lists no picture",
        {"1.png": PICTURE, "labels.csv": "path,label\n9.jpg,cat\n"},
    ),
    "a_table_whose_pictures_are_elsewhere": (
        "lists no picture that exists below",
        {"labels.csv": "path,label\n/mnt/d/1.jpg,cat\n/mnt/d/2.jpg,dog\n"},
        "labels.csv",
    ),
    "a_table_with_two_labels_for_a_picture": (
        r"has two labels for 0\.png",
        {"0.png": PICTURE, "labels.csv": "path,label\n0.png,cat\n0.png,dog\n"},
        "labels.csv",
    ),
    "a_table_without_labels": (
        "has no column that is called label or class; its columns: path, width, height",
        {"0.png": PICTURE, "labels.csv": "path,width,height\n0.png,8,8\n"},
        "labels.csv",
    ),
    "a_table_of_several_labels_each": (
        r"gives a picture several classes \(cat, dog\)",
        {"0.png": PICTURE, "labels.csv": "path,cat,dog\n0.png,1,1\n"},
        "labels.csv",
    ),
    "a_table_of_three_columns_without_a_header": (
        "has 3 columns and no header",
        {"0.png": PICTURE, "labels.csv": "0.png,cat,tabby\n"},
        "labels.csv",
    ),
    "a_table_of_one_column": ("does not have two columns", {"labels.csv": "path\n0.png\n"}, "labels.csv"),
}

# Files: the words, the ending of the name, and the content.
FILES = {
    "a_table_of_another_kind": (
        r"is a kind of table that is not supported. Save it as a \.csv file",
        ".parquet",
        b"PAR1",
    ),
    "another_kind_of_file": (
        r"is no data set: it is neither a zip or tar archive nor a \.csv or \.tsv table",
        ".rar",
        b"Rar!\x1a\x07\x00",
    ),
    "a_page_in_place_of_an_archive": (
        "is a web page, so the download failed",
        ".zip",
        b"<!DOCTYPE html><title>404",
    ),
    "an_archive_that_git_lfs_has_not_fetched": (
        "is a Git LFS pointer",
        ".zip",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    ),
}


def a_path_that_is_not_there(root: Path) -> Path:
    return root


def a_broken_link(root: Path) -> Path:
    root.symlink_to("gone")
    return root


def an_npz_of_arrays(root: Path) -> Path:
    np.savez(root.with_suffix(".npz"), x=np.zeros((2, 8, 8, 3), np.uint8))
    return root.with_suffix(".npz")


def a_zip_that_was_cut_off(root: Path) -> Path:
    path = zipped(flat(root, cat=3, dog=3), root.with_suffix(".zip"))
    path.write_bytes(path.read_bytes()[:-200])
    return path


def an_encrypted_zip(root: Path) -> Path:
    path = zipped(flat(root, cat=3, dog=3), root.with_suffix(".zip"))
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + flags] |= 1
    path.write_bytes(content)
    return path


def _write(root: Path, ending: str, content: bytes) -> Path:
    return put(root.with_suffix(ending), content)


REFUSED: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "a_path_that_is_not_there": ("pets does not exist", a_path_that_is_not_there),
    "a_broken_link": ("pets does not exist: it is a broken link", a_broken_link),
    "an_npz_of_arrays": (r"holds no pictures; left out: files that are not pictures: x\.npy", an_npz_of_arrays),
    "a_zip_that_was_cut_off": (r"pets\.zip is not a complete archive", a_zip_that_was_cut_off),
    "an_encrypted_zip": ("is encrypted", an_encrypted_zip),
    **{
        name: (words, partial(tree, contents=contents, named=named[0] if named else "."))
        for name, (words, contents, *named) in FOLDERS.items()
    },
    **{
        name: (words, partial(_write, ending=ending, content=content))
        for name, (words, ending, content) in FILES.items()
    },
}
"""The words of each refusal, and the function that builds the source in a folder and returns what the user names."""
