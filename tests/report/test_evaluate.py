"""`python -m cifar evaluate` and `card`: measurement of a version, the report, and the model card."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.cli import parsed
from support.pictures import encoded

from cifar import CLASS_NAMES
from cifar.errors import CifarError, DataError
from cifar.models.engines import load_engine
from cifar.models.predictor import Prediction, Predictor
from cifar.models.registry import Registry
from cifar.settings import ROOT, Settings
from cifar.training.data.dataset import load_dataset
from cifar.training.data.disturbances import DISTURBANCES, shift
from cifar.training.report.card import card, commands, write_card
from cifar.training.report.evaluate import evaluate
from cifar.training.report.report import make_report, read_report

NOTES = ROOT / "docs/model_card_notes.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.jpg"))
SHIPPED = Registry(Settings().registry, "cifar_classifier")


def image_folder(root: Path, class_names: Iterable[str] = CLASS_NAMES, **counts: int) -> Path:
    """Make an image folder with this number of images of noise per class in each part, such as `train=1`."""
    random = np.random.default_rng(0)
    for part, count in counts.items():
        for name in class_names:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize((32, 32))
                (root / part / name / f"{i}.png").write_bytes(encoded(image))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return an image folder with CIFAR's classes: four test images of noise per class, and the example photos in their classes."""
    root = image_folder(tmp_path_factory.mktemp("data") / "pictures", train=1, test=4)
    for example in EXAMPLES:
        if (place := root / "test" / example.stem).is_dir():
            (place / "example.jpg").write_bytes(example.read_bytes())
    return root


@pytest.fixture(scope="module")
def predictor():
    """Load the shipped version 1 as the server does."""
    return Predictor.load(SHIPPED.get(1))


@pytest.fixture(scope="module")
def dataset(folder):
    """Load the folder of images."""
    return load_dataset(str(folder), Settings())


@pytest.fixture(scope="module")
def reported(folder, tmp_path_factory):
    """Write a report of version 1 with all measurements, and return it with its folder."""
    out = tmp_path_factory.mktemp("reports") / "new" / "first"
    report = make_report(SHIPPED.get(1), Settings(), str(folder), out=out, views=6, disturbed_images=12)
    return report, out


def test_the_report_has_the_accuracy_of_the_predictor(predictor, dataset, reported):
    """Every image is counted once and in order, although several threads classify."""
    report, _ = reported
    answers = predictor.answers(dataset.test_images).argmax(axis=1)
    assert report["images"] == len(dataset.test_labels)
    assert report["accuracy"] == (answers == dataset.test_labels).mean()
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (dataset.test_labels, answers), 1)
    assert report["confusion_matrix"] == confusion.tolist()
    assert report["engine"] == predictor.engine


@pytest.mark.slow
def test_both_engines_give_the_same_figures(dataset):
    """TensorFlow and LiteRT run the same network, and the report names the engine that was measured."""
    reports = []
    for engine in ("tensorflow", "litert"):
        name, infer = load_engine(SHIPPED.get(1), engine, threads=1)
        reports.append(evaluate(Predictor(SHIPPED.get(1), infer, engine=name), dataset))
    assert [report["engine"] for report in reports] == ["tensorflow", "litert"]
    assert reports[0]["accuracy"] == reports[1]["accuracy"]
    assert reports[0]["loss"] == pytest.approx(reports[1]["loss"], abs=1e-4)


def test_a_report_is_a_folder_of_json_markdown_and_pictures(reported):
    """Each picture can be decoded and is linked, and no temporary file remains beside the folder."""
    report, out = reported
    pictures = ["confusion_matrix.png", "mistakes.png", "reliability.png", "robustness.png"]
    assert sorted(path.name for path in out.iterdir()) == [*pictures[:3], "report.json", "report.md", "robustness.png"]
    assert [path.name for path in out.parent.iterdir()] == ["first"]
    assert json.loads((out / "report.json").read_text()) == report == read_report(out)
    text = (out / "report.md").read_text()
    for name in pictures:
        assert f"({name})" in text
        with Image.open(out / name) as image:
            image.load()
            assert min(image.size) > 200
            assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255), "white background"
    assert f"{report['accuracy'] * 100:.1f} %" in text


def test_mistakes_are_the_wrong_predictions_in_order_of_confidence(dataset, predictor, reported):
    """Each mistake has the true and the predicted label."""
    report, _ = reported
    confidence = [mistake["confidence"] for mistake in report["mistakes"]]
    assert confidence == sorted(confidence, reverse=True)
    assert len(confidence) == min(30, round((1 - report["accuracy"]) * report["images"]))
    for mistake in report["mistakes"]:
        position = mistake["image"]
        (prediction,) = predictor.predict(dataset.test_images[position : position + 1], top_k=1)
        assert prediction.top_k == [(mistake["given"], pytest.approx(mistake["confidence"]))]
        assert mistake["true"] == CLASS_NAMES[dataset.test_labels[position]] != mistake["given"]


@pytest.mark.parametrize("count", [2, 6])
def test_views_are_measured_as_the_server_answers_with_them(predictor, dataset, reported, count):
    """The figures are those of the answers that a request with `views` gets; the plain view is still the main measurement."""
    report = reported[0] if count == 6 else evaluate(predictor, dataset, views=count)
    answers = predictor.answers(dataset.test_images, count)
    views = report["views"]
    assert views["views"] == count
    assert views["accuracy"] == (answers.argmax(axis=1) == dataset.test_labels).mean()
    true = answers[np.arange(len(answers)), dataset.test_labels]
    assert views["loss"] == pytest.approx(-np.log(true).mean(), rel=1e-4)
    assert views["times_the_single_view"] > 0
    assert report["loss"] != views["loss"]


def test_robustness_is_measured_on_the_same_images_every_time(predictor, dataset, reported):
    """The seed is fixed, so that the figures repeat. Each accuracy has an interval around it, and a calibration error."""
    again = evaluate(predictor, dataset, disturbed_images=12)["robustness"]
    assert again == reported[0]["robustness"]
    assert again["images"] == 12
    assert again["disturbances"].keys() == {"JPEG", "blur", "noise", "brightness", "shift"}
    for disturbance in again["disturbances"].values():
        for point in disturbance["points"]:
            low, high = point["interval"]
            assert low <= point["accuracy"] <= high
    whole = evaluate(predictor, dataset, disturbed_images=10**6)
    assert whole["robustness"]["images"] == len(dataset.test_labels)
    for name in ("accuracy", "ece"):
        assert whole["robustness"]["undisturbed"][name] == pytest.approx(whole[name])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_stronger_disturbance_changes_pictures_more(name, channels):
    """Size, type and number of the images stay the same, in colour and in grey."""
    steps = np.random.default_rng(1).integers(0, 256, (6, 6, 6, channels), np.uint8)
    images = steps.repeat(8, axis=1).repeat(8, axis=2)
    disturbance = DISTURBANCES[name]
    changes = []
    for strength in disturbance.strengths:
        changed = disturbance.apply(images, strength)
        assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
        assert (disturbance.apply(images, strength) == changed).all()
        changes.append(np.abs(changed.astype(int) - images).mean())
    if name == "brightness":
        assert changes[0] > changes[1] > changes[2] > 0 < changes[3] < changes[4] < changes[5]
    else:
        assert changes == sorted(changes)
        assert changes[0] < changes[-1]


def test_disturbances_change_a_uniform_image_as_their_names_say():
    """Blur and shift leave it unchanged, brightness 2 doubles it, and noise has the stated standard deviation."""
    grey = np.full((2, 32, 32, 3), 60, np.uint8)
    assert (DISTURBANCES["blur"].apply(grey, 2) == 60).all()
    assert (DISTURBANCES["shift"].apply(grey, 8) == 60).all()
    assert (DISTURBANCES["brightness"].apply(grey, 2) == 120).all()
    noisy = DISTURBANCES["noise"].apply(np.full((20, 32, 32, 3), 128, np.uint8), 16)
    assert noisy.std() == pytest.approx(16, rel=0.05)


def test_a_shift_moves_down_and_to_the_right():
    """The border is repeated, however far the image moves."""
    image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1)
    assert shift(image, 1, 0)[0, :, :, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert shift(image, 0, -1)[0, :, :, 0].tolist() == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]
    assert shift(image, 0, 9)[0, :, :, 0].tolist() == [[0] * 3, [3] * 3, [6] * 3]


class _ScoreOfDarkness(Predictor):
    """A Predictor with an out-of-distribution score that is high for dark pictures."""

    def predict(self, images: np.ndarray, *, top_k: int, views: int = 1) -> list[Prediction]:
        answers = super().predict(images, top_k=top_k, views=views)
        scores = 1 - images.mean(axis=(1, 2, 3)) / 255
        return [
            Prediction(answer.class_scores, answer.top_k, ood_score=float(score), in_distribution=bool(score < 0.5))
            for answer, score in zip(answers, scores, strict=True)
        ]


def test_the_share_in_distribution_is_that_of_the_predictions(predictor, dataset):
    """A version without an out-of-distribution score has no such share."""
    assert evaluate(predictor, dataset)["in_distribution"] is None
    scored = _ScoreOfDarkness(predictor.version, predictor.answers, engine="litert")
    bright = dataset.test_images.mean(axis=(1, 2, 3)) / 255 > 0.5
    assert 0 < bright.sum() < len(bright)
    right = predictor.answers(dataset.test_images).argmax(axis=1) == dataset.test_labels
    found = evaluate(scored, dataset)["in_distribution"]
    assert found["share"] == bright.mean()
    assert found["interval"][0] < bright.mean() < found["interval"][1]
    assert found["accuracy_inside"] == right[bright].mean()
    assert found["accuracy_outside"] == right[~bright].mean()


def test_classes_in_another_order_are_the_same_classes(predictor, dataset):
    """The labels of the data set and of the version are matched by name."""
    reversed_classes = replace(dataset, class_names=dataset.class_names[::-1], test_labels=9 - dataset.test_labels)
    assert evaluate(predictor, reversed_classes)["confusion_matrix"] == evaluate(predictor, dataset)["confusion_matrix"]


def test_a_data_set_without_test_images_is_refused(tmp_path):
    """Accuracy on training images would be too high. No folder remains."""
    data = image_folder(tmp_path / "data", train=1)
    out = tmp_path / "reports" / "first"
    with pytest.raises(DataError, match="has no test images\\. Add test/<class>"):
        make_report(SHIPPED.get(1), Settings(), str(data), out=out)
    assert not out.parent.exists()


def test_an_unreadable_picture_is_named(tmp_path):
    """The message holds the path, so that one damaged file among thousands can be found."""
    data = image_folder(tmp_path / "data", train=1, test=1)
    (data / "test" / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(DataError, match=r"test/cat/0\.png \(file begins like an image"):
        make_report(SHIPPED.get(1), Settings(), str(data), out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("folder", "folder exists, and a report is never overwritten"),
        ("file", "file exists, and a report is never overwritten"),
        ("dead link", "dead link exists, and a report is never overwritten"),
        ("file/report", "is not a writable folder"),
    ],
)
def test_an_output_folder_that_exists_or_cannot_be_created_is_refused_first(tmp_path, out, message):
    """This is checked before the data set is read, because the evaluation takes minutes."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dead link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=message):
        make_report(SHIPPED.get(1), Settings(), "no data set", out=tmp_path / out)


@pytest.mark.slow
def test_a_failure_while_writing_leaves_nothing(tmp_path, folder, monkeypatch):
    """If the disk is full, neither the report nor a temporary folder remains."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cifar.training.report.report.report_as_markdown", full)
    with pytest.raises(OSError, match="No space left"):
        make_report(SHIPPED.get(1), Settings(), str(folder), out=tmp_path / "first")
    assert list(tmp_path.iterdir()) == []


def test_special_characters_in_class_names_are_drawn_and_written_literally(tmp_path, small_version):
    """A class may be called a|b or $x_1$; the report also works for another image size."""
    names = [r"$\frac$", "a|b", "s_1"]
    manifest = small_version.manifest.model_copy(update={"class_names": names})
    version = type(small_version)(small_version.path, manifest)
    data = image_folder(tmp_path / "data", names, train=1, test=1)
    report = make_report(version, Settings(), str(data), out=tmp_path / "out", views=6, disturbed_images=3)
    assert list(report["per_class"]) == names
    text = (tmp_path / "out" / "report.md").read_text()
    assert r"| a\|b | 1 |" in text
    assert r"| $\frac$ | 1 |" in text


def test_the_card_holds_the_facts_of_manifest_report_and_notes(tmp_path, reported):
    """It has figures, data, limits and settings. The pictures are copied beside it, and every link leads to one of them."""
    report, out = reported
    notes = tmp_path / "notes.md"
    notes.write_text(f"{NOTES.read_text()}\nOn photographs: 38 %.\n")
    path = write_card(out, Settings(), tmp_path / "MODEL_CARD.md", notes)
    text = path.read_text()
    for fact in (
        "cifar_classifier, version 1",
        "JPEG edition",
        "46,000 training images, of which 43,700 were trained on",
        "quality 75",
        f"{report['accuracy'] * 100:.1f} % (",
        "any decision about people",
        "On photographs: 38 %.",
        "| batch size | 64 |",
        "The version is not calibrated",
    ):
        assert fact in text, fact
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(links) == 4
    for link in links:
        assert (tmp_path / link).read_bytes() == (out / (tmp_path / link).name).read_bytes()


def test_a_card_can_be_written_again(tmp_path, reported):
    """An existing card and its pictures are replaced, and no temporary file remains."""
    for _ in range(2):
        path = write_card(reported[1], Settings(), tmp_path / "MODEL_CARD.md", None)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["MODEL_CARD.md", "docs"]
    assert "## Robustness" in path.read_text()


def test_the_commands_on_the_card_are_valid(reported):
    """The command line accepts their options, so that a reader can repeat the figures."""
    for number in SHIPPED.numbers():
        lines = commands(SHIPPED.get(number).manifest, reported[0], Path("a card.md"), Path("notes.md"))
        assert [line.split()[3] for line in lines] == ["train", "export", "evaluate", "card"]
        for line in lines:
            parsed(*shlex.split(line)[3:])


def test_the_commands_of_another_model_name_it(small_version, reported):
    """Otherwise `evaluate --version 1` would measure version 1 of the shipped model."""
    lines = commands(small_version.manifest, reported[0], Path("CARD.md"), None)
    assert lines[0] == "export CIFAR_MODEL_NAME=shapes"
    assert [line.split()[3] for line in lines[1:]] == ["evaluate", "card"]


def test_the_card_of_a_version_without_a_run_says_so(small_version, reported):
    """An .h5 file holds no information about its training images."""
    text = card(small_version.manifest, {**reported[0], "robustness": None, "views": None}, [], "", [])
    assert "**Training data.** Unknown" in text
    assert "A Keras model from keras2_64px_3classes_logits.h5" in text
    assert "Not measured; `evaluate --robustness` measures it." in text
    assert "](" not in text


def test_a_missing_damaged_or_outdated_report_makes_no_card(tmp_path, reported):
    """Each case has its own message, also a version that was exported again since, and notes that cannot be read."""
    report, out = reported
    cases = {
        "holds no report (FileNotFoundError)": lambda _: None,
        "holds no report (JSONDecodeError)": lambda file: file.write_text("{"),
        "lacks accuracy": lambda file: file.write_text(json.dumps(report).replace('"accuracy"', '"other"')),
        "has no version 99": lambda file: file.write_text(json.dumps({**report, "version": 99})),
        "exported 2020": lambda file: file.write_text(json.dumps({**report, "exported": "2020"})),
    }
    for number, (message, write) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder / "report.json")
        with pytest.raises(CifarError, match=re.escape(message)):
            write_card(folder, Settings(), tmp_path / "MODEL_CARD.md", None)
    with pytest.raises(DataError, match=r"notes\.md cannot be read"):
        write_card(out, Settings(), tmp_path / "MODEL_CARD.md", tmp_path / "notes.md")
    assert not (tmp_path / "MODEL_CARD.md").exists()
