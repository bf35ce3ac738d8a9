"""The command `data`, and what `train` and `evaluate` say of a data set before they begin."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from support.folders import flat, put

from cifar.cli.main import main


@pytest.fixture
def pets(tmp_path):
    """Cats and dogs without parts: a damaged picture, a side file, a link that leads nowhere."""
    folder = flat(tmp_path / "pets", cat=10, dog=30)
    put(folder / "cat" / "bad.jpg", b"")
    (folder / "notes.txt").write_text("x")
    (folder / "dog" / "gone.png").symlink_to("nowhere.png")
    return folder


def test_data_shows_classes_parts_and_what_was_left_out_as_a_table(pets, tmp_path, capsys):
    """A person must see before training what was read and what was not; damaged pictures fail the check."""
    sheet, damaged = tmp_path / "sheet.png", tmp_path / "damaged.tsv"
    assert main(["data", str(pets), "--sheet", str(sheet), "--damaged", str(damaged)]) == 1
    out, err = capsys.readouterr()
    table = [line.split() for line in out.splitlines()]
    for line in (["class", "train", "test"], ["cat", "8", "2"], ["dog", "24", "6"], ["all", "32", "8"]):
        assert line in table
    for line in (
        "1  files that are not pictures: notes.txt",
        "1  broken links: dog/gone.png",
        "cat/bad.jpg (empty file)",
    ):
        assert line in out
    assert "20% of each class are set apart" in out
    assert f"The contact sheet is in {sheet}." in err
    assert "1 of 41 pictures" in err
    assert "--skip-damaged" in err
    assert damaged.read_text() == "cat/bad.jpg\tempty file\n"
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


def test_data_prints_the_same_as_json_and_accepts_damage_on_request(pets, tmp_path, capsys):
    """A script can check a folder, and decide for itself what is too much."""
    assert main(["data", str(pets), "--skip-damaged", "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    held = json.loads(capsys.readouterr().out)
    assert held["train_images_by_class"] == {"cat": 8, "dog": 24}
    assert held["left_out"] == {"broken links": 1, "files that are not pictures": 1}
    assert held["damaged"] == 1
    assert held["formats"] == {"PNG": 40}


def test_data_of_a_sheet_that_cannot_be_written_fails(pets, tmp_path, capsys):
    """A place that was named must not be passed over in silence."""
    (tmp_path / "file").write_text("x")
    assert main(["data", str(pets), "--skip-damaged", "--sheet", str(tmp_path / "file" / "sheet.png")]) == 1
    assert "cannot be used" in capsys.readouterr().err


def test_train_stops_at_damaged_pictures_before_it_begins(pets, tmp_path, capsys):
    """The message has the way on, and no run folder is left."""
    assert main(["train", "--data", str(pets), "--out", str(tmp_path / "run")]) == 1
    assert "--skip-damaged leaves them out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_train_says_what_it_trains_on_and_that_few_images_are_held_out(pets, tmp_path, capsys):
    """From ten held-out images nobody can tell 80 % from 95 %."""
    options = ["--skip-damaged", "--arch", "tutorial", "--epochs", "1", "--validation-split", "0.25", "--class-weights"]
    assert main(["train", "--data", str(pets), "--out", str(tmp_path / "run"), *options]) == 0
    err = capsys.readouterr().err
    assert (
        "Training on 24 images of 2 classes (cat 6, dog 18); 8 are held out for validation, 8 are for testing." in err
    )
    assert "Only 8 images are held out: figures from fewer than 100 mean little." in err
    assert "Left out: damaged pictures: 1 (cat/bad.jpg: empty file)." in err
    assert "Accuracy: validation " in err
    assert f"Next: python -m cifar export {tmp_path / 'run'}" in err
