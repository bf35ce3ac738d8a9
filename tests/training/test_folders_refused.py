"""`cifar.training.data.folders`: sources that are refused, each with a true sentence and a way out; and what is hostile."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.folders import flat, parts, put, table, zipped
from support.pictures import encoded, noise

from cifar.errors import DataError
from cifar.settings import Settings
from cifar.training.data.dataset import load_dataset, read_dataset
from cifar.training.data.folders import archive
from cifar.training.data.overview import summarize, write_damaged, write_sheet

REFUSED = {}


def refused(words):
    """Register a function that builds a source, and the words that its refusal must have."""

    def register(build):
        REFUSED[build.__name__] = build, words
        return build

    return register


def read(source: Path):
    return read_dataset(str(source), Settings(), image_shape=(8, 8, 3))


@refused("pets does not exist")
def a_path_that_is_not_there(root):
    return root


@refused("pets does not exist: it is a broken link")
def a_broken_link(root):
    root.symlink_to("gone")
    return root


@refused("holds no pictures")
def an_empty_folder(root):
    root.mkdir()
    return root


@refused(r"holds no pictures; left out: files that are not pictures: x\.parquet")
def a_folder_of_other_files(root):
    put(root / "x.parquet", b"PAR1")
    return root


@refused(r"has 3 pictures but no class folders. .* a CSV file of paths and labels. labels\.json may hold labels")
def pictures_with_the_class_in_their_name(root):
    for name in ("cat.0", "cat.1", "dog.0"):
        put(root / "train" / f"{name}.png")
    put(root / "test1" / "1.png")
    (root / "labels.json").write_text("{}")
    return root


@refused("If they are all of one class, name the folder above")
def a_single_class_folder_named_by_itself(root):
    return flat(root, cat=3) / "cat"


@refused(r"has 1 class \(cat\) with pictures; at least two")
def one_class(root):
    return flat(root, cat=3)


@refused("train/bird has no image: add some, or remove the folder")
def an_empty_class(root):
    parts(root)
    (root / "train" / "bird").mkdir()
    return root


@refused(r"dog has no image \(broken links: 1\)")
def a_class_of_broken_links(root):
    flat(root, cat=3, bird=3)
    (root / "dog").mkdir()
    (root / "dog" / "1.png").symlink_to("gone.png")
    return root


@refused("Cat  and cat, which differ only in case, in spaces")
def class_names_that_differ_in_case_and_spaces(root):
    return flat(root, **{"Cat ": 3, "cat": 3, "dog": 3})


@refused(r"has a class 'cat\\n', whose name holds a line break")
def a_class_name_with_a_line_break(root):
    return flat(root, **{"cat\n": 3, "dog": 3})


@refused("test part of .* has the classes bird, which the training part lacks")
def a_test_part_with_another_class(root):
    parts(root)
    return flat(root / "test", bird=2).parent


@refused("has Train, training: which is the train part")
def two_training_parts(root):
    return parts(root, "Train", "training", "test")


@refused("has test but no training part")
def a_test_part_alone(root):
    return parts(root, "test")


@refused(r"holds more than one data set \(flowers, pets")
def two_data_sets_side_by_side(root):
    parts(root / "flowers")
    return parts(root / "pets").parent


@refused("has fold_1, fold_2, each with the folders cat, dog. If they are parts, call them train")
def folds_of_a_cross_validation(root):
    return parts(root, "fold_1", "fold_2")


@refused("has testA, trainA, testB and 1 more. If each is a part of a class")
def parts_of_each_class_as_image_translation_has_them(root):
    return flat(root, trainA=3, trainB=3, testA=3, testB=3)


@refused(r"names pictures that are there more than once, such as '0' \(.*/images_large/0.png")
def a_table_and_the_same_pictures_in_two_sizes(root):
    flat(root, images_large=2, images_small=2)
    return table(root, "id,label", [(0, "cat"), (1, "dog")]).parent


@refused("has cats_test, cats_train, dogs_test and 1 more. If each is a part of a class")
def parts_of_each_class_side_by_side(root):
    return flat(root, cats_train=3, cats_test=3, dogs_train=3, dogs_test=3)


@refused(r"has color, gray, and several of them have the folders cat, dog: either can be the classes")
def the_same_classes_in_two_forms(root):
    parts(root, "color")
    parts(root / "gray", "images")
    return root


@refused("has no, yes, and once more below all. Move all away")
def the_classes_once_more_in_a_folder_beside_them(root):
    flat(root / "all", yes=3, no=3)
    return flat(root, yes=3, no=3)


@refused(r"no class folders, but folders of kinds of files \(annotations, images\)")
def pictures_and_their_masks(root):
    flat(root / "annotations", trimaps=3)
    return flat(root, images=3)


@refused(
    r"names pictures that are there more than once, such as '0' \(.*/test/0.png, .*/train/0.png\). Write the folder"
)
def a_table_of_names_that_are_in_several_folders(root):
    for part in ("train", "test"):
        flat(root, **{part: 2})
    return table(root, "id,label", [(0, "cat"), (1, "dog")]).parent


@refused(r"several tables of labels \(a.csv, b.csv\): name one")
def two_tables(root):
    flat(root, images=2)
    for name in ("a.csv", "b.csv"):
        table(root, "id,label", [(0, "cat"), (1, "dog")], name)
    return root


@refused(r"is a kind of table that is not supported. Save it as a \.csv file")
def a_table_of_another_kind(root):
    return put(root.with_suffix(".parquet"), b"PAR1")


@refused("has no training picture of class dog that can be read. Add some")
def a_class_with_test_pictures_only(root):
    flat(root / "cat", train=3, test=3)
    flat(root / "dog", test=3)
    (root / "dog" / "train").mkdir()
    return root


@refused("bird has no image: add some")
def an_empty_class_beside_a_table(root):
    (flat(root, cat=3, dog=3) / "bird").mkdir()
    return table(root, "path,label", [("x", "y")]).parent


@refused("has no training picture of class dog that can be read; 2 pictures are damaged")
def a_class_whose_pictures_are_all_damaged(root):
    flat(root, cat=3)
    for number in range(2):
        put(root / "dog" / f"{number}.jpg", b"")
    return root


@refused(r"is no data set: it is neither a zip or tar archive nor a \.csv or \.tsv table")
def another_kind_of_file(root):
    return put(root.with_suffix(".rar"), b"Rar!\x1a\x07\x00")


@refused("is a web page, so the download failed")
def a_page_in_place_of_an_archive(root):
    return put(root.with_suffix(".zip"), b"<!DOCTYPE html><title>404")


@refused("is a Git LFS pointer")
def an_archive_that_git_lfs_has_not_fetched(root):
    return put(root.with_suffix(".zip"), b"version https://git-lfs.github.com/spec/v1\noid sha256:0")


@refused(r"holds no pictures; left out: files that are not pictures: x\.npy")
def an_npz_of_arrays(root):
    np.savez(root.with_suffix(".npz"), x=np.zeros((2, 8, 8, 3), np.uint8))
    return root.with_suffix(".npz")


@refused(r"pets\.zip is not a complete archive")
def a_zip_that_was_cut_off(root):
    path = zipped(flat(root, cat=3, dog=3), root.with_suffix(".zip"))
    path.write_bytes(path.read_bytes()[:-200])
    return path


@refused("is encrypted")
def an_encrypted_zip(root):
    path = zipped(flat(root, cat=3, dog=3), root.with_suffix(".zip"))
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + flags] |= 1
    path.write_bytes(content)
    return path


@refused("lists no picture that exists below")
def a_table_whose_pictures_are_elsewhere(root):
    return table(root, "path,label", [("/mnt/d/1.jpg", "cat"), ("/mnt/d/2.jpg", "dog")])


@refused(r"has two labels for 0\.png")
def a_table_with_two_labels_for_a_picture(root):
    put(root / "0.png")
    return table(root, "path,label", [("0.png", "cat"), ("0.png", "dog")])


@refused("has no column that is called label or class; its columns: path, width, height")
def a_table_without_labels(root):
    put(root / "0.png")
    return table(root, "path,width,height", [("0.png", 8, 8)])


@refused(r"gives a picture several classes \(cat, dog\)")
def a_table_of_several_labels_each(root):
    put(root / "0.png")
    return table(root, "path,cat,dog", [("0.png", 1, 1)])


@refused("has 3 columns and no header")
def a_table_of_three_columns_without_a_header(root):
    put(root / "0.png")
    return table(root, "", [("0.png", "cat", "tabby")])


@refused("does not have two columns")
def a_table_of_one_column(root):
    return table(root, "path", [("0.png",)])


@refused("has no class folders, and .* lists no picture")
def a_folder_with_a_table_of_other_pictures(root):
    put(root / "1.png")
    return table(root, "path,label", [("9.jpg", "cat")]).parent


@pytest.mark.parametrize("name", REFUSED)
def test_a_source_that_cannot_be_read_is_refused_with_a_true_sentence(tmp_path, name):
    """The message names the path, not a temporary one, fits in three lines, and has no advice for callers of the API."""
    build, words = REFUSED[name]
    source = build(tmp_path / "pets")
    with pytest.raises(DataError, match=words) as caught:
        read(source)
    message = str(caught.value)
    assert str(source) in message or "pets" in message
    assert "cifar-data-" not in message
    assert len(message) < 600
    assert len(message.splitlines()) <= 3
    assert "Send" not in message


def test_thousands_of_damaged_pictures_are_named_in_three_lines_and_can_be_left_out(tmp_path, capsys):
    """The file that Microsoft's cats and dogs come in has hundreds of them; a way on must not need a script."""
    flat(tmp_path / "pets", cat=8, dog=8)
    for number in range(2000):
        put(tmp_path / "pets" / "cat" / f"bad{number:04}.jpg", b"\xff\xd8\xff broken" if number else b"")
    with pytest.raises(DataError) as caught:
        load_dataset(str(tmp_path / "pets"), Settings(), image_shape=(8, 8, 3))
    message = str(caught.value)
    assert "2,000 of 2,016 pictures" in message
    assert "cat/bad0000.jpg (empty file)" in message
    assert "--skip-damaged" in message
    assert "Send" not in message
    assert len(message.splitlines()) <= 3
    dataset = load_dataset(str(tmp_path / "pets"), Settings(), image_shape=(8, 8, 3), skip_damaged=True)
    assert len(dataset.train_labels) + len(dataset.test_labels) == 16
    assert "Left out: damaged pictures: 2,000 (cat/bad0000.jpg: empty file, " in capsys.readouterr().err
    write_damaged(dataset, tmp_path / "damaged.tsv")
    lines = (tmp_path / "damaged.tsv").read_text().splitlines()
    assert (len(lines), lines[0]) == (2000, "cat/bad0000.jpg\tempty file")


def test_a_file_that_may_not_be_read_is_damaged_and_a_folder_is_left_out():
    """Permissions of a mounted disk must neither stop the reading nor hide pictures."""
    folder = Path(tempfile.mkdtemp(prefix="cifar-tests-"))
    folder.chmod(0o755)
    try:
        flat(folder, cat=6, dog=6)
        (folder / "cat" / "0.png").chmod(0)
        (folder / "dog" / "locked").mkdir(mode=0)
        if os.geteuid() == 0:
            os.seteuid(65534)
        summary = summarize(dataset := read(folder))
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        (folder / "dog" / "locked").chmod(0o700)
        shutil.rmtree(folder)
    assert dataset.contents.damaged == {"cat/0.png": "Permission denied"}
    assert summary["left_out"] == {"folders that cannot be opened": 1}


def packed(path: Path, members: dict[str, bytes], *, links: dict[str, str] | None = None) -> Path:
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


def pictures(**counts: int) -> dict[str, bytes]:
    return {
        f"{name}/{i}.png": encoded(noise(8, 8, seed=len(name) * 100 + i))
        for name, n in counts.items()
        for i in range(n)
    }


@pytest.mark.parametrize("ending", [".zip", ".tgz"])
def test_members_that_would_leave_the_folder_are_not_unpacked(tmp_path, ending):
    """An archive from the internet must not write anywhere else; what is left out is counted."""
    evil = dict.fromkeys(
        ("../evil.png", "/tmp/evil-cifar.png", "cat/../../evil.png", "C:\\evil.png", "\\evil.png"), b"evil"
    )
    path = packed(tmp_path / f"pets{ending}", pictures(cat=5, bird=5) | evil | {"cat/0.png/x.png": b"evil"})
    dataset = read(path)
    assert summarize(dataset)["left_out"] == {"members of the archive with unsafe or repeated paths": 6}
    assert len(dataset.contents.names) == 10
    assert not (tmp_path / "evil.png").exists()
    assert not Path("/tmp/evil-cifar.png").exists()


def test_links_in_an_archive_lead_to_its_members_only(tmp_path):
    """A link to /etc would otherwise be read as a class."""
    secret = flat(tmp_path / "secret", dog=3)
    links = {
        "cat/link.png": "1.png",
        "cat/out.png": str(secret / "dog" / "0.png"),
        "dog": str(secret / "dog"),
        "cat/a": "a",
    }
    dataset = read(packed(tmp_path / "pets.tgz", pictures(cat=5, bird=5), links=links))
    assert dataset.class_names == ("bird", "cat")
    assert "cat/link.png" in dataset.contents.names
    assert summarize(dataset)["left_out"] == {"broken links": 3}


def test_a_table_in_an_archive_cannot_name_files_outside_it(tmp_path):
    """It came from somewhere else, and must not show what is on this disk."""
    secret = put(tmp_path / "secret.png")
    names = [*pictures(all=6)]
    rows = "".join(f"{name},{'cat' if i % 2 else 'dog'}\n" for i, name in enumerate(names))
    members = pictures(all=6) | {"labels.csv": f"path,label\n{rows}{secret},cat\n../secret.png,dog\n".encode()}
    dataset = read(packed(tmp_path / "pets.zip", members))
    assert summarize(dataset)["left_out"] == {"rows whose picture is missing or not unique": 2}
    assert len(dataset.contents.names) == 6


@pytest.mark.parametrize("ending", [".zip", ".tgz"])
def test_an_archive_that_unpacks_to_many_times_its_size_is_refused(tmp_path, monkeypatch, ending):
    """A bomb of a few kilobytes must not fill the disk."""
    monkeypatch.setattr(archive, "ANY_RATIO_BYTES", 100_000)
    path = packed(tmp_path / f"pets{ending}", pictures(cat=5, dog=5) | {"cat/bomb.bmp": bytes(20_000_000)})
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        read(path)


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8"])
def test_names_in_a_zip_of_another_system_are_decoded(tmp_path, encoding):
    """Chinese Windows writes GBK and old Linux tools UTF-8, both without the flag that says so."""
    names = {"1" * len("小猫".encode(encoding)): "小猫", "2" * len("小狗".encode(encoding)): "小狗"}
    path = packed(tmp_path / "pets.zip", pictures(**dict.fromkeys(names, 4)))
    content = path.read_bytes()
    for written, name in names.items():
        content = content.replace(f"{written}/".encode(), f"{name}/".encode(encoding))
    path.write_bytes(content)
    dataset = read(path)
    assert set(dataset.class_names) == {"小猫", "小狗"}
    assert ("read as Chinese (GB 18030)" in str(dataset.findings())) == (encoding == "gb18030")


def test_the_test_images_that_are_set_apart_stay_the_same(tmp_path):
    """`evaluate` must find the images that `train` did not see, whatever the image size, the names and the order of the files."""
    flat(tmp_path / "pets", cat=20, dog=20)
    before = load_dataset(str(tmp_path / "pets"), Settings(), image_shape=(8, 8, 3))
    for number, path in enumerate(sorted((tmp_path / "pets" / "cat").iterdir())):
        path.rename(path.with_name(f"renamed{99 - number}.png"))
    after = load_dataset(str(tmp_path / "pets"), Settings(), image_shape=(8, 8, 3))
    assert {image.tobytes() for image in before.test_images} == {image.tobytes() for image in after.test_images}
    larger = load_dataset(str(tmp_path / "pets"), Settings(), image_shape=(16, 16, 3))
    names = [set(dataset.contents.names[len(dataset.train_labels) :]) for dataset in (after, larger)]
    assert names[0] == names[1]
    assert np.bincount(after.test_labels).tolist() == [4, 4]


def test_the_contact_sheet_has_a_row_for_each_class(tmp_path):
    """A person sees at a glance whether labels and colours are right."""
    for name in ("blue", "red"):
        for number in range(4):
            put(tmp_path / "pets" / name / f"{number}.png", Image.new("RGB", (8 + number, 8), name))
    write_sheet(read(tmp_path / "pets"), tmp_path / "sheets" / "sheet.png")
    with Image.open(tmp_path / "sheets" / "sheet.png") as sheet:
        middle, height = sheet.width // 20, sheet.height // 2
        assert [sheet.getpixel((middle, row * height + height // 2)) for row in (0, 1)] == [(0, 0, 255), (255, 0, 0)]
