"""`cifar.training.data.folders`: pictures as people have them. Each kind asserts what is read, what is said, and what is left out.

Kinds that are refused are in `test_folders_refused.py`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.folders import flat, parts, put, table, tarred, zipped
from support.pictures import encoded, noise, truncated_jpeg

from cifar.settings import Settings
from cifar.training.data.dataset import read_dataset
from cifar.training.data.overview import summarize

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


@kind(validation=8, left_out={"files that are no pictures": 2})
def train_valid_and_test_as_label_tools_export_them(root):
    (parts(root, "train", "valid", "test") / "data.yaml").write_text("names: [cat, dog]")
    (root / "README.roboflow.txt").write_text("x")
    return root


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


@kind(16, 4, says="in sub-folders of their class, which are read too: 20")
def the_same_folders_below_each_class(root):
    for name in ("cat", "dog"):
        flat(root / name, batch1=5, batch2=5)
    return root


@kind(10, 2, says=(SPLIT, "Too small for that, and not tested: dog"))
def a_class_of_two(root):
    return flat(root, cat=10, dog=2)


@kind(18, 4, classes=("cat", "dog", "train"), says=SPLIT)
def a_class_called_train(root):
    return flat(root, cat=8, dog=7, train=7)


@kind(16, 4, says=("further down", SPLIT), left_out={"files that are no pictures": 1})
def two_folders_too_high(root):
    flat(root / "download" / "pets", cat=10, dog=10)
    (root / "LICENSE.txt").write_text("x")
    return root


@kind(says="further down")
def parts_one_folder_too_high(root):
    parts(root / "pets")
    return root


@kind(16, 4, says="Pictures of pets in sub-folders of their class, which are read too: 10")
def pictures_in_folders_below_a_class(root):
    flat(root, cat=10)
    flat(root / "dog", poodle=5, beagle=5)
    return root


@kind(16, 4, left_out={"folders without pictures": 1, "files that are no pictures": 2})
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


# --- side files, links and hidden things ------------------------------------------------------------------------------

_SIDE_FILES = "_about.txt annotations.xml metadata.json labels.txt README data.yaml classes.csv list.pdf notes"


@kind(left_out={"files that are no pictures": 18, "hidden files and files of operating systems": 12})
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


@kind(16, 4, left_out={"links to a folder that they lie in": 1})
def a_link_to_a_folder_above(root):
    flat(root, cat=10, dog=10)
    (root / "dog" / "up").symlink_to(root)
    return root


@kind(16, 4, left_out={"entries that are neither file nor folder": 1})
def a_pipe_that_would_never_end(root):
    flat(root, cat=10, dog=10)
    os.mkfifo(root / "cat" / "pipe.png")
    return root


# --- formats ----------------------------------------------------------------------------------------------------------


@kind(18, 4, says="2 transparent, put on white")
def every_format_and_endings_in_any_case(root):
    for ending in (".jpg", ".JPEG", ".Png", ".gif", ".webp", ".bmp", ".TIFF", ".avif", ".jpe", ".heic"):
        picture = noise(64, 64) if ending in {".heic", ".avif"} else None
        put(root / "cat" / f"a{ending}", picture)
    (root / "cat" / "without_ending").write_bytes(encoded(noise(8, 8, seed=9)))
    put(root / "dog" / "a.png", noise(8, 8, "RGBA"))
    put(root / "dog" / "b.png", noise(8, 8, "LA"))
    return flat(root, dog=9)


@kind(16, 4, says=("1 CMYK", "1 palette", "2 16 bits a channel", "2 animated"))
def pictures_that_lose_something(root):
    put(root / "cat" / "cmyk.jpg", noise(8, 8, "CMYK"))
    put(root / "cat" / "palette.png", noise(8, 8).convert("P"))
    put(root / "cat" / "16.png", Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999))
    put(root / "cat" / "16.tif", Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 998))
    for ending, format in ((".webp", "WEBP"), (".apng", "PNG")):
        frames = encoded(noise(8, 8), format, save_all=True, append_images=[noise(8, 8, seed=1)])
        put(root / "cat" / f"animated{ending}", frames)
    return flat(root, cat=4, dog=10)


@kind(16, 4, damaged=7)
def damaged_pictures(root):
    flat(root, cat=10, dog=10)
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    for number, content in enumerate((b"", truncated_jpeg(), b"<html>", lfs, b"\xff\xd8\xff\xe0")):
        put(root / "cat" / f"bad{number}.jpg", content)
    put(root / "dog" / "sign.ppm", b"P6 1 1 255 abc")
    put(root / "dog" / "drawing.svg", b"<svg/>")
    return root


# --- copies and imbalance ---------------------------------------------------------------------------------------------


@kind(says="Test pictures that are also training pictures: all")
def a_test_part_that_equals_the_training_part(root):
    parts(root, "train")
    shutil.copytree(root / "train", root / "test")
    return root


@kind(test=9, says="also training pictures: 1 of 9 .*test/dog/copy.bmp")
def a_test_picture_that_was_saved_in_another_format(root):
    parts(root)
    with Image.open(root / "train" / "dog" / "0.png") as image:
        put(root / "test" / "dog" / "copy.bmp", image)
    return root


@kind(9, says="in two classes: 1 .train/cat/0.png = train/dog/copy.png")
def a_picture_in_two_classes(root):
    parts(root)
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "dog" / "copy.png")
    return root


@kind(16, 4, says="copies of others")
def copies_within_a_class_stay_in_one_part(root):
    flat(root, cat=5, dog=10)
    for number in range(5):
        shutil.copy(root / "cat" / f"{number}.png", root / "cat" / f"copy{number}.png")
    return root


@kind(52, 1, says=("cat has 50 training images, dog only 2: a ratio of 25", "--class-weights"))
def one_class_many_times_larger(root):
    flat(root / "train", cat=50, dog=2)
    flat(root / "test", cat=1)
    return root


@kind(5, 0, says="One training image only: dog")
def a_class_of_one_picture(root):
    return flat(root / "train", cat=4, dog=1).parent


# --- archives ---------------------------------------------------------------------------------------------------------


@kind(16, 4, says=SPLIT)
def a_zip_of_class_folders(root):
    return zipped(flat(root / "pets", cat=10, dog=10), root / "pets.zip")


@kind(left_out={"hidden folders": 1})
def a_zip_that_a_mac_packed(root):
    parts(root / "all" / "pets")
    put(root / "all" / "__MACOSX" / "pets" / "._0.png", b"x")
    return zipped(root / "all", root / "pets.zip")


@kind()
def a_tgz_of_parts(root):
    return tarred(parts(root / "pets"), root / "pets.tgz", "gz")


@kind()
def a_tar_xz_of_parts(root):
    return tarred(parts(root / "pets"), root / "pets.tar.xz", "xz")


@kind()
def a_tar_of_parts_with_another_ending(root):
    return tarred(parts(root / "pets"), root / "pets.download", "")


@kind(4, 2, says="labels are those of pets/labels.csv")
def a_zip_of_pictures_and_a_table(root):
    files = [put(root / "pets" / "images" / f"{number}.png").name for number in range(6)]
    table(
        root / "pets",
        "id,label",
        [(name.removesuffix(".png"), "cat" if i % 2 else "dog") for i, name in enumerate(files)],
    )
    return zipped(root / "pets", root / "pets.zip")


# --- tables -----------------------------------------------------------------------------------------------------------


def pictures(root: Path, count: int = 10) -> list[tuple[str, str]]:
    """Write pictures into one folder, and return their names and labels."""
    return [(put(root / "images" / f"{i:03}.png").name, "dog" if i % 2 else "cat") for i in range(count)]


@kind(8, 2)
def a_csv_of_relative_paths(root):
    return table(root, "path,label", [(f"images/{name}", label) for name, label in pictures(root)])


@kind(8, 2)
def a_csv_without_a_header(root):
    return table(root, "", [(f"images/{name}", label) for name, label in pictures(root)])


@kind(8, 2)
def a_tsv_with_the_label_first(root):
    return table(root, "Class\tFile Name", [(label, name) for name, label in pictures(root)], "a.tsv", "\t")


@kind(8, 2, says="Columns of labels.csv that are not used: weight")
def a_csv_with_semicolons_backslashes_and_other_columns(root):
    rows = [(i, rf"C:\pets\images\{name}", label, 3.5) for i, (name, label) in enumerate(pictures(root))]
    return table(root, ";filename;category;weight", rows, delimiter=";")


@kind(6, 2, validation=2, classes=("2", "10"))
def a_csv_with_a_column_of_parts_and_numbers_as_labels(root):
    names = ["train"] * 6 + ["val"] * 2 + ["TEST"] * 2
    rows = [
        (name, 10 if label == "cat" else 2, part) for (name, label), part in zip(pictures(root), names, strict=True)
    ]
    return table(root, "image,target,split", rows)


@kind(
    8,
    2,
    left_out={
        "rows whose picture is not there or not unique": 1,
        "rows without a label": 1,
        "rows that repeat another row": 1,
    },
)
def a_csv_with_rows_that_cannot_be_used(root):
    rows = pictures(root)
    put(root / "images" / "unlabelled.png")
    return table(root, "path,label", [*rows, ("gone.png", "cat"), ("unlabelled.png", ""), rows[0]])


@kind(8, 2, says="labels are those of labels.csv")
def a_folder_of_pictures_with_a_table(root):
    return table(root, "image_id,breed", [(name.removesuffix(".png"), label) for name, label in pictures(root)]).parent


@kind(
    6,
    2,
    says="labels are those of labels.csv",
    left_out={"files that are no pictures": 1, "pictures that the table does not list": 3},
)
def a_competition_with_a_table_of_labels_and_a_sample_of_answers(root):
    rows = [(put(root / "train" / f"{i}.jpg").stem, "dog" if i % 2 else "cat") for i in range(8)]
    for number in range(3):
        put(root / "test" / f"t{number}.jpg")
    table(root, "id,cat,dog", [("0", 0.5, 0.5)], "sample_submission.csv")
    return table(root, "id,breed", rows).parent


@kind(5, 2, says="labels are those of train.csv, test.csv", left_out={"pictures that the table does not list": 3})
def a_folder_of_pictures_with_a_table_for_each_part(root):
    rows = pictures(root)
    table(root, "filename,label", rows[:5], "train.csv")
    return table(root, "filename,label", rows[5:7], "test.csv").parent


@kind(6, 4, says="labels are those of train/_classes.csv, test/_classes.csv")
def a_column_for_each_class_as_label_tools_export_it(root):
    for part, count in (("train", 6), ("test", 4)):
        rows = [(name, int(label == "cat"), int(label == "dog")) for name, label in pictures(root / part, count)]
        table(root / part, "filename, cat, dog", rows, "_classes.csv")
    return root


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_folder_is_read_and_nothing_is_lost_without_a_word(tmp_path, name):
    """People have pictures in many forms; what is not used must be counted and said."""
    expected = KINDS[name]
    source = expected.build(tmp_path / "pets")
    dataset = read_dataset(str(source), Settings(), image_shape=(8, 8, 3))
    summary = summarize(dataset)
    found = (summary["train_images"], summary.get("validation_images", 0), summary["test_images"])
    assert found == (expected.train, expected.validation, expected.test)
    assert dataset.class_names == expected.classes
    assert summary["damaged"] == expected.damaged
    assert summary["left_out"] == expected.left_out
    said = "\n".join(summary["findings"])
    for text in (*expected.says, *expected.left_out):
        assert any(re.search(text, line) for line in said.splitlines()), said
    assert len(dataset.contents.names) == sum(found)


def test_there_are_at_least_45_kinds():
    """The target of the corpus; `test_folders_refused.py` has more, which are refused."""
    assert len(KINDS) >= 45
