"""`cifar.training.data.folders`: sources that are refused, each with a true sentence and a way out; and what is hostile."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.folders import flat, packed, put
from support.pictures import encoded, noise
from support.refused_sources import REFUSED

from cifar.errors import DataError
from cifar.settings import Settings
from cifar.training.data.dataset import load_dataset, read_dataset
from cifar.training.data.folders import archive
from cifar.training.data.folders.lookup import Files
from cifar.training.data.overview import summarize, write_damaged, write_sheet


def read(source: Path):
    return read_dataset(str(source), Settings(), image_shape=(8, 8, 3))


@pytest.mark.parametrize("name", REFUSED)
def test_a_source_that_cannot_be_read_is_refused_with_a_true_sentence(tmp_path, name):
    """The message names the path, not a temporary one, fits in three lines, and has no advice for callers of the API."""
    words, build = REFUSED[name]
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


def test_thousands_of_files_of_one_name_are_found_by_their_folders(tmp_path):
    """Scans of patients are all called alike; with paths of another machine, the time must not grow with the square of their number."""
    paths = [tmp_path / f"p{number}" / "scan" / "1.png" for number in range(1000)]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    files, started = Files(tmp_path, contained=False), time.process_time()
    assert [files.find(f"D:\\all\\P{number}\\scan\\1.PNG") for number in range(1000)] == paths
    assert time.process_time() - started < 5
    assert files.find("1.png") is None


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
