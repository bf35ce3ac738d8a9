"""`cifar.training.data.folders`: pictures as people have them. Each kind asserts what is read, what is said, and what is left out.

Kinds that are refused are in `test_folders_refused.py`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.folder_kinds import KINDS, SPLIT, kind
from support.folders import flat, parts, put, table, tarred, zipped
from support.pictures import encoded, noise, truncated_jpeg

from cifar.settings import Settings
from cifar.training.data.dataset import read_dataset
from cifar.training.data.overview import summarize

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


@kind(16, 4, classes=("part_1", "part_2"), says="Are these classes. part_1, part_2 are called alike but for a number")
def numbered_folders_without_a_table(root):
    return flat(root, part_1=10, part_2=10)


@kind(6, 2, says="labels are those of metadata.csv")
def numbered_folders_that_only_cut_the_pictures_into_pieces(root):
    rows = [
        (f"L{i}", put(root / f"skin_images_part_{i % 2 + 1}" / f"{i:03}.jpg").stem, "dog" if i % 3 else "cat")
        for i in range(8)
    ]
    return table(root, "lesion_id,image_id,dx", rows, "metadata.csv").parent


@kind(5, 2, says="labels are those of train.csv, test.csv", left_out={"pictures that the table does not list": 3})
def a_folder_of_pictures_with_a_table_for_each_part(root):
    rows = pictures(root)
    table(root, "filename,label", rows[:5], "train.csv")
    return table(root, "filename,label", rows[5:7], "test.csv").parent


@kind(
    8,
    2,
    classes=("cat", "cat dog"),
    says="Labels that look like several in one cell are read as classes of their own: cat dog",
    left_out={"files that are no pictures": 1, "pictures that the table does not list": 3},
)
def a_competition_whose_test_table_has_no_labels(root):
    rows = [(put(root / "train" / f"{i}.jpg").stem, "cat dog" if i % 2 else "cat") for i in range(10)]
    table(root, "id", [(put(root / "test" / f"t{i}.jpg").stem,) for i in range(3)], "test.csv")
    return table(root, "id,breed", rows, "train.csv").parent


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
