"""What the page says, without a browser: both languages, sentences of answers, the model's measurements."""

from __future__ import annotations

import re
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.two_versions import write_two_versions

from cifar import errors
from cifar.models.manifest import Manifest
from cifar.models.predictor import Prediction
from cifar.models.registry import Registry
from cifar.serving.inference.classify import Classification
from cifar.serving.page import texts
from cifar.serving.page.answer import answer_html, percent, sentence
from cifar.serving.page.code import code_html
from cifar.serving.page.model_tab import model_html
from cifar.serving.page.plots import Series, curves
from cifar.serving.page.snippets import SNIPPETS
from cifar.serving.page.texts import LANGUAGES, TEXTS, Words, class_name, error_words, spans, words
from cifar.settings import ROOT

PAGE = ROOT / "cifar/serving/page"
SOURCES = {file.name: file.read_text(encoding="utf-8") for file in sorted(PAGE.rglob("*")) if file.is_file() and file.suffix != ".pyc"}
CHINESE = re.compile(r"[\u3001-\u9fff\uff00-\uffef]")


@pytest.mark.parametrize("key", sorted(TEXTS))
def test_every_text_is_there_in_both_languages_with_the_same_gaps(key):
    """Chinese is Chinese, English is English, and neither forgets a value."""
    english, chinese = TEXTS[key]
    by_code = re.fullmatch(r"error\.\w+", key) and key != "error.unreachable"
    assert bool(english) != bool(by_code), "an error's English sentence is the error's own"
    assert not CHINESE.search(english)
    gaps = [{field for _, field, _, _ in string.Formatter().parse(text) if field} for text in (english, chinese)]
    if key != "error" and not by_code:
        assert gaps[0] == gaps[1]
    if key not in {"code.javascript", "code.python_client", "code.python_requests"}:
        assert CHINESE.search(chinese) or key == "error"


def test_every_text_is_used_and_every_text_used_is_there():
    """No key is misspelt, none is left over."""
    code = "".join(text for name, text in SOURCES.items() if not name.startswith("texts"))
    used = set(re.findall(r"""["']([a-z_]+(?:\.[a-z_0-9]+)*)["']""", code))
    used |= {f"code.{snippet.name}" for snippet in SNIPPETS}
    used |= {f"model.{name}" for name in used}  # `_section` and `_facts` put `model.` before a name
    elsewhere = {key for key in TEXTS if key.startswith(("class.", "error."))} | {
        "error",
        "code.copy",
        "code.copied",
        "common.complete",
    }
    assert set(TEXTS) - used - elsewhere == set()
    asked = set(re.findall(r"""(?:say|words|TRANSLATE|translate|cifar\.say|cifar\.words)\(["']([\w.]+)["']""", code))
    assert asked - set(TEXTS) == set()


def test_every_error_that_the_page_can_meet_has_a_chinese_sentence():
    """By its code; those of the command line alone are left out."""
    line_only = {"bulk_failed", "bad_data", "training_failed", "export_failed", "bad_key", "bad_records", "bad_setting"}
    tree = [errors.CifarError]
    for error in tree:
        tree += error.__subclasses__()
    here = [error for error in tree if error.__module__ == "cifar.errors"]
    missing = {error.code for error in here} - line_only - {key.removeprefix("error.") for key in TEXTS}
    assert missing == set()


def test_an_error_says_its_details_in_both_languages():
    """What came, what was expected: the details are the error's own."""
    told = error_words(errors.BadParameter("top_k must be from 1 to 10, the number of classes; got 11."))
    assert told.en == "top_k must be from 1 to 10, the number of classes; got 11."
    assert told.zh == "参数不正确（top_k must be from 1 to 10, the number of classes; got 11.）"


@pytest.mark.parametrize(
    ("scores", "english", "chinese"),
    [
        ({"cat": 0.95, "dog": 0.05}, "Almost certainly a cat.", "几乎可以肯定是猫。"),
        ({"cat": 0.7, "dog": 0.3}, "Probably a cat; a dog is possible.", "很可能是猫；也可能是狗。"),
        ({"airplane": 0.4, "bird": 0.35, "ship": 0.25}, "Perhaps an airplane; a bird or a ship is possible.", None),
        (
            {"cat": 0.3, "dog": 0.3, "deer": 0.3, "frog": 0.1},
            "Hard to tell; most like a cat; a dog or a deer is possible.",
            None,
        ),
        ({"gadget": 0.99, "x": 0.01}, "Almost certainly a gadget.", "几乎可以肯定是gadget。"),
    ],
)
def test_an_answer_is_said_in_one_sentence(scores, english, chinese):
    """As sure as the score is, and no surer."""
    said = sentence(Prediction(scores, list(scores.items())[:1]))
    assert said.en == english
    assert chinese is None or said.zh == chinese


def an_answer(**more) -> Classification:
    scores = {"cat": 0.97, "dog": 0.03}
    prediction = replace(Prediction(scores, list(scores.items())), **more)
    return Classification("m", 3, prediction, np.zeros((8, 8, 3), np.uint8), 1.25)


def known_confidence(images: int | None = 2300, error: float | None = 0.014) -> Manifest:
    """The shipped version's manifest, its confidence fitted on so many images and measured to be so far off."""
    manifest = Registry(ROOT / "saved_model", "cifar_classifier").get(2).manifest
    fitted = None if images is None else manifest.confidence.model_copy(update={"held_out_images": images})
    test = {**manifest.metrics["test"], "ece": error}
    return manifest.model_copy(update={"confidence": fitted, "metrics": {**manifest.metrics, "test": test}})


def test_a_photo_of_none_of_the_classes_is_said_so_above_the_bars():
    """However sure the model is: the sentence names no class."""
    page = answer_html(
        an_answer(ood_score=9.0, in_distribution=False), manifest=known_confidence(), explains=True, request_id="a"
    )
    assert "Probably none of the classes." in page
    assert "很可能不属于任何类别。" in page
    assert "Is it none of the classes?" in page
    assert "Is this right?" not in page
    assert page.index("do not rely on the bars") < page.index('class="bars"')
    assert "certainly" not in page
    assert "doubtful" in page


@pytest.mark.parametrize(("near", "said"), [(True, False), (None, True)])
def test_a_version_that_cannot_tell_says_so(near, said):
    """Silence would pass for a promise."""
    page = answer_html(an_answer(in_distribution=near), manifest=known_confidence(None), explains=False)
    assert ("cannot tell photos of other things apart" in page) == said
    assert "none of the classes." not in page
    assert "data-why" not in page


def test_a_class_name_is_text_and_never_html():
    """Whoever trains on folders may name them anything."""
    scores = {"<b>": 0.9, "</b>": 0.1}
    answer = replace(an_answer(), prediction=Prediction(scores, list(scores.items())))
    page = answer_html(answer, manifest=known_confidence(None), explains=True)
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_a_class_named_none_has_one_button_for_what_was_right():
    """It and none of the classes are one label; two buttons for it would be one too many."""
    scores = {"cat": 0.9, "none": 0.1}
    answer = replace(an_answer(), prediction=Prediction(scores, list(scores.items())))
    page = answer_html(answer, manifest=known_confidence(None), explains=False, request_id="a")
    assert page.count('data-right="none"') == 1


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        (None, 0.29, ["Confidence is not calibrated."]),
        (6, None, ["Confidence was calibrated on 6 images only."]),
        (
            6,
            0.294,
            ["Confidence was calibrated on 6 images only.", "On 10,000 test images, confidence was off by 29.4 %"],
        ),
        (2300, 0.294, ["On 10,000 test images, confidence was off by 29.4 % on average."]),
        (2300, 0.014, ["Confidence is calibrated."]),
        (2300, None, ["Confidence is calibrated."]),
    ],
)
def test_few_held_out_images_or_a_large_error_are_no_calibration(images, error, said):
    """What is known is said instead, on the tab Model too."""
    manifest = known_confidence(images, error)
    page = answer_html(an_answer(), manifest=manifest, explains=False)
    assert all(sentence in page for sentence in said)
    assert ("Confidence is calibrated." in page) == (said == ["Confidence is calibrated."])
    facts = model_html(manifest)
    assert ("calibrated" in facts) == (images is None)
    assert (f"temperature 0.61, fitted on {images or 0:,} held-out images" in facts) == (images is not None)


def test_nearly_certain_never_looks_like_certain():
    """Of rounding alone nobody becomes infallible."""
    assert [percent(share) for share in (1, 0.9997, 0.9994, 0.5, 0)] == [
        "100.0 %",
        "> 99.9 %",
        "99.9 %",
        "50.0 %",
        "0.0 %",
    ]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(write_two_versions(tmp_path), "cifar_classifier")


def test_the_model_tab_shows_what_the_manifest_holds(registry):
    """Accuracy with its interval, bars, matrix, reliability, curves, signatures."""
    manifest = registry.get(2).manifest
    page = model_html(manifest)
    measured = manifest.metrics["test"]
    assert percent(measured["accuracy"]) in page
    assert percent(measured["accuracy_interval"][0]) in page
    assert page.count('class="track whisker"') == 10
    assert page.count('class="right"') == 10
    assert page.count("<circle") == sum(1 for share in measured["reliability"] if share["images"])
    assert page.count("<polyline") == 4
    assert "serving_uint8" in page
    assert "no training curves" not in page


@pytest.mark.parametrize(
    ("values", "upwards"),
    [
        ([0.54, 0.65, 0.76], ["0.5", "0.6", "0.7", "0.8"]),
        ([0.6812, None, 0.6834], ["0.681", "0.682", "0.683", "0.684"]),
        ([2.3, float("nan"), 0.31], ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]),
        ([1.0, 1.0], ["0.75", "1.00"]),
        ([0.6812], ["0.50", "0.75"]),
    ],
)
def test_a_curve_stands_between_round_numbers_and_one_epoch_is_a_dot(values, upwards):
    """A line of one point draws nothing."""
    plot = curves(Words("Loss", "损失"), [Series(Words("training", "训练"), "first", values)])
    assert re.findall('text-anchor="end">([^<]+)', plot) == upwards
    assert ('<circle class="first"' in plot) == (len(values) == 1)
    assert "nan" not in plot


def test_the_model_tab_says_what_an_older_version_does_not_hold(registry):
    """It shows the rest."""
    page = model_html(registry.get(1).manifest)
    assert "no measurements by class" in page
    assert "no training curves" in page
    assert "66.8 % of 10,000 images" in page


def test_the_preprocessing_of_the_shipped_version_is_said_in_chinese_too():
    """The manifest's sentence is one that the page knows."""
    manifest = Registry(ROOT / "saved_model", "cifar_classifier").get().manifest
    assert manifest.preprocessing == TEXTS["model.preprocessing_known"].en


@pytest.mark.parametrize("address", ["http://127.0.0.1:7860/", "https://a.example/space/"])
def test_snippets_name_the_address_where_the_page_was_opened(address):
    """Copied and run, they reach this server."""
    page = code_html(address, mcp=True)
    assert page.count("data-snippet=") == len(SNIPPETS)
    assert page.count(address.rstrip("/")) == len(SNIPPETS) + 1


@pytest.mark.parametrize("address", [None, 7, "javascript:alert(1)", 'http://a"><script>', "http://a/\nb"])
def test_what_is_no_address_gets_no_snippet(address):
    """The browser sends it, and anybody can be a browser."""
    assert code_html(address, mcp=True) == ""


def test_words_go_in_by_language():
    """A class's name is Chinese in a Chinese sentence."""
    assert words("why", name=class_name("cat")) == Words("Why cat?", "为何是猫？")
    assert spans(Words("<a>", "<a>")) == "&lt;a&gt;"
    assert list(LANGUAGES) == list(Words._fields)
    assert len(Path(texts.__file__).read_text(encoding="utf-8").splitlines()) < 400
