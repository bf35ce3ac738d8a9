"""`cifar.models.registry`: which versions there are, and whether they are what was exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cifar.errors import BadParameter, VersionNotFound, VersionUnusable
from cifar.models.registry import Registry


@pytest.fixture
def registry(tmp_path: Path, small_version) -> Registry:
    """A registry of a test's own, with version 1."""
    shutil.copytree(small_version.path, tmp_path / "shapes" / "1")
    return Registry(tmp_path, "shapes")


def add_version(registry: Registry, number: int) -> Path:
    """A copy of version 1 as another version."""
    folder = registry.base / str(number)
    shutil.copytree(registry.base / "1", folder)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"version": number}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_highest_complete_version_is_the_latest(registry):
    """Numbers are compared as numbers: 10 comes after 9."""
    for number in (9, 10):
        add_version(registry, number)
    assert registry.numbers() == [1, 9, 10]
    assert registry.get().number == 10


def test_a_version_can_be_asked_for_by_number(registry):
    """An older version stays reachable."""
    add_version(registry, 2)
    assert registry.get(1).number == 1


def test_an_unknown_version_is_not_found_and_the_sentence_lists_those_there_are(registry):
    """The caller learns what to ask for."""
    with pytest.raises(VersionNotFound, match="no version 7; there are: 1"):
        registry.get(7)


def test_an_empty_registry_says_how_to_fill_it(tmp_path):
    """A newcomer without a model reads the next command."""
    with pytest.raises(VersionNotFound, match="python -m cifar export runs/NAME --name nothing"):
        Registry(tmp_path, "nothing").get()


def test_a_folder_without_a_manifest_is_no_version(registry):
    """An export that did not finish is never served, and asking for it says why."""
    folder = add_version(registry, 2)
    (folder / "manifest.json").unlink()
    assert registry.get().number == 1
    with pytest.raises(VersionUnusable, match="export did not finish"):
        registry.get(2)
    assert "no manifest.json" in registry.problems()["2"]


@pytest.mark.parametrize("name", ["01", "1 2", "v2", "2.0", "-1", "0", "٣", "1000000000"])
def test_a_folder_whose_name_is_no_plain_number_is_refused(registry, name):
    """Only 1, 2, 3, ... are versions, up to nine digits: TensorFlow Serving, the records and people read the same number."""
    (registry.base / "1").rename(registry.base / name)
    assert registry.numbers() == []
    assert "whole number" in registry.problems()[name]
    with pytest.raises(VersionUnusable, match="whole number"):
        registry.get_folder(name)


def test_a_changed_file_is_found_by_its_checksum(registry):
    """A SavedModel is code: one changed byte, and it is not loaded."""
    file = registry.base / "1" / "saved_model.pb"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(VersionUnusable, match=r"saved_model\.pb is not the file that was exported"):
        registry.get().verify()


def test_a_missing_file_and_a_file_too_many_are_found(registry):
    """Nothing may be added to a version, or taken from it."""
    (registry.base / "1" / "extra.bin").write_bytes(b"x")
    with pytest.raises(VersionUnusable, match=r"extra\.bin is not listed"):
        registry.get().verify()
    (registry.base / "1" / "extra.bin").unlink()
    (registry.base / "1" / "variables" / "variables.index").unlink()
    with pytest.raises(VersionUnusable, match=r"variables\.index is listed in manifest\.json but missing"):
        registry.get().verify()


def test_a_version_that_was_renamed_is_refused(registry):
    """Version 1 copied to 5 would answer under a number that its manifest denies."""
    shutil.copytree(registry.base / "1", registry.base / "5")
    with pytest.raises(VersionUnusable, match="holds shapes version 1"):
        registry.get(5)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "shapes"}'])
def test_a_manifest_that_cannot_be_read_is_named(registry, content):
    """The sentence names the file."""
    (registry.base / "1" / "manifest.json").write_text(content)
    with pytest.raises(VersionUnusable, match=r"shapes/1/manifest\.json is not a usable manifest"):
        registry.get()


def test_a_broken_version_does_not_hide_the_others(registry):
    """One bad manifest among the versions is a problem of that one."""
    (add_version(registry, 2) / "manifest.json").write_text("{")
    assert "not a usable manifest" in registry.problems()["2"]
    assert registry.get(1).number == 1


@pytest.mark.parametrize("name", ["a/b", "", ".", "..", ".hidden", "a b"])
def test_a_models_name_is_a_folders_name(tmp_path, name):
    """Nothing outside the registry can be named."""
    with pytest.raises(BadParameter, match="A model's name"):
        Registry(tmp_path, name)


def test_an_export_under_way_is_invisible(registry):
    """The hidden sibling that an export writes to is neither a version nor a problem."""
    (registry.base / ".export-abc").mkdir()
    assert registry.numbers() == [1]
    assert registry.problems() == {}
