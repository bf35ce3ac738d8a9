"""`evaluate --photos`: photographs in folders, measured as the server answers them; on the card, in the manifest and on the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from support.pictures import encoded, noise

from cifar import CLASS_NAMES
from cifar.errors import DataError
from cifar.images.decode import preprocess_views
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.serving.page.model_tab import model_html
from cifar.settings import ROOT, Settings
from cifar.statistics import wilson_interval
from cifar.training.measures import auroc, auroc_interval, mean_interval, measure
from cifar.training.report.card import write_card
from cifar.training.report.photographs import find_photographs, measure_photographs
from cifar.training.report.report import make_report

EXAMPLES = sorted((ROOT / "examples").glob("*.jpg"))
SHIPPED = Registry(ROOT / "saved_model", "cifar_classifier")


def put(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(noise(70, 70)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photographs of every class, some of them too small for crops, of none of them, and a file that is no picture."""
    root = tmp_path_factory.mktemp("data") / "photographs"
    for example in EXAMPLES:
        target = root / example.stem / "1.jpg"
        target.parent.mkdir(parents=True)
        with Image.open(example) as small:
            small.resize((160, 120)).save(target)
    shutil.copy(EXAMPLES[0], root / EXAMPLES[0].stem / "small.jpg")
    (root / "cat" / "notes.txt").write_text("not a picture")
    for position in range(5):
        put(root / "none" / f"{position}.png")
    return root


def test_photographs_are_measured_as_the_server_answers_them(folder, capsys):
    """They pass the decoder and the predictor that requests pass, at their own size; what is no picture is named and left out."""
    predictor = Predictor.load(SHIPPED.get(2))
    found = measure_photographs(predictor, find_photographs(str(folder), CLASS_NAMES), Settings())
    assert (found["source"], found["images"], found["others"], found["unreadable"]) == ("photographs", 11, 5, 1)
    assert "notes.txt is left out: The file's content is not an image" in capsys.readouterr().err
    files = [*sorted(folder.glob("*/*.jpg")), *sorted((folder / "none").iterdir())]
    labels = np.array([CLASS_NAMES.index(file.parent.name) for file in files[:11]])
    for views in (1, 6):
        inputs = [preprocess_views(file.read_bytes(), predictor.image, views, max_pixels=10**6) for file in files]
        rows = np.stack([predictor.answers_of([each])[0] for each in inputs])
        grades = [predictor.rank(row, 1).grade for row in rows]
        expected, measured = measure(rows[:11, :10], labels, CLASS_NAMES), found["views"][str(views)]
        for name in ("accuracy", "accuracy_interval", "balanced_accuracy", "per_class"):
            assert measured[name] == expected[name], name
        assert measured["ece"] == pytest.approx(expected["ece"], abs=1e-6)
        assert measured["auroc"] == auroc(rows[:11, 10], rows[11:, 10])
        caught = int((rows[11:, 10] > 1).sum())
        share = {"count": caught, "of": 5, "share": caught / 5, "interval": wilson_interval(caught, 5)}
        assert measured["caught"] == share
        assert measured["in_distribution"]["count"] == (rows[:11, 10] <= 1).sum()
        for grade in ("class", "unsure", "none"):
            assert measured["grades"][grade]["count"] == grades[:11].count(grade)
            assert measured["others_grades"][grade]["count"] == grades[11:].count(grade)
    assert found["views"]["1"]["loss"] != found["views"]["6"]["loss"]
    json.dumps(found, allow_nan=False)


def test_a_version_without_a_score_and_a_folder_without_others_have_fewer_figures(folder, tmp_path):
    """A figure that cannot be measured is null, not a number that looks measured."""
    scored, plain = Predictor.load(SHIPPED.get(2)), Predictor.load(SHIPPED.get(1))
    put(tmp_path / "cat" / "1.png")
    only_classes = measure_photographs(scored, find_photographs(str(tmp_path), CLASS_NAMES), Settings())
    without_score = measure_photographs(plain, find_photographs(str(folder), CLASS_NAMES), Settings())
    for found in (only_classes, without_score):
        assert [found["views"]["6"][name] for name in ("auroc", "auroc_interval", "caught")] == [None] * 3
    assert only_classes["views"]["1"]["others_grades"] is None
    assert without_score["views"]["1"]["in_distribution"] is None


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (["cat/1.png", "none/2.png"], [3, None]),
        (["in/cat/1.png", "none/2.png", "SOURCES.tsv"], [3, None]),
        (["in/cat/1.png", "ood/2.png"], [3, None]),
        (["Cat/deep/er/1.png", ".git/x.png", "cat/.hidden.png", "cat/2.png", "DOG/2.png"], [3, 5, 3]),
    ],
)
def test_a_folder_of_photographs_is_read_in_the_layouts_that_people_have(tmp_path, files, labels):
    """Classes may be in a folder of their own, and their names in capital letters. What is hidden or beside is left out."""
    put(*(tmp_path / file for file in files))
    found = find_photographs(f"my photos={tmp_path}", CLASS_NAMES)
    assert (found.labels, found.name) == (labels, "my photos")
    assert find_photographs(str(tmp_path), CLASS_NAMES).name == tmp_path.name


def test_a_class_named_none_is_a_class(tmp_path):
    """Its photographs are not those of none of the classes."""
    put(tmp_path / "none" / "1.png", tmp_path / "ood" / "2.png")
    assert find_photographs(str(tmp_path), ["cat", "none"]).labels == [1, None]


def test_classes_that_differ_only_in_capital_letters_are_two(tmp_path):
    """A folder that is named exactly like one of them is that one."""
    put(tmp_path / "a" / "1.png", tmp_path / "A" / "1.png")
    assert find_photographs(str(tmp_path), ["A", "a"]).labels == [0, 1]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["cats/1.png"], "has the folder cats, which is no class of the version"),
        (["none/1.png"], "has no photograph of a class. Expected "),
        (["cat/.hidden"], "has no photograph of a class"),
        ([], "is not a folder. --photos takes a folder"),
    ],
)
def test_a_folder_without_photographs_of_classes_is_refused_with_a_sentence(tmp_path, files, sentence):
    """Figures that leave out a folder with a mistyped name would be wrong in silence."""
    put(*(tmp_path / "photos" / file for file in files))
    with pytest.raises(DataError, match=sentence):
        find_photographs(str(tmp_path / "photos"), CLASS_NAMES)


def test_the_interval_of_a_mean_over_classes_is_that_of_wilson_for_one_class_and_narrower_for_several():
    """Each class counts the same, so a class with few images widens it."""

    def entries(*counts: tuple[int, int]) -> list[dict]:
        return [{"accuracy": right / images, "interval": wilson_interval(right, images)} for right, images in counts]

    assert mean_interval(entries((7, 10))) == pytest.approx(wilson_interval(7, 10))
    low, high = mean_interval(entries((7, 10), (70, 100)))
    assert wilson_interval(7, 10)[0] < low < 0.7 < high < wilson_interval(7, 10)[1]
    assert mean_interval(entries((9, 9), (5, 5)))[1] == 1


def test_the_interval_of_the_auroc_covers_it_and_is_the_same_each_time():
    """It comes from resampling, with a fixed seed."""
    random = np.random.default_rng(3)
    lower, higher = random.normal(0, 1, 80), random.normal(1, 1, 60)
    low, high = auroc_interval(lower, higher)
    assert 0.6 < low < auroc(lower, higher) < high < 0.9
    assert auroc_interval(lower, higher) == [low, high]
    assert auroc_interval(lower, lower.max() + higher - higher.min() + 1) == [1, 1]


def test_card_manifest_and_page_have_the_figures_of_the_photographs(folder, tmp_path):
    """`card` is the one way to write them into a manifest; the page shows those for the number of views that it takes."""
    shutil.copytree(SHIPPED.get(2).path, tmp_path / "cifar_classifier" / "2")
    settings, registry = Settings(registry=tmp_path), Registry(tmp_path, "cifar_classifier")
    data = tmp_path / "data"
    for example in EXAMPLES:
        for part in ("train", "test"):
            (data / part / example.stem).mkdir(parents=True)
            shutil.copy(example, data / part / example.stem)
    folders = [f"first ones={folder}", f"second={folder}"]
    report = make_report(
        registry.get(2), settings, str(data), photographs=folders, out=tmp_path / "report", disturbed_images=2
    )
    path = write_card(tmp_path / "report", settings, tmp_path / "CARD.md", None, license_id="mit")
    measured = report["photographs"][0]["views"]["1"]
    shown = registry.get(2).manifest.metrics["photographs"]
    assert [each["source"] for each in shown] == ["first ones", "second"]
    assert shown[0]["accuracy"] == measured["accuracy"]
    assert shown[0]["number_of_views"] == 1, "version 2 was not measured to gain from several"
    registry.get(2).verify()
    text = path.read_text()
    for row in ("test images | 10 |", "test images, noise 16 | 2 |", "photographs: first ones, views=6 | 11 |"):
        assert f"| {row}" in text
    front = ModelCard.load(path).data
    assert (front.license, front.model_name) == ("mit", "cifar_classifier")
    results = {
        (each.dataset_type, each.dataset_config, each.metric_type): each.metric_value for each in front.eval_results
    }
    assert results["first-ones", "views=1", "accuracy"] == pytest.approx(measured["accuracy"], abs=1e-4)
    assert results["data", None, "accuracy"] == pytest.approx(report["accuracy"], abs=1e-4)
    assert len(results) == 2 + 2 * 2 * 2
    (evaluate,) = [line for line in text.splitlines() if " evaluate " in line]
    assert "--photos 'first ones=DIR'" in evaluate
    page = model_html(registry.get(2).manifest)
    assert page.count("Accuracy on photographs") == 2
    assert "first ones" in page
