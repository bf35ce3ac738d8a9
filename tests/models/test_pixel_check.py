"""The pixel values that a model expects, where its layers do not show them: measured on labelled pictures, or asked for."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from support.classifiers import BRIGHTNESSES, L, by_brightness
from support.folders import put
from support.pixel_kinds import SHADES, saved

from cifar.cli.main import main
from cifar.errors import ExportError
from cifar.images.spec import ImageSpec
from cifar.settings import ROOT
from cifar.training.export.pixels.labelled import read_labelled
from cifar.training.export.pixels.preparation import parse_preparation
from cifar.training.export.source import read_source


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(7)


def brightness_pictures(folder, count: int = 4, *, labels=tuple(BRIGHTNESSES), wrong: int = 0):
    """Write plain pictures into folders named after the classes, the first `wrong` of each class into another one."""
    dice = np.random.default_rng(1)
    for at, label in enumerate(labels):
        for number in range(count):
            name = labels[(at + 1) % len(labels) if number < wrong else at]
            value = BRIGHTNESSES[label]
            pixels = dice.integers(value - 8, value + 8, (20, 24, 3)).astype(np.uint8)
            put(folder / name / f"{label}_{number}.png", Image.fromarray(pixels))
    return folder


def flat(folder):
    """Move the pictures of class folders into one folder, named after their classes."""
    for file in sorted(folder.glob("*/*.png")):
        file.rename(folder / f"{file.parent.name.title()} {file.stem[-1]}.png")
    return folder


@pytest.mark.parametrize("truth", ["0,255", "0,1", "-1,1", "caffe", "torch"])
def test_labelled_pictures_decide_and_their_counts_are_recorded(settings, tmp_path, truth, caplog):
    """A user who does not know the range has pictures, and the true range gets them right."""
    black, white = {"caffe": (-116, 139), "torch": (-2.0, 2.4)}.get(truth) or map(float, truth.split(","))
    file = saved(by_brightness(black, white), tmp_path)
    pictures = brightness_pictures(tmp_path / "pictures")
    source = read_source(file, settings, class_names=SHADES, check=pictures)
    assert (source.pixels.preparation.name, source.pixels.found_by) == (truth, "check")
    assert f"of 20 labelled pictures, right are: {truth} 20, " in source.pixels.evidence
    assert source.pixels.evidence in caplog.text


def test_labelled_pictures_may_bear_their_class_in_their_names(settings, tmp_path):
    """Photos in one folder are often named after what they show, with a number, in any case."""
    pictures = flat(brightness_pictures(tmp_path / "pictures"))
    (pictures / "darkness.png").write_bytes((pictures / "White 0.png").read_bytes())  # is another word than dark
    source = read_source(saved(by_brightness(-1, 1), tmp_path), settings, class_names=SHADES, check=pictures)
    assert source.pixels.evidence.startswith("of 20 labelled pictures, right are: -1,1 20, ")


@pytest.mark.parametrize(
    ("labels", "wrong", "named"),
    [
        (("black", "grey", "white"), 0, "--input-range=-1,1 or --preprocessing=torch"),
        (SHADES, 3, "--preprocessing=torch"),
    ],
    ids=["a tie", "mostly wrong labels"],
)
def test_labelled_pictures_that_do_not_decide_are_an_error_with_their_counts(settings, tmp_path, labels, wrong, named):
    """A tie, a narrow lead and mostly wrong pictures are no reason to take a range."""
    pictures = brightness_pictures(tmp_path / "pictures", labels=labels, wrong=wrong)
    expected = (
        rf"--check does not decide: of {4 * len(labels)} labelled pictures, right are: .*\n.*{named} \(caffe is for"
    )
    with pytest.raises(ExportError, match=expected) as refusal:
        read_source(saved(by_brightness(-1, 1), tmp_path), settings, class_names=SHADES, check=pictures)
    assert len(str(refusal.value).splitlines()) <= 3


def test_labelled_pictures_confirm_what_the_layers_show_or_contradict_it(settings, tmp_path):
    """A model that was trained on pixels divided twice shows 0..255, and its pictures show 0..1."""
    pictures = brightness_pictures(tmp_path / "pictures")
    right = read_source(
        saved(by_brightness(0, 1, L.Rescaling(1 / 255)), tmp_path), settings, class_names=SHADES, check=pictures
    )
    assert right.pixels.found_by == "layers"
    assert "turns 0,255 into 0,1; of 20 labelled pictures" in right.pixels.evidence
    divided_twice = by_brightness(0, 1 / 255, L.Rescaling(1 / 255))
    with pytest.raises(
        ExportError, match=r"--check contradicts the model(.|\n)*--input-range=0,255 or --input-range=0,1"
    ):
        read_source(saved(divided_twice, tmp_path), settings, class_names=SHADES, check=pictures)


def test_a_folder_without_labelled_pictures_is_refused(settings, tmp_path):
    """The message names the expected folders; a thousand classes do not make it longer."""
    file = saved(by_brightness(0, 1), tmp_path)
    put(tmp_path / "cats" / "cat.jpg", b"no picture")
    with pytest.raises(
        ExportError, match=r"holds no picture of a class of the model.*\(black, dark, grey, \.\.\.\).*black_1\.jpg"
    ):
        read_source(file, settings, class_names=SHADES, check=tmp_path / "cats")
    with pytest.raises(ExportError, match="is not a folder"):
        read_source(file, settings, class_names=SHADES, check=tmp_path / "missing")


def without_biases(scale: float) -> keras.Model:
    """Return a network of which larger pixels change no label and make it surer: pink is what has twice as much red as blue."""
    model = keras.Sequential(
        [L.Input((16, 16, 3)), L.GlobalAveragePooling2D(), L.Dense(2, use_bias=False), L.Softmax()]
    )
    model.layers[1].set_weights([np.float32([[0, 2], [0, 0], [0, -1]]) * scale])
    return model


def coloured_pictures(folder, wrong: int):
    """Write ten pictures of each colour, of which the first `wrong` blue ones are labelled as pink."""
    for name, colour in {"blue": (80, 0, 200), "pink": (150, 0, 200)}.items():
        for number in range(10):
            label = "pink" if number < wrong else name
            put(folder / label / f"{name}_{number}.png", Image.new("RGB", (16, 16), colour))
    return folder


@pytest.mark.parametrize(
    ("scale", "wrong", "found"), [(8, 1, "0,1"), (8 / 255, 1, "0,255"), (8 / 255, 0, "0,255"), (8, 0, None)]
)
def test_a_tie_of_the_labels_is_broken_by_the_confidences_where_they_tell(settings, tmp_path, scale, wrong, found):
    """A ReLU network without biases gives the same labels for 0 to 255 as for 0 to 1, and wrong confidences for one of them."""
    pictures = coloured_pictures(tmp_path / "pictures", wrong)
    file = saved(without_biases(scale), tmp_path)
    if found:
        source = read_source(file, settings, class_names=("blue", "pink"), check=pictures)
        assert (source.pixels.preparation.name, source.pixels.found_by) == (found, "check")
        assert "the labels agree and the confidences differ" in source.pixels.evidence
        return
    with pytest.raises(ExportError, match="the labels agree and the confidences differ") as refusal:
        read_source(file, settings, class_names=("blue", "pink"), check=pictures)
    assert len(str(refusal.value).splitlines()) <= 3


@pytest.mark.parametrize(("exchanged", "found"), [(True, "bgr:0,1"), (False, "0,1")])
def test_labelled_pictures_show_that_a_model_was_trained_on_bgr(settings, tmp_path, exchanged, found):
    """Images that OpenCV read have blue first. A model served without that exchange still answers, and mostly wrongly."""
    model = without_biases(8)
    kernel = model.layers[1].get_weights()[0]
    model.layers[1].set_weights([kernel[::-1] if exchanged else kernel])
    source = read_source(
        saved(model, tmp_path),
        settings,
        class_names=("blue", "pink"),
        check=coloured_pictures(tmp_path / "pictures", wrong=1),
    )
    assert source.pixels.preparation.name == found


@pytest.mark.parametrize("folder", ["T-shirt_top", "t shirt top", "T-SHIRT-TOP", "T-shirt - top"])
def test_folders_of_check_match_class_names_that_no_folder_can_have(tmp_path, folder):
    """Fashion-MNIST has a class T-shirt/top; on a disk it is written with another sign."""
    for name, content in (("1.png", None), ("2.jpg", b"damaged"), ("notes.txt", b"no picture")):
        put(tmp_path / folder / name, content)
    put(tmp_path / "Hat" / "3.png")
    read = read_labelled(tmp_path, ("T-shirt/top", "Bag"), ImageSpec(height=8, width=8, channels=3), max_pixels=10**6)
    assert read.labels.tolist() == [0]
    assert "1 whose folder and name fit no class (Hat/3.png)" in read.left_out
    assert f"1 that cannot be read ({folder}/2.jpg)" in read.left_out


def test_one_label_for_the_examples_is_no_matter_where_labelled_pictures_are_given(settings, tmp_path, caplog):
    """The examples show nothing that a model of other subjects knows; the pictures of --check do."""
    images = tmp_path / "images"
    for number in range(5):
        put(images / f"{number}.png", Image.new("RGB", (16, 16), (128,) * 3))
    pictures = brightness_pictures(tmp_path / "pictures")
    file = saved(by_brightness(0, 1), tmp_path)
    options = {"class_names": SHADES, "images": images, "check": pictures}
    source = read_source(file, settings, **options)
    assert "one label" not in caplog.text
    assert sum(str(pictures) in name for name in source.images) == 10, "they are compared too"
    read_source(file, settings, **options, input_range=(0, 1))
    assert "Taking 0,1: of 20 labelled pictures, right are: 0,1 20," in caplog.text
    assert "one label" not in caplog.text
    read_source(file, settings, **options, input_range=(0, 255))
    assert "All 20 pictures of --check get one label, 'white'" in caplog.text


def test_no_answer_to_the_examples_is_called_wrong_for_a_model_of_other_classes(settings, tmp_path):
    """All ten examples may rightly be of one class of it, so the true preparation was marked as probably wrong."""
    questions = []

    def ask(question):
        questions.append(question)
        return next(iter(question.answers))

    file = saved(by_brightness(0, 1), tmp_path)
    read_source(file, settings, class_names=SHADES, ask=ask)
    assert not any(questions[0].gives_one_label(each) for each in questions[0].answers)
    tied = brightness_pictures(tmp_path / "pictures", labels=("black", "white"), wrong=2)
    read_source(file, settings, class_names=SHADES, ask=ask, check=tied)
    assert str(tied) in questions[1].images[0], "the labelled pictures are shown instead"
    assert any(questions[1].gives_one_label(each) for each in questions[1].answers)


def test_a_person_is_shown_what_each_candidate_answers(settings, tmp_path):
    """The right column can be told by looking; a column of one label is marked."""
    questions = []

    def ask(question):
        questions.append(question)
        return list(question.answers)[1]

    pictures = flat(brightness_pictures(tmp_path / "pictures", count=1))
    model = by_brightness(0, 1)
    source = read_source(saved(model, tmp_path), settings, class_names=SHADES, ask=ask, images=pictures)
    (question,) = questions
    assert [each.name for each in question.answers] == ["0,255", "0,1", "-1,1", "caffe", "torch"]
    assert [label for label, _ in question.answers[parse_preparation("0,1")]] == [
        "black",
        "bright",
        "dark",
        "grey",
        "white",
    ]
    assert [each.name for each in question.answers if question.gives_one_label(each)] == ["0,255"]
    assert (source.pixels.preparation.name, source.pixels.found_by) == ("0,1", "answer")


@pytest.mark.slow
def test_export_asks_at_a_terminal_and_takes_a_number(tmp_path):
    """A newcomer at a terminal sees the answers and chooses, without starting again."""
    file = saved(by_brightness(-1, 1), tmp_path)
    pictures = flat(brightness_pictures(tmp_path / "pictures", count=1))
    person, terminal = pty.openpty()
    command = [sys.executable, "-m", "cifar", "export", str(file), "--name", "light", "--classes", ",".join(SHADES)]
    environment = os.environ | {"CIFAR_REGISTRY": str(tmp_path / "registry"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        [*command, "--images", str(pictures)],
        stdin=terminal,
        stderr=terminal,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
    )
    os.close(terminal)
    os.write(person, b"\n6\n3\n")
    output, _ = process.communicate(timeout=120)
    shown = os.read(person, 100_000).decode()
    os.close(person)
    assert process.returncode == 0, shown
    assert "1  0,255   as they are.  All images get one label: probably wrong." in shown
    assert "Black 0.png" in shown
    assert "Type the number of a row, such as 1." in shown, "only Enter was pressed"
    assert "expected caffe, tf, torch" in shown, "6 is none of the answers, and it asks again"
    manifest = json.loads((tmp_path / "registry/light/1/manifest.json").read_text())
    assert output.decode().strip() == str(tmp_path / "registry/light/1")
    assert manifest["input_range"] == [-1, 1]
    assert manifest["pixels"]["found_by"] == "answer"


@pytest.mark.slow
def test_the_command_line_names_a_preparation_and_warns_of_one_label(tmp_path, monkeypatch, capsys, caplog):
    """Exit status 0 with one answer to everything is what a wrong range looks like."""
    monkeypatch.setenv("CIFAR_REGISTRY", str(tmp_path / "registry"))
    file = saved(by_brightness(0, 1), tmp_path)
    command = ["export", str(file), "--name", "light", "--classes", ",".join(SHADES)]
    command += ["--images", str(flat(brightness_pictures(tmp_path / "pictures", count=1)))]
    assert main([*command, "--input-range", "0,255"]) == 0
    assert "All 5 comparison images get one label, 'white'" in caplog.text
    caplog.clear()
    assert main([*command, "--preprocessing=0,1"]) == 0
    assert "one label" not in caplog.text
    assert main([*command, "--input-range", "1,0"]) == 2
    assert main([*command, "--input-range", "-1,1", "--check", str(tmp_path / "pictures")]) == 0
    assert (
        "The pictures of --check speak against --input-range=-1,1: of 5 labelled pictures, right are: 0,1 5,"
        in caplog.text
    )
    assert main([*command, "--preprocessing", "vgg"]) == 2
    assert "expected caffe, tf, torch, LOW,HIGH, bgr:LOW,HIGH or MEANS/DEVIATIONS; got 'vgg'" in capsys.readouterr().err
