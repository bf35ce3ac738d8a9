"""`cifar.training.data.dataset`: CIFAR-10 in each form, image folders, and the splits. Other folders: `test_folders.py`."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.folders import packed, put
from support.pictures import noise

from cifar import CLASS_NAMES
from cifar.errors import DataError
from cifar.settings import Settings
from cifar.training.data.dataset import load_dataset
from cifar.training.data.overview import summarize
from cifar.training.data.split import split_validation

ROWS = 20
"""Images in each batch of the test archives; the real batches have 10,000."""


def batch_pickle(seed: int) -> bytes:
    """Return a batch as Python 2 pickled it: byte keys, protocol 2, planes of red, green, blue."""
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (ROWS, 3072), np.uint8)
    return pickle.dumps({b"data": data, b"labels": random.integers(0, 10, ROWS).tolist()}, protocol=2)


def batches() -> dict[str, bytes]:
    return {name: batch_pickle(i) for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"])}


def archive(path: Path, members: dict[str, bytes]) -> Path:
    return packed(path, {f"cifar-10-batches-py/{name}": content for name, content in members.items()})


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three classes with four training and two test images each, of different sizes and formats."""
    for part, count in (("train", 4), ("test", 2)):
        for seed, name in enumerate(("circle", "square", "star")):
            for i in range(count):
                file = tmp_path / "shapes" / part / name / f"{i}{('.png', '.jpeg')[i % 2]}"
                put(file, noise(30 + i, 40, seed=seed * 10 + i))
    return tmp_path / "shapes"


def test_the_archive_and_its_extracted_folder_give_the_same_data(tmp_path, settings):
    """Both give images with channels last, and labels in CIFAR's order."""
    members = batches()
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in members.items():
        (folder / name).write_bytes(content)
    packed = load_dataset(str(archive(tmp_path / "cifar-10-python.tar.gz", members)), settings)
    extracted = load_dataset(str(folder), settings)
    assert packed.fingerprint() == extracted.fingerprint()
    assert packed.train_images.shape == (5 * ROWS, 32, 32, 3)
    assert packed.class_names == CLASS_NAMES
    raw = pickle.loads(members["data_batch_1"])[b"data"]  # noqa: S301 - made by this test
    np.testing.assert_array_equal(packed.train_images[0, :, :, 1].ravel(), raw[0, 1024:2048])


def test_an_image_folder_may_have_other_classes_counts_and_sizes(image_folder, settings):
    """Images are resized to the requested size by the function that serving uses."""
    dataset = load_dataset(str(image_folder), settings, image_shape=(64, 64, 3))
    assert dataset.class_names == ("circle", "square", "star")
    assert dataset.train_images.shape == (12, 64, 64, 3)
    assert dataset.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert summarize(dataset)["train_images_by_class"] == {"circle": 4, "square": 4, "star": 4}


def test_folders_named_like_cifars_classes_keep_cifars_order(tmp_path, settings):
    """Models that were trained on an image folder of CIFAR then have the same labels as those trained on the archive."""
    for name in CLASS_NAMES:
        put(tmp_path / "train" / name / "1.png")
    assert load_dataset(str(tmp_path), settings).class_names == CLASS_NAMES


def test_a_truncated_archive_is_reported(tmp_path, settings):
    """Half an archive must not be used as a smaller data set."""
    whole = archive(tmp_path / "whole.tar.gz", batches())
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut\.tar\.gz is not a complete \.tar\.gz archive"):
        load_dataset(str(cut), settings)


def test_an_archive_that_lacks_a_batch_of_cifar_is_reported(tmp_path, settings):
    """The message names the missing member."""
    some = dict(list(batches().items())[1:])
    with pytest.raises(DataError, match="has no data_batch_1"):
        load_dataset(str(archive(tmp_path / "other.tar.gz", some)), settings)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, settings):
    """Only arrays and built-in containers are unpickled, so no function of the pickle is called."""

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    members = batches() | {"data_batch_3": pickle.dumps({b"data": Evil(), b"labels": []})}
    with pytest.raises(DataError, match="data_batch_3 is not a batch of CIFAR-10"):
        load_dataset(str(archive(tmp_path / "evil.tar.gz", members)), settings)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": np.zeros((3, 10), np.uint8), b"labels": [0, 1, 2]}, protocol=2),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, protocol=2),
    ],
    ids=["empty", "text", "a_list", "wrong_width", "label_10"],
)
def test_a_damaged_batch_is_reported(tmp_path, settings, content):
    """The message names the batch and says what to do."""
    members = batches() | {"test_batch": content}
    with pytest.raises(DataError, match="test_batch is not a batch of CIFAR-10"):
        load_dataset(str(archive(tmp_path / "bad.tar.gz", members)), settings)


def test_the_validation_split_is_the_same_for_the_same_seed_and_covers_every_class():
    """Each image is in one of the two parts, and always in the same one."""
    labels = np.repeat(np.arange(10), 50)
    fit, held_out = split_validation(labels, 0.1, seed=4)
    np.testing.assert_array_equal(split_validation(labels, 0.1, seed=4)[1], held_out)
    assert np.bincount(labels[held_out]).tolist() == [5] * 10
    assert sorted([*fit, *held_out]) == list(range(500))
    assert split_validation(labels, 0.1, seed=5)[1].tolist() != held_out.tolist()


def test_a_validation_part_of_the_source_is_held_out_in_place_of_a_share(image_folder, settings):
    """Its images must not be trained on, and the split must not depend on the seed then."""
    shutil.copytree(image_folder / "test", image_folder / "Validation")
    dataset = load_dataset(str(image_folder), settings)
    fit, held_out = dataset.hold_out(0.5, seed=7)
    assert (len(fit), held_out.tolist()) == (12, list(range(12, 18)))
    assert dataset.train_labels[held_out].tolist() == [0, 0, 1, 1, 2, 2]
    shutil.rmtree(image_folder / "Validation")
    without = load_dataset(str(image_folder), settings)
    assert len(without.hold_out(0.5, seed=7)[1]) == 6
    assert without.fingerprint() != dataset.fingerprint()


def test_the_split_of_an_image_folder_has_not_changed(tmp_path, settings):
    """A run that was made earlier can be resumed, and its held-out images are the same."""
    for name in ("a", "b"):
        for number in (2, 10, 1):
            put(tmp_path / "train" / name / f"{number}.png", Image.new("RGB", (32, 32), (number, ord(name), 0)))
    dataset = load_dataset(str(tmp_path), settings)
    assert dataset.train_images[:, 0, 0, 0].tolist() == [1, 10, 2] * 2
    assert dataset.hold_out(0.3, seed=0)[1].tolist() == split_validation(dataset.train_labels, 0.3, 0)[1].tolist()
    assert dataset.fingerprint() == "e0cc7c8528e56f2e01aea66e6812609eed1748ea1a554ed6b33ef4132db042af"


def test_the_pixel_limit_also_holds_for_data_sets(image_folder):
    """An image in a data set is refused by the same limit as an upload."""
    with pytest.raises(DataError, match="megapixels"):
        load_dataset(str(image_folder), Settings(max_image_pixels=1024))
