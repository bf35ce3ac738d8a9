"""`cifar.training.data.dataset`: every kind of source, and the errors that each can have."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.pictures import encoded, noise, truncated_jpeg

from cifar import CLASS_NAMES
from cifar.errors import DataError
from cifar.settings import Settings
from cifar.training.data.dataset import load_dataset, split_validation, summarize

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
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three classes with four training and two test images each, of different sizes and formats."""
    for part, count in (("train", 4), ("test", 2)):
        for seed, name in enumerate(("circle", "square", "star")):
            folder = tmp_path / "shapes" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                format = ("PNG", "JPEG")[i % 2]
                (folder / f"{i}.{format.lower()}").write_bytes(encoded(noise(30 + i, 40, seed=seed * 10 + i), format))
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
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.png").write_bytes(encoded(noise(32, 32)))
    assert load_dataset(str(tmp_path), settings).class_names == CLASS_NAMES


def test_a_folder_without_a_test_part_can_be_trained_on(image_folder, settings):
    """Test images are optional."""
    shutil.rmtree(image_folder / "test")
    assert load_dataset(str(image_folder), settings).test_images.shape == (0, 32, 32, 3)


def test_an_unknown_source_is_refused_with_the_possible_sources(settings):
    """After a mistyped path the message lists the four kinds of source."""
    with pytest.raises(DataError, match=r"'no/such' is not a data set: expected `cifar10`, a cifar-10-python\.tar\.gz"):
        load_dataset("no/such", settings)


def test_a_truncated_archive_is_reported(tmp_path, settings):
    """Half an archive must not be used as a smaller data set."""
    whole = archive(tmp_path / "whole.tar.gz", batches())
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut\.tar\.gz is not a complete \.tar\.gz archive"):
        load_dataset(str(cut), settings)


def test_an_archive_without_cifars_batches_is_reported(tmp_path, settings):
    """The message names the missing member."""
    with pytest.raises(DataError, match="has no data_batch_1"):
        load_dataset(str(archive(tmp_path / "other.tar.gz", {"readme": b"hello"})), settings)


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


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("train/heart", "train/heart has no image"),
        ("train/Star", r"train/Star and .*train/star differ only in case"),  # on macOS they would be one folder
        ("test/heart", "They must be the same"),
    ],
)
def test_a_class_that_cannot_be_trained_and_tested_is_refused(image_folder, settings, more, words):
    """Each class needs images, a name that differs in more than case, and a folder in both parts."""
    (image_folder / more).mkdir()
    with pytest.raises(DataError, match=words):
        load_dataset(str(image_folder), settings)


def test_an_unreadable_image_is_reported(image_folder, settings):
    """The message names the file, which may be one of thousands."""
    (image_folder / "train" / "square" / "9.jpg").write_bytes(truncated_jpeg())
    with pytest.raises(DataError, match=r"train/square/9\.jpg: .*truncated.* Or remove it"):
        load_dataset(str(image_folder), settings)


def test_up_to_twenty_unreadable_images_are_listed(image_folder, settings):
    """They are found in both parts at once, so that a folder can be repaired in one go."""
    for part, count in (("train", 20), ("test", 3)):
        for i in range(count):
            (image_folder / part / "star" / f"bad{i:02}.jpg").write_bytes(truncated_jpeg())
    with pytest.raises(DataError) as caught:
        load_dataset(str(image_folder), settings)
    lines = str(caught.value).splitlines()
    assert [line.count("train/star/bad") for line in lines] == [1] * 20 + [0]
    assert lines[-1] == "... and 3 more. Or remove them from the folder."


def test_images_in_folders_below_a_class_are_reported_as_not_read(image_folder, settings, capsys):
    """They do not belong to a class, and the user should know that they are missing."""
    for name in ("square", "star"):
        (image_folder / "train" / name / "more").mkdir()
    load_dataset(str(image_folder), settings)
    message = f"Not read: {image_folder}/train/square/more and 1 more. The images of a class must lie"
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_an_archive_is_reported_in_one_line(tmp_path, settings):
    """Tarfile's own message has one line for each compression method."""
    (tmp_path / "README.md").write_text("# Words")
    with pytest.raises(
        DataError, match=r"^.*README\.md is not a complete \.tar\.gz archive \(file could not be opened"
    ) as caught:
        load_dataset(str(tmp_path / "README.md"), settings)
    assert "\n" not in str(caught.value)
    assert "method" not in str(caught.value)


def test_a_folder_with_one_class_is_refused(tmp_path, settings):
    """A classifier needs at least two classes."""
    (tmp_path / "train" / "only").mkdir(parents=True)
    with pytest.raises(DataError, match="1 class folders; at least two"):
        load_dataset(str(tmp_path), settings)


def test_files_of_the_operating_system_are_ignored(image_folder, settings):
    """.DS_Store and Thumbs.db are not images, and must not make loading fail."""
    (image_folder / "train" / ".DS_Store").write_bytes(b"x")
    (image_folder / "train" / "star" / "Thumbs.db").write_bytes(b"x")
    assert len(load_dataset(str(image_folder), settings).train_labels) == 12


def test_the_validation_split_is_the_same_for_the_same_seed_and_covers_every_class():
    """Each image is in one of the two parts, and always in the same one."""
    labels = np.repeat(np.arange(10), 50)
    fit, held_out = split_validation(labels, 0.1, seed=4)
    np.testing.assert_array_equal(split_validation(labels, 0.1, seed=4)[1], held_out)
    assert np.bincount(labels[held_out]).tolist() == [5] * 10
    assert sorted([*fit, *held_out]) == list(range(500))
    assert split_validation(labels, 0.1, seed=5)[1].tolist() != held_out.tolist()


def test_a_class_with_one_image_cannot_be_split():
    """Its only image would be missing from training or from validation."""
    with pytest.raises(DataError, match="one training image"):
        split_validation(np.array([0, 0, 1]), 0.1, seed=0)


def test_the_pixel_limit_also_holds_for_data_sets(image_folder):
    """An image in a data set is refused by the same limit as an upload."""
    with pytest.raises(DataError, match="megapixels"):
        load_dataset(str(image_folder), Settings(max_image_pixels=1024))
