"""Tests of `cifar.show`: a cell of a real notebook, and the kinds of image that it accepts and refuses."""

from __future__ import annotations

import re
import shutil

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image
from support.shipped import NEWEST

import cifar
from cifar.cli.main import main
from cifar.errors import BadParameter, MissingImage, UnreadableImage
from cifar.models.predictor import Prediction
from cifar.notebook import ShownPrediction
from cifar.settings import ROOT

CAT = ROOT / "examples" / "cat.jpg"


@pytest.mark.slow
def test_a_notebook_cell_draws_the_answer():
    """A real kernel runs the cell and returns HTML with the bars and the model's input, and plain text."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import cifar\ncifar.show('examples/cat.jpg', top_k=4)")]
    )
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(ROOT)}}).execute()
    (output,) = [output for output in notebook.cells[0].outputs if output.output_type == "execute_result"]
    drawn = output.data["text/html"]
    assert drawn.count("<li>") == 4
    assert "<span>cat</span>" in drawn
    assert 'src="data:image/png;base64,' in drawn
    assert "32 x 32 pixels" in drawn
    assert output.data["text/plain"].startswith("cat ")


def test_every_kind_of_image_argument_gives_the_same_prediction():
    """A path, a string, bytes, a Pillow image, an array of bytes and an array of floats."""
    image = Image.open(CAT)
    pixels = np.asarray(image)
    answers = [cifar.show(form) for form in (CAT, str(CAT), CAT.read_bytes(), image, pixels, pixels / 255)]
    assert {repr(answer) for answer in answers} == {repr(answers[0])}
    assert all(np.array_equal(answer.seen, pixels) for answer in answers)
    assert len(answers[0].prediction.top_k) == 3
    assert cifar.show(pixels[..., 0]).seen.shape == (32, 32, 3), "greyscale too"
    assert cifar.show(image.convert("CMYK")).prediction.top_k[0][0] == "cat"
    assert cifar.show(pixels[..., :1], version=1, top_k=1).version == 1


def test_the_default_version_is_the_promoted_one(tmp_path, monkeypatch):
    """Notebooks and the page use the same version, after a rollback too."""
    shutil.copytree(ROOT / "saved_model", tmp_path / "models")
    monkeypatch.setenv("CIFAR_REGISTRY", str(tmp_path / "models"))
    assert cifar.show(CAT).version == NEWEST
    assert main(["models", "promote", "1"]) == 0
    assert cifar.show(CAT).version == 1


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ("nothing.jpg", MissingImage, "image 'nothing.jpg' cannot be read: No such file"),
        (b"", UnreadableImage, "empty"),
        (3, BadParameter, r"got builtins\.int"),
        (np.zeros((2, 2), np.int64), BadParameter, r"got int64 of shape \(2, 2\)"),
        (np.full((2, 2, 3), 7.0), BadParameter, "floats in"),
        (np.zeros((4, 2, 2, 3), np.uint8), BadParameter, r"shape \(4, 2, 2, 3\)"),
    ],
)
def test_an_unusable_image_is_refused_with_a_sentence(image, error, words):
    """The message names what was passed and what was expected."""
    with pytest.raises(error, match=words):
        cifar.show(image)


def test_names_are_escaped_in_the_html():
    """A class name comes from a folder name, which may contain HTML."""
    prediction = Prediction(class_scores={}, top_k=[("<script>alert(1)</script>", 0.5)], in_distribution=False)
    drawn = ShownPrediction("<b>", 1, prediction, np.zeros((4, 4, 1), np.uint8))._repr_html_()
    assert "<script" not in drawn
    assert "<b>" not in drawn
    assert "Unsure: it may be another class" in drawn


def test_the_html_sets_no_text_colour_and_makes_no_request():
    """It is readable in light and dark notebooks, and works offline."""
    drawn = cifar.show(CAT)._repr_html_()
    assert not re.search(r"[{;]color:", drawn), "text keeps the notebook's colour"
    assert "http" not in drawn
    assert "Unsure" not in drawn


def test_a_misspelt_attribute_of_the_package_is_an_attribute_error():
    """`cifar.show` is loaded lazily; other names must still fail as usual."""
    with pytest.raises(AttributeError, match="has no attribute 'shw'"):
        _ = cifar.shw
