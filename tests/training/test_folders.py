"""`cifar.training.data.folders`: pictures as people have them. Each kind asserts what is read, what is said, and what is left out.

Kinds that are refused are in `test_folders_refused.py`.
"""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import support.table_kinds  # noqa: F401 - registers its kinds
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
