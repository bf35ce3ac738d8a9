"""`python -m cifar`: data to stdout, words to stderr, exit status 0, 1 or 2."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from support.cli import cifar, cifar_process
from support.pictures import encoded, noise
from support.servers import SHARED, free_port, heeding_ctrl_c, wait_until_ready

from cifar.cli.main import main
from cifar.settings import ROOT

TRAIN = ["train", "--data", "x", "--out", "y"]
COMMANDS = [
    "data",
    "train",
    "export",
    "inspect",
    "evaluate",
    "card",
    "predict",
    "models",
    "serve",
    "records",
    "keys",
    "ab",
    "drift",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    """`--help` is enough to start."""
    result = cifar(command, "--help")
    assert result.returncode == 0
    assert f"example: python -m cifar {command}" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["export", "x", "--input-range", "1"],
        ["export", "x", "--classes", "a,a"],
        ["predict"],
        ["data", "x", "--image-size", "0"],
        ["evaluate", "--data", "x", "--robustness", "0"],
        [*TRAIN, "--arch", "resnet"],
        [*TRAIN, "--epochs", "0"],
        [*TRAIN, "--batch-size", "0"],
        [*TRAIN, "--learning-rate", "nan"],
        [*TRAIN, "--time-budget", "0"],
        [*TRAIN, "--target-accuracy", "90"],
        [*TRAIN, "--validation-split", "1"],
    ],
)
def test_wrong_use_exits_with_2_and_says_how(arguments):
    """The usage line comes with the complaint."""
    result = cifar(*arguments)
    assert result.returncode == 2
    assert "Usage: cifar" in result.stderr
    if arguments[1:] and arguments[0] == "train":
        assert f"Invalid value for '{arguments[-2]}': " in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "nowhere"], "'nowhere' is no data set"),
        (["predict", "nowhere.jpg"], "nowhere.jpg: it cannot be read: No such file"),
        (["predict", "README.md"], "README.md: The file's content is not an image"),
        (["predict", "examples/cat.jpg", "--version", "99"], "no version 99"),
        (["predict", "examples/cat.jpg", "--top-k", "0"], "top_k must be from 1 to 10"),
        (["inspect", "saved_model/cifar_classifier/99"], "is not there"),
        (["inspect", "saved_model/cifar_classifier"], "whole number"),
        pytest.param(["export", "nowhere"], "is not there", marks=pytest.mark.slow),
        pytest.param(
            ["export", "tests/data/keras2_tutorial.h5", "--name", "a/b"],
            "A model's name is also a folder's name",
            marks=pytest.mark.slow,
        ),
        (["train", "--data", "tests/data", "--out", "/proc/nowhere/run"], "is no data set"),
        (["train", "--data", "tests/data", "--out", "docs"], "docs exists. Choose another --out"),
        (["evaluate", "--data", "nowhere"], "is no data set"),
        (["evaluate", "--data", "nowhere", "--version", "99"], "no version 99"),
        (["evaluate", "--data", "nowhere", "--out", "docs"], "docs exists, and a report is never overwritten"),
        (["card", "docs"], "docs holds no report"),
    ],
)
def test_a_failure_exits_with_1_and_one_sentence(arguments, words):
    """No stack trace, nothing on stdout."""
    result = cifar(*arguments)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("out", ["/proc/nowhere/run", "docs"])
def test_what_train_cannot_begin_with_is_said_before_tensorflow_is_loaded(out):
    """A misspelt folder costs no seconds."""
    code = f"import sys; from cifar.cli.main import main; main([*{TRAIN[:3]}, '--out', {out!r}]); print('keras' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout == "False\n", said.stderr


@pytest.mark.slow
def test_a_wrong_setting_names_the_variable():
    """Somebody who misspells a number reads which one."""
    for name, value in (
        ("CIFAR_MAX_BODY_BYTES", "lots"),
        ("PORT", "99999"),
        ("MODEL_VERSION", "latest"),
        ("CIFAR_CORS_ORIGINS", "https://a.example"),
        ("CIFAR_REDIS_URL", "localhost:6379"),
        ("CIFAR_REDIS_URL", "redis://localhost:six/0"),
        ("CIFAR_REDIS_URL", "redis://localhost?socket_timeout=soon"),
    ):
        result = cifar("models", **{name: value})
        assert result.returncode == 1
        assert re.search(rf"^cifar: {name}\b", result.stderr, re.MULTILINE), result.stderr
        assert "Traceback" not in result.stderr


def test_a_misspelt_setting_is_not_passed_over():
    """The sentence has the name that was meant."""
    result = cifar("models", CIFAR_MODLE_NAME="shapes")
    assert result.returncode == 1
    assert "no setting CIFAR_MODLE_NAME. Did you mean CIFAR_MODEL_NAME?" in result.stderr
    assert cifar("models", CIFAR_FOO="1").stderr == "cifar: There is no setting CIFAR_FOO.\n", "nothing is close"


@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_said_without_our_hidden_names(tmp_path):
    """Which folder, why, and the way out; the file that we would have renamed is nobody's concern."""
    keys, rows = "/proc/self/keys.json", "/proc/self/rows.csv"  # where root may not write either
    for command, words in (
        (["keys", "create", "ann"], "/proc/self cannot be used: "),
        (["predict", "--input", "examples", "--output", "/proc/self/out.parquet"], "/proc/self cannot be used: "),
        (["records", "export", "--out", rows], "/proc/self cannot be used: "),
    ):
        said = cifar(*command, CIFAR_API_KEYS_FILE=keys, CIFAR_RECORDS_FOLDER=tmp_path).stderr
        assert said.startswith(f"cifar: {words}"), said
        assert "Choose another" in said
    said = cifar("records", "export", "--out", tmp_path / "rows.csv", CIFAR_RECORDS_FOLDER="/proc/self").stderr
    assert "folder /proc/self cannot be written: No such file or directory. Set CIFAR_RECORDS_FOLDER to" in said


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "saved_model/a/.tmp-0123456789abcdef/variables"), "saved_model/a cannot"),
        (PermissionError(13, "Permission denied", ".tmp-0123456789abcdef.parquet"), ". cannot be used: Permission denied. Choose"),
        (PermissionError(13, "Permission denied", "/home/ann/.cache/x"), "/home/ann/.cache/x cannot be used: "),
        (FileNotFoundError(2, "No such file or directory", "/proc/x"), "/proc/x cannot be used: No such"),
        (OSError(28, "No space left on device"), "No space left on device. Free some space, then"),
    ],
)
def test_what_the_system_refuses_is_said_in_a_sentence(error, words, monkeypatch, capsys):
    """Without its number, and without names that nobody gave."""

    def refuse(_):
        raise error

    monkeypatch.setattr("cifar.models.inspection.inspect_version", refuse)
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err.startswith(f"cifar: {words}")


@pytest.mark.slow
def test_several_workers_are_not_promised_by_one_process():
    """`CIFAR_WORKERS=2 python app.py` would send half its sessions to a worker that is not there."""
    environment = {**os.environ, "CIFAR_WORKERS": "2", "PORT": "0"}
    result = subprocess.run(
        [sys.executable, "app.py"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 1
    assert "CIFAR_WORKERS=2 run python -m cifar serve" in result.stderr


@pytest.mark.slow
def test_ctrl_c_ends_the_server_without_a_word_of_python():
    """It is how one stops it: no traceback on the screen."""
    environment = {**os.environ, "PORT": str(free_port())}
    process = heeding_ctrl_c([sys.executable, "app.py"], env=environment, stdout=subprocess.PIPE)
    with httpx.Client(base_url=f"http://127.0.0.1:{environment['PORT']}") as client:
        wait_until_ready(client)
    process.send_signal(signal.SIGINT)
    said = "".join(process.communicate(timeout=60))
    assert (process.returncode, "Traceback" in said) == (0, False), said


@pytest.mark.slow
def test_a_folder_too_long_for_the_workers_sockets_is_said_at_once(tmp_path):
    """A socket's path has 107 bytes at most; workers that nobody reaches must not begin."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    result = cifar_process("serve", "--workers", 2, "--port", free_port(), TMPDIR=long)
    assert (result.returncode, "Choose a shorter one than" in result.stderr) == (1, True), result.stderr
    assert list(long.iterdir()) == []


@pytest.mark.slow
def test_a_port_that_is_taken_is_said_before_anything_is_promised():
    """And the way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cifar_process("serve", "--host", "127.0.0.1", "--port", port)
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: " in result.stderr
    assert "Serving at" not in result.stderr


@pytest.mark.slow
def test_a_version_that_is_pinned_but_missing_ends_the_server_at_once():
    """`MODEL_VERSION=7 python app.py` says so, and does not start."""
    result = subprocess.run(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env={**os.environ, "MODEL_VERSION": "7", "PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert "cifar_classifier has no version 7; there are: 1" in result.stderr
    assert "Traceback" not in result.stderr


def test_predict_prints_labels_as_a_table_and_as_json():
    """Both hold the same."""
    table = cifar("predict", "examples/cat.jpg", "examples/ship.jpg", "--top-k", 2)
    assert [line.split("\t")[1].split()[0] for line in table.stdout.splitlines()] == ["cat", "ship"]
    rows = json.loads(cifar("predict", "examples/cat.jpg", "--top-k", 2, "--json").stdout)
    assert rows[0]["top_k"][0]["label"] == "cat"
    assert len(rows[0]["top_k"]) == 2


def test_one_file_that_is_no_image_keeps_no_other_from_its_answer():
    """The answers are on stdout, what is wrong on stderr, and the status says that something is."""
    result = cifar("predict", "README.md", "examples/cat.jpg", "examples", "--top-k", 1)
    assert result.returncode == 1
    assert result.stdout.startswith("examples/cat.jpg\tcat ")
    assert len(result.stdout.splitlines()) == 1
    assert "README.md: The file's content is not an image" in result.stderr
    assert "examples: it is a folder; predict --input examples --output out.parquet" in result.stderr


def test_inspect_shows_signatures_shapes_sizes_and_files():
    """As a table and as JSON; a changed file is found."""
    table = cifar("inspect", "saved_model/cifar_classifier/1").stdout
    for words in ("serving_bytes", "n x 32 x 32 x 3", "uint8", "variables/variables.index", "bytes"):
        assert words in table
    report = json.loads(cifar("inspect", "saved_model/cifar_classifier/1", "--json").stdout)
    assert report["signatures"]["serving_default"]["inputs"]["input_image"]["dtype"] == "float32"
    assert report["bytes"] == sum(file["bytes"] for file in report["files"].values())


def test_models_lists_the_versions_and_says_what_is_none(tmp_path):
    """What is wrong in the registry is said, on stderr."""
    rows = json.loads(cifar("models", "list", "--json").stdout)
    assert [row["version"] for row in rows] == [1, 2]
    (tmp_path / "cifar_classifier" / "v1").mkdir(parents=True)
    result = cifar("models", CIFAR_REGISTRY=tmp_path)
    assert result.returncode == 0
    assert "v1 is not a version" in result.stderr


@pytest.mark.slow
def test_four_commands_lead_from_a_folder_of_images_to_an_answer(tmp_path):
    """data, train, export, predict: with three classes of one's own, at 48 pixels."""
    data = tmp_path / "shapes"
    for part, count in (("train", 20), ("test", 5)):
        for seed, name in enumerate(("circle", "square", "star")):
            folder = data / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(
                    encoded(noise(60, 60, seed=seed).point(lambda value, i=i: value // (1 + i % 3)))
                )
    registry = tmp_path / "registry"
    settings = {"CIFAR_REGISTRY": registry, "CIFAR_MODEL_NAME": "shapes"}
    held = json.loads(cifar("data", data, "--json").stdout)
    assert held["train_images_by_class"] == {"circle": 20, "square": 20, "star": 20}
    run = tmp_path / "run"
    trained = cifar_process("train", "--data", data, "--out", run, "--epochs", 5, "--image-size", 48, "--batch-size", 8, "--h5")
    assert trained.returncode == 0, trained.stderr
    assert Path(trained.stdout.strip()) == run / "model.keras"
    assert "legacy" not in trained.stderr, "what Keras thinks of a file that was asked for"
    exported = cifar_process("export", run, **settings)
    assert "Please consider" not in exported.stderr, exported.stderr
    assert Path(exported.stdout.strip()) == registry / "shapes" / "1", exported.stderr
    report = json.loads(cifar("evaluate", "--data", data, "--json", **settings).stdout)
    assert report["images"] == 15
    assert report["accuracy"] > 0.8
    written = cifar("evaluate", "--data", data, "--out", tmp_path / "report", "--tta", "--robustness", 5, **settings)
    assert f"accuracy: {report['accuracy'] * 100:.1f} % (" in written.stdout, written.stderr
    assert "The report is in" in written.stderr
    carded = cifar("card", tmp_path / "report", "--out", tmp_path / "CARD.md", **settings)
    assert "Model card: shapes, version 1" in Path(carded.stdout.strip()).read_text(), carded.stderr
    answer = json.loads(cifar("predict", data / "test" / "star" / "0.png", "--json", **settings).stdout)
    assert answer[0]["top_k"][0]["label"] == "star"


def test_evaluate_refuses_a_data_set_of_other_classes(tmp_path):
    """Accuracy over classes that the model does not know would mean nothing."""
    for part in ("train", "test"):
        for name in ("left", "right"):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "0.png").write_bytes(encoded(noise()))
    result = cifar("evaluate", "--data", tmp_path)
    assert result.returncode == 1
    assert "has the classes left, right; the version has airplane" in result.stderr


@pytest.mark.slow
def test_the_shipped_model_has_the_accuracy_of_its_manifest(tmp_path):
    """10,000 test images through the Predictor give the figure that manifest and model card state."""
    source = SHARED / "data" / "cifar10-images.tar.xz"
    if not source.exists():
        pytest.skip("the JPEG edition of CIFAR-10 is not here")
    subprocess.run(["tar", "-xJf", source, "-C", tmp_path], check=True)
    report = json.loads(cifar("evaluate", "--data", tmp_path / "cifar10-images", "--version", 1, "--json").stdout)
    manifest = json.loads((ROOT / "saved_model/cifar_classifier/1/manifest.json").read_text())
    assert report["images"] == 10_000
    assert report["accuracy"] == pytest.approx(manifest["metrics"]["test_accuracy"], abs=2e-4)
