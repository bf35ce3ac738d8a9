"""`cifar.models.registry`: finds the versions and compares their files with the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.samples import change_manifest, copy_version

from cifar.errors import BadParameter, VersionNotFound, VersionUnusable
from cifar.files import TEMPORARY_PREFIX
from cifar.models.manifest import Manifest
from cifar.models.registry import Registry


@pytest.fixture
def registry(tmp_path: Path, small_version) -> Registry:
    """A registry with version 1, in a folder of the test."""
    shutil.copytree(small_version.path, tmp_path / "shapes" / "1")
    return Registry(tmp_path, "shapes")


def add_version(registry: Registry, number: int) -> Path:
    return copy_version(registry.base / "1", registry.base / str(number), version=number)


def test_the_highest_version_is_the_default_and_an_older_one_can_be_requested(registry):
    """Versions are compared as numbers: 10 comes after 9. An older version stays available after a new export."""
    for number in (9, 10):
        add_version(registry, number)
    assert registry.numbers() == [1, 9, 10]
    assert registry.get().number == 10
    assert registry.get(1).number == 1


def test_a_manifest_is_parsed_again_only_after_its_file_has_changed(registry, monkeypatch):
    """A list of 200 versions is made for each caller, and a changed file must be noticed at once."""
    parsed = []
    original = Manifest.model_validate_json

    def noted(content: bytes) -> Manifest:
        parsed.append(content)
        return original(content)

    monkeypatch.setattr(Manifest, "model_validate_json", noted)
    folder = add_version(registry, 2)
    for _ in range(3):
        assert registry.get(2).manifest.class_names[0] == "circle"
    assert len(parsed) == 1
    change_manifest(folder, class_names=["disc", "square", "star"])
    assert registry.get(2).manifest.class_names[0] == "disc"
    assert len(parsed) == 2


def test_the_error_for_an_unknown_version_lists_the_existing_ones(registry):
    """The client learns which versions it can request."""
    with pytest.raises(VersionNotFound, match="no version 7; there are: 1"):
        registry.get(7)


def test_an_empty_registry_says_how_to_fill_it(tmp_path):
    """A new user without a model gets the next command."""
    with pytest.raises(VersionNotFound, match="python -m cifar export runs/NAME --name nothing"):
        Registry(tmp_path, "nothing").get()


def test_a_folder_without_a_manifest_is_not_a_version(registry):
    """An export that did not finish is never served, and the error says so."""
    folder = add_version(registry, 2)
    (folder / "manifest.json").unlink()
    assert registry.get().number == 1
    with pytest.raises(VersionUnusable, match="export did not finish"):
        registry.get(2)
    assert "no manifest.json" in registry.problems()["2"]


@pytest.mark.parametrize("name", ["01", "1 2", "v2", "2.0", "-1", "0", "٣", "1000000000"])
def test_a_folder_whose_name_is_not_a_plain_number_is_refused(registry, name):
    """Only 1, 2, 3, ... of up to nine digits: TensorFlow Serving and the records database must read the same number."""
    (registry.base / "1").rename(registry.base / name)
    assert registry.numbers() == []
    assert "whole number" in registry.problems()[name]
    with pytest.raises(VersionUnusable, match="whole number"):
        registry.get_folder(name)
    if str(int(name) if name.isdecimal() else "") == name:
        with pytest.raises(VersionUnusable, match="whole number"):
            registry.get(int(name))


def test_a_changed_file_is_found_by_its_checksum(registry):
    """A SavedModel can contain any code, so it is not loaded when a byte of it was changed."""
    file = registry.base / "1" / "saved_model.pb"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(VersionUnusable, match=r"saved_model\.pb is not the file that was exported"):
        registry.get().verify()


def test_a_missing_file_and_an_additional_file_are_found(registry):
    """No file may be added to a version or removed from it."""
    (registry.base / "1" / "extra.bin").write_bytes(b"x")
    with pytest.raises(VersionUnusable, match=r"extra\.bin is not listed"):
        registry.get().verify()
    (registry.base / "1" / "extra.bin").unlink()
    (registry.base / "1" / "variables" / "variables.index").unlink()
    with pytest.raises(VersionUnusable, match=r"variables\.index is listed in manifest\.json but missing"):
        registry.get().verify()


def test_a_version_that_was_renamed_is_refused(registry):
    """Version 1, copied to folder 5, would be served under a number that its manifest contradicts."""
    shutil.copytree(registry.base / "1", registry.base / "5")
    with pytest.raises(VersionUnusable, match="holds shapes version 1"):
        registry.get(5)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "shapes"}'])
def test_an_unreadable_manifest_is_named_and_does_not_hide_other_versions(registry, content):
    """The operator sees which file to repair; meanwhile the other versions stay usable."""
    (add_version(registry, 2) / "manifest.json").write_text(content)
    with pytest.raises(VersionUnusable, match=r"shapes/2/manifest\.json is not a usable manifest"):
        registry.get()
    assert "not a usable manifest" in registry.problems()["2"]
    assert registry.get(1).number == 1


@pytest.mark.parametrize("name", ["a/b", "", ".", "..", ".hidden", "a b"])
def test_a_models_name_must_be_a_plain_folder_name(tmp_path, name):
    """It must not lead out of the registry."""
    with pytest.raises(BadParameter, match="A model's name"):
        Registry(tmp_path, name)


def test_a_running_export_is_invisible(registry):
    """The hidden folder that an export writes to is neither a version nor a problem."""
    (registry.base / f"{TEMPORARY_PREFIX}abc").mkdir()
    assert registry.numbers() == [1]
    assert registry.problems() == {}


def test_a_manifest_with_another_ood_threshold_is_refused(registry):
    """The score of every version is scaled to the same threshold, and the server compares with that one."""
    change_manifest(registry.base / "1", confidence={"temperature": 1, "method": "made up", "threshold": 0.5})
    with pytest.raises(VersionUnusable, match=r"confidence\.threshold: Input should be greater than or equal to 1"):
        registry.get()
