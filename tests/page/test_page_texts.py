"""The page's texts and HTML, without a browser: both languages, answers, and the tabs Model and Code."""

from __future__ import annotations

import ast
import dataclasses
import re
import string
from pathlib import Path

import numpy as np
import pytest
from support.samples import write_two_versions

from cifar import CLASS_NAMES
from cifar.errors import BadParameter, CifarError, MissingImage
from cifar.format import percent
from cifar.models.manifest import Manifest
from cifar.models.predictor import Prediction
from cifar.models.registry import Registry
from cifar.serving.inference.classify import Classification
from cifar.serving.page.answer import answer_html, headline
from cifar.serving.page.code_tab import SNIPPETS, code_html
from cifar.serving.page.model_tab import model_html
from cifar.serving.page.plots import Series, curves
from cifar.serving.page.texts import LANGUAGES, TEXTS, Text, as_html, class_name, error_text, text
from cifar.settings import ROOT

PAGE = ROOT / "cifar/serving/page"
CHINESE = re.compile(r"[\u3001-\u9fff\uff00-\uffef]")


def test_every_text_exists_in_both_languages_with_the_same_placeholders():
    """A text that is missing in one language would leave a gap on the page."""
    for key, (english, chinese) in TEXTS.items():
        assert english, key
        assert not CHINESE.search(english), key
        assert CHINESE.search(chinese) or key in {"code.python_client", "code.python_requests", "code.javascript"}, key
        same = placeholders(english) == placeholders(chinese)
        assert same or (english, placeholders(chinese)) == ("{details}", set()), key


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_an_error_on_the_chinese_page_is_a_chinese_sentence_with_the_way_out():
    """The message of the API is English, so the page has a text of its own, without it in brackets."""
    names = {"JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "HEIF", "AVIF", "Cookie"}
    for key in [key for key in TEXTS if key.startswith("error.")]:
        chinese = TEXTS[key].zh
        assert "{" not in chinese, key
        assert "（" not in chinese or key == "error.unreadable_archive", key
        assert chinese.endswith("。"), key
        assert set(re.findall(r"[A-Za-z]{2,}", chinese)) <= names, key


def test_an_error_on_the_page_names_no_part_of_the_api():
    """A person at the page cannot send a form field or a header."""
    for key, (english, _) in TEXTS.items():
        if key.startswith("error."):
            assert not re.search("`|field|Content-Type|header|Bearer|/docs", english), key
    assert error_text(MissingImage("No image came. Send one as the file field `image`.")).en.startswith(
        "The file is empty."
    )


def keys_in_the_code() -> set[str]:
    """Return every string constant of the page's Python and JavaScript that has the form of a key: `group.name`."""
    constants = set()
    for file in PAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    for file in PAGE.rglob("*.js"):
        constants |= set(re.findall(r'"([^"\n]*)"', file.read_text(encoding="utf-8")))
    groups = {key.partition(".")[0] for key in TEXTS}
    form = re.compile(rf"({'|'.join(groups)})\.\w+")
    return {constant for constant in constants if isinstance(constant, str) and form.fullmatch(constant)}


def codes_of_the_server(error: type[CifarError] = CifarError) -> set[str]:
    """Return the codes of all errors that a request can get; those that only commands raise have status 500."""
    own = {error.code} if error.status != 500 or error is CifarError else set()
    return own.union(*(codes_of_the_server(kind) for kind in error.__subclasses__()))


def test_the_texts_are_exactly_those_that_the_page_uses():
    """A misspelt key, or an error without a text, would fail only when the page shows it. An unused text is dead weight."""
    by_code = {f"error.{code}" for code in codes_of_the_server()}
    by_class = {f"class.{name}" for name in CLASS_NAMES}
    of_gradio = {"common.complete"}  # a key of Gradio's own, which its Chinese translation lacks
    assert set(TEXTS) == keys_in_the_code() | by_code | by_class | of_gradio


def test_the_message_of_an_error_is_shown_in_both_languages():
    """In Chinese, it is the text for the error's code."""
    shown = error_text(BadParameter("top_k must be from 1 to 10, the number of classes; got 11."))
    assert shown.en == "top_k must be from 1 to 10, the number of classes; got 11."
    assert shown.zh == "所选的值不被接受。请重新选择，或重新加载页面。"


@pytest.mark.parametrize(
    ("scores", "english", "chinese"),
    [
        ({"cat": 0.95, "dog": 0.05}, "Almost\u00a0certainly a cat.", "几乎可以肯定\u200b是猫。"),
        ({"cat": 0.7, "dog": 0.3}, "Probably a cat; a dog is possible.", "很可能\u200b是猫；也可能是狗。"),
        (
            {"airplane": 0.4, "bird": 0.35, "ship": 0.25},
            "Unsure: looks like an airplane; a bird or a ship is possible.",
            None,
        ),
        (
            {"cat": 0.3, "dog": 0.3, "deer": 0.3, "frog": 0.1},
            "Unsure: looks like a cat; a dog or a deer is possible.",
            None,
        ),
        ({"gadget": 0.99, "x": 0.01}, "Almost\u00a0certainly a gadget.", "几乎可以肯定\u200b是gadget。"),
    ],
)
def test_the_headline_of_an_answer_is_as_certain_as_its_score(scores, english, chinese):
    """A person reads the sentence, not the score."""
    shown = headline(Prediction(scores, list(scores.items())[:1]))
    assert shown.en == english
    assert chinese is None or shown.zh == chinese


@pytest.mark.parametrize(
    ("scores", "english", "chinese"),
    [
        ({"cat": 0.9, "dog": 0.7, "frog": 0.4}, "Shows: cat, dog.", "识别到：猫、狗。"),
        (
            {"cat": 0.4, "dog": 0.45},
            "No class reaches 50 %; the most probable is dog.",
            "没有类别达到 50 %；最可能的是狗。",
        ),
    ],
)
def test_the_headline_of_a_multi_label_version_names_every_probable_class(scores, english, chinese):
    """`Probably a cat` would deny the dog in the same image."""
    shown = headline(Prediction(scores, list(scores.items()), multi_label=True))
    assert (shown.en, shown.zh) == (english, chinese)


def an_answer(scores: dict[str, float] | None = None, **more) -> Classification:
    scores = scores or {"cat": 0.97, "dog": 0.03}
    prediction = Prediction(scores, list(scores.items()), **more)
    return Classification("m", 3, prediction, np.zeros((1, 8, 8, 3), np.uint8), 1.25, "digest")


def manifest_with(images: int | None = 2300, error: float | None = 0.014) -> Manifest:
    """Return the shipped version's manifest with confidence fitted on `images` and a calibration error of `error`."""
    manifest = Registry(ROOT / "saved_model", "cifar_classifier").get(2).manifest
    fitted = None if images is None else manifest.confidence.model_copy(update={"held_out_images": images})
    test = {**manifest.metrics["test"], "ece": error}
    photographs = [{**folder, "ece": 0.0414} for folder in manifest.metrics["photographs"]]
    metrics = {**manifest.metrics, "test": test, "photographs": photographs}
    return manifest.model_copy(update={"confidence": fitted, "metrics": metrics})


def test_an_answer_out_of_distribution_says_so_above_the_bars():
    """The sentence names no class, however high the model's score is."""
    page = answer_html(
        an_answer(ood_score=9.0, in_distribution=False), manifest=manifest_with(), explains=True, request_id="a"
    )
    assert "Probably none of the classes." in page
    assert "很可能不属于\u200b任何类别。" in page
    assert "Is it none of the classes?" in page
    assert "Is this right?" not in page
    assert page.index("the bars say little") < page.index("It helps to show one subject") < page.index('class="bars"')
    assert "certainly" not in page
    assert "calibrated" not in page
    assert 'data-grade="none"' in page


@pytest.mark.parametrize(
    ("score", "ood_score", "grade", "sentence"),
    [
        (0.96, 0.2, "class", "Almost\u00a0certainly a cat."),
        (0.7, 1.0, "class", "Probably a cat"),
        (0.55, 0.2, "unsure", "Unsure: looks like a cat"),
        (0.96, 1.01, "unsure", "Unsure: looks like a cat."),
        (0.89, 1.01, "none", "Probably none of the classes."),
        (0.99, 2.01, "none", "Probably none of the classes."),
        (0.96, None, "class", "Almost\u00a0certainly a cat."),
        (0.59, None, "unsure", "Unsure: looks like a cat"),
    ],
)
def test_an_answer_has_one_grade_and_nothing_on_the_page_contradicts_it(score, ood_score, grade, sentence):
    """A photo just over the threshold with one class at 96 % used to be "none", with "confidence is calibrated" below."""
    scores = {"cat": score, "dog": 1 - score}
    known = None if ood_score is None else ood_score <= 1
    prediction = Prediction(scores, list(scores.items())[:1], ood_score, known)
    assert prediction.grade == grade
    assert headline(prediction).en.startswith(sentence)
    answer = an_answer(scores, ood_score=ood_score, in_distribution=known)
    page = answer_html(answer, manifest=manifest_with(), explains=True, request_id="a")
    assert f'data-grade="{grade}"' in page
    assert ("Confidence is calibrated" in page) == (grade == "class")
    assert ("On photographs, it differed from accuracy by 4.1 % on average" in page) == (grade == "class")
    assert ("Is it none of the classes?" in page) == (grade == "none")
    assert ('class="doubt"' in page) == (grade != "class")
    assert "It helps to show one subject that fills the frame" in page
    assert "If you cannot recognise it in the 8 x 8 pixels below" in page


def test_the_model_tab_shows_the_accuracy_on_photographs_beside_that_on_test_images():
    """Test images alone would promise too much."""
    manifest = manifest_with()
    page = model_html(manifest)
    assert page.index("Test accuracy") < page.index("Accuracy on photographs") < page.index("Top-2")
    assert "59.4 % of 101 images" in page
    unmeasured = {name: value for name, value in manifest.metrics.items() if name != "photographs"}
    assert "not measured" in model_html(manifest.model_copy(update={"metrics": unmeasured}))


@pytest.mark.parametrize(("in_distribution", "shown"), [(True, False), (None, True)])
def test_a_version_without_ood_score_says_that_it_has_none(in_distribution, shown):
    """Otherwise people would assume that such a version detects photos of other things."""
    page = answer_html(an_answer(in_distribution=in_distribution), manifest=manifest_with(None), explains=False)
    assert ("cannot detect photos that show none of its classes" in page) == shown
    assert "none of the classes." not in page
    assert "data-why" not in page


def test_the_page_does_not_say_whether_a_photo_was_answered_before():
    """Otherwise whoever has a photo would learn that another caller sent it lately."""
    new = an_answer()
    earlier = dataclasses.replace(new, inference_ms=None)
    pages = {answer_html(answer, manifest=manifest_with(), explains=True) for answer in (new, earlier)}
    assert new.inference_ms is not None
    assert len(pages) == 1


def test_a_class_name_is_shown_as_text_and_never_as_html():
    """A folder of training images can have any name."""
    page = answer_html(an_answer({"<b>": 0.9, "</b>": 0.1}), manifest=manifest_with(None), explains=True)
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_a_class_named_none_has_one_feedback_button():
    """The class and "none of the classes" are the same label for feedback."""
    answer = an_answer({"cat": 0.9, "none": 0.1})
    page = answer_html(answer, manifest=manifest_with(None), explains=False, request_id="a")
    assert page.count('data-right="none"') == 1


@pytest.mark.parametrize(
    ("images", "error", "shown"),
    [
        (None, 0.29, ["Confidence is not calibrated."]),
        (6, None, ["Confidence was calibrated on only 6 images."]),
        (
            6,
            0.294,
            [
                "Confidence was calibrated on only 6 images.",
                "On 10,000 test images, confidence differed from accuracy by 29.4 percentage points",
            ],
        ),
        (
            2300,
            0.294,
            ["On 10,000 test images, confidence differed from accuracy by 29.4 percentage points on average."],
        ),
        (2300, 0.014, ["Confidence is calibrated on images like"]),
        (2300, None, ["Confidence is calibrated on images like"]),
    ],
)
def test_confidence_counts_as_calibrated_only_with_enough_images_and_a_small_error(images, error, shown):
    """Otherwise the page shows the reasons for doubt; the tab Model shows the numbers."""
    manifest = manifest_with(images, error)
    page = answer_html(an_answer(), manifest=manifest, explains=False)
    assert all(sentence in page for sentence in shown)
    assert ("Confidence is calibrated on" in page) == shown[0].startswith("Confidence is calibrated on")
    facts = model_html(manifest)
    assert ("calibrated" in facts) == (images is None)
    assert (f"temperature 0.61, fitted on {images or 0:,} held-out images" in facts) == (images is not None)


def test_a_share_just_below_one_is_not_shown_as_100_percent():
    """100.0 % would claim that there are no exceptions."""
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


def test_the_model_tab_shows_what_the_manifest_contains(registry):
    """It has accuracy with its interval, bars, confusion matrix, reliability diagram, curves and signatures."""
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
    ("values", "ticks"),
    [
        ([0.54, 0.65, 0.76], ["0.5", "0.6", "0.7", "0.8"]),
        ([0.6812, None, 0.6834], ["0.681", "0.682", "0.683", "0.684"]),
        ([2.3, float("nan"), 0.31], ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]),
        ([1.0, 1.0], ["0.75", "1.00"]),
        ([0.6812], ["0.50", "0.75"]),
    ],
)
def test_the_axis_of_a_curve_has_round_numbers_and_one_epoch_is_a_dot(values, ticks):
    """A line with one point would be invisible."""
    plot = curves(Text("Loss", "损失"), [Series(Text("training", "训练"), "first", values)])
    assert re.findall('text-anchor="end">([^<]+)', plot) == ticks
    assert ('<circle class="first"' in plot) == (len(values) == 1)
    assert "nan" not in plot


def test_the_model_tab_says_what_the_manifest_of_an_older_version_lacks(registry):
    """It still shows everything else."""
    page = model_html(registry.get(1).manifest)
    assert "no accuracy by class" in page
    assert "no training curves" in page
    assert "66.8 % of 10,000 images" in page


def test_the_model_tab_draws_no_course_of_a_single_epoch(registry):
    """The manifest of the shipped version 3 has one, and charts with one dot say nothing."""
    manifest = registry.get(2).manifest
    metrics = manifest.metrics | {"history": manifest.metrics["history"][:1]}
    page = model_html(manifest.model_copy(update={"metrics": metrics}))
    assert 'id="curves-title"' in model_html(manifest)
    assert 'id="curves-title"' not in page
    assert "no training curves" not in page


def test_the_preprocessing_of_the_shipped_version_has_a_chinese_text():
    """The page translates only the description that it knows."""
    manifest = Registry(ROOT / "saved_model", "cifar_classifier").get().manifest
    assert manifest.preprocessing == TEXTS["model.preprocessing_known"].en


@pytest.mark.parametrize("address", ["http://127.0.0.1:7860/", "https://a.example/space/"])
def test_the_snippets_contain_the_address_of_the_opened_page(address):
    """A copied snippet must reach this server, also behind a proxy that adds a prefix."""
    page = code_html(address, mcp=True)
    assert page.count("data-snippet=") == len(SNIPPETS)
    assert page.count(address.rstrip("/")) == len(SNIPPETS) + 1


@pytest.mark.parametrize("address", [None, 7, "javascript:alert(1)", 'http://a"><script>', "http://a/\nb"])
def test_a_value_that_is_no_address_gets_no_snippet(address):
    """The address comes from the request, so it can be anything."""
    assert code_html(address, mcp=True) == ""


def test_a_text_is_filled_into_another_by_language_and_escaped():
    """The name of a class is Chinese in a Chinese sentence, and is no HTML in either."""
    assert text("why.title", name=class_name("cat")) == Text("Why cat?", "为何是猫？")
    assert as_html(Text("<a>", "<a>")) == "&lt;a&gt;"
    assert list(LANGUAGES) == list(Text._fields)
