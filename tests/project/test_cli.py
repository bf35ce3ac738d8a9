"""Tests of `python -m cifar`: data goes to stdout, messages to stderr, and the exit status is 0, 1 or 2."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from support.cli import cifar, cifar_process, python
from support.folders import parts, put
from support.pictures import noise
from support.servers import SHARED, free_port, start_with_ctrl_c, wait_until_ready
from support.shipped import VERSIONS

from app import listen
from cifar import show
from cifar.cli.arguments import expand
from cifar.cli.main import main
from cifar.errors import SettingsError
from cifar.settings import ROOT, Settings

TRAIN = ["train", "--data", "x", "--out", "y"]
COMMANDS = "data train export inspect evaluate card predict models serve records keys ab drift"


@pytest.mark.parametrize("command", COMMANDS.split())
def test_every_command_has_help_with_an_example(command):
    """A user can start from the output of `--help` alone."""
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
        ["export", "x", "--classes", "a"],
        ["predict"],
        ["predict", "examples/cat.jpg", "--views", "3"],
        ["evaluate", "--data", "x", "--views", "many"],
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
    """The usage line comes with the error message."""
    result = cifar(*arguments)
    assert result.returncode == 2
    assert "Usage: cifar" in result.stderr
    assert re.search(r"See python -m cifar( \w+)? --help\.\n\Z", result.stderr)
    if arguments[1:] and arguments[0] == "train":
        assert f"Invalid value for '{arguments[-2]}': " in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "nowhere"], "nowhere does not exist."),
        (["predict", "nowhere.jpg"], "nowhere.jpg: it cannot be read: No such file"),
        (["predict", "README.md"], "README.md: The file's content is not an image"),
        (["predict", "examples/cat.jpg", "--version", "99"], "no version 99"),
        (["predict", "examples/cat.jpg", "--top-k", "0"], "top_k must be from 1 to 10"),
        (["inspect", "saved_model/cifar_classifier/99"], "does not exist"),
        (["inspect", "saved_model/cifar_classifier"], "whole number"),
        pytest.param(["export", "nowhere"], "does not exist", marks=pytest.mark.slow),
        pytest.param(
            ["export", "tests/data/keras2_tutorial.h5", "--name", "a/b"],
            "A model's name is also a folder's name",
            marks=pytest.mark.slow,
        ),
        (["train", "--data", "tests/data", "--out", "/proc/nowhere/run"], "tests/data holds no pictures"),
        (["train", "--data", "tests/data", "--out", "docs"], "docs exists. Choose another --out"),
        (["evaluate", "--data", "nowhere"], "nowhere does not exist"),
        (["evaluate", "--data", "nowhere", "--version", "99"], "no version 99"),
        (["evaluate", "--data", "nowhere", "--out", "docs"], "docs exists, and a report is never overwritten"),
        (["card", "docs"], "docs holds no report"),
    ],
)
def test_a_failure_exits_with_1_and_one_sentence(arguments, words):
    """There is no traceback, and nothing on stdout."""
    result = cifar(*arguments)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("out", ["/proc/nowhere/run", "docs"])
def test_train_refuses_a_wrong_folder_before_tensorflow_is_loaded(out):
    """A misspelt folder is reported at once, not after seconds of loading."""
    code = f"import sys; from cifar.cli.main import main; main([*{TRAIN[:3]}, '--out', {out!r}]); print('keras' in sys.modules)"
    result = python("-c", code)
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr


def test_a_wrong_setting_names_the_variable():
    """Each message begins with the variable that has the wrong value."""
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
        assert not re.search("Traceback|Source", result.stderr), "in our words"


def test_a_misspelt_setting_is_refused_with_a_suggestion():
    """The message suggests the setting with a similar name, if there is one."""
    result = cifar("models", CIFAR_MODLE_NAME="shapes")
    assert result.returncode == 1
    assert "no setting CIFAR_MODLE_NAME. Did you mean CIFAR_MODEL_NAME?" in result.stderr
    assert cifar("models", CIFAR_FOO="1").stderr == "cifar: There is no setting CIFAR_FOO.\n", (
        "no setting has a similar name"
    )


def test_an_unwritable_path_is_reported_without_temporary_names(tmp_path):
    """The message names the folder, the reason and the remedy, but not the temporary file that could not be made."""
    keys, rows = "/proc/self/keys.json", "/proc/self/rows.csv"  # where root may not write either
    for command, words in (
        (["keys", "create", "ann"], "/proc/self cannot be used: "),
        (["predict", "--input", "examples", "--output", "/proc/self/out.parquet"], "/proc/self cannot be used: "),
        (["records", "export", "--out", rows], "/proc/self cannot be used: "),
        (["records", "export", "--out", "rows.xlsx"], "The ending of rows.xlsx is neither .csv nor .parquet."),
    ):
        message = cifar(*command, CIFAR_API_KEYS_FILE=keys, CIFAR_RECORDS_FOLDER=tmp_path).stderr
        assert message.startswith(f"cifar: {words}"), message
        assert "Choose another" in message
    checked = cifar("check", CIFAR_RECORDS_FOLDER="README.md")
    assert (checked.returncode, checked.stderr.count("\n")) == (0, 1), "a server starts without records"
    assert "CIFAR_RECORDS_FOLDER cannot be written, because README.md is a file." in checked.stderr
    message = cifar("records", "export", "--out", tmp_path / "rows.csv", CIFAR_RECORDS_FOLDER="/proc/self").stderr
    assert "folder /proc/self cannot be written: No such file or directory. Set CIFAR_RECORDS_FOLDER to" in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(13, "Permission denied", "saved_model/a/.tmp-0123456789abcdef/variables"),
            "saved_model/a cannot",
        ),
        (
            PermissionError(13, "Permission denied", ".tmp-0123456789abcdef.parquet"),
            ". cannot be used: Permission denied. Choose",
        ),
        (PermissionError(13, "Permission denied", "/home/ann/.cache/x"), "/home/ann/.cache/x cannot be used: "),
        (FileNotFoundError(2, "No such file or directory", "/proc/x"), "/proc/x cannot be used: No such"),
        (OSError(28, "No space left on device"), "No space left on device. Free some space, then"),
    ],
)
def test_an_error_of_the_operating_system_becomes_a_sentence(error, words, monkeypatch, capsys):
    """The sentence has no error number and no name of a temporary file."""

    def refuse(_):
        raise error

    monkeypatch.setattr("cifar.models.inspection.inspect_version", refuse)
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err.startswith(f"cifar: {words}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"CIFAR_WORKERS": 2}, "CIFAR_WORKERS=2 run python -m cifar serve"),
        ({"MODEL_VERSION": 7}, "cifar_classifier has no version 7; there are: 1"),
        ({"CIFAR_REGISTRY": "README.md"}, "The registry is README.md, which is a file."),
        ({"CIFAR_MODEL_NAME": "pets"}, "saved_model; its models are: cifar_classifier."),
    ],
)
def test_app_py_refuses_several_workers_and_a_missing_version_or_registry(variables, words):
    """It is one process, so it cannot start two workers; and without its version it could serve nothing."""
    result = python("app.py", **variables, PORT=0)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_ctrl_c_stops_the_server_without_a_traceback():
    """Ctrl-C is the usual way to stop it, not an error. An unfinished upload or an open page used to need a second one."""
    environment = {**os.environ, "PORT": str(free_port())}
    process = start_with_ctrl_c([sys.executable, "app.py"], env=environment, stdout=subprocess.PIPE)
    with httpx2.Client(base_url=f"http://127.0.0.1:{environment['PORT']}") as client:
        wait_until_ready(client)
    with socket.create_connection(("127.0.0.1", int(environment["PORT"]))) as upload:
        upload.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\n")
        time.sleep(1)  # the request has begun, and its body never comes
        process.send_signal(signal.SIGINT)
        output = "".join(process.communicate(timeout=60))
    assert (process.returncode, "Traceback" in output) == (0, False), output


@pytest.mark.slow
def test_a_path_too_long_for_the_worker_sockets_ends_the_start(tmp_path):
    """The path of a socket has at most 107 bytes, and workers without sockets could not be reached."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    result = cifar_process("serve", "--workers", 2, "--port", free_port(), TMPDIR=long)
    assert (result.returncode, "Set TMPDIR to a folder" in result.stderr) == (1, True), result.stderr
    assert list(long.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_ends_the_start(workers):
    """The message names the address, and nothing says that the server is running. gunicorn's own lines, ten for one cause, are not printed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cifar_process("serve", "--host", "127.0.0.1", "--port", port, "--workers", workers)
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use. Choose another: PORT=7861\n" in result.stderr
    assert not re.search("Serving at|ERROR", result.stderr)


def test_an_ipv6_address_is_listened_on_as_one():
    """Gunicorn took `::1:7860` for a host and a port, and app.py asked IPv4 for it."""
    with pytest.raises(SettingsError, match=r"on \[2001:db8::1\]:7860: .*CIFAR_HOST must be an address") as refused:
        listen(Settings(host="2001:db8::1", port=7860))
    assert "hostname" not in str(refused.value)


def test_predict_prints_labels_as_a_table_and_as_json():
    """The table and the JSON hold the same labels."""
    table = cifar("predict", "examples/cat.jpg", "examples/ship.jpg", "--top-k", 2)
    assert [line.split("\t")[1].split()[0] for line in table.stdout.splitlines()] == ["cat", "ship"]
    rows = json.loads(cifar("predict", "examples/cat.jpg", "--top-k", 2, "--json").stdout)
    assert rows[0]["top_k"][0]["label"] == "cat"
    assert len(rows[0]["top_k"]) == 2


def test_the_earlier_name_of_an_option_still_works():
    """`evaluate --tta` stands in scripts and in model cards."""
    assert expand(["evaluate", "--tta", "--robustness"]) == ["evaluate", "--views", "6", "--robustness", "2000"]


def test_predict_averages_several_views_on_request():
    """The scores are those of the predictor, and not those of the image alone."""
    scores = []
    for views in (1, 2, 6):
        (row,) = json.loads(cifar("predict", "examples/cat.jpg", "--top-k", 10, "--views", views, "--json").stdout)
        expected = show(ROOT / "examples/cat.jpg", top_k=10, views=views).prediction
        assert {entry["label"]: entry["score"] for entry in row["top_k"]} == pytest.approx(expected.class_scores)
        assert row["ood_score"] == pytest.approx(expected.ood_score)
        scores.append(row["top_k"][0]["score"])
    assert len(set(scores)) == 3


def test_files_that_are_no_images_do_not_stop_the_others():
    """Predictions go to stdout and problems to stderr, and the exit status is 1."""
    result = cifar("predict", "README.md", "examples/cat.jpg", "examples", "--top-k", 1)
    assert result.returncode == 1
    assert result.stdout.startswith("examples/cat.jpg\tcat ")
    assert len(result.stdout.splitlines()) == 1
    assert "README.md: The file's content is not an image" in result.stderr
    assert "examples: it is a folder; predict --input examples --output out.parquet" in result.stderr


def test_inspect_shows_signatures_shapes_sizes_and_files():
    """The same report is printed as text and as JSON."""
    table = cifar("inspect", "saved_model/cifar_classifier/1").stdout
    for words in ("serving_bytes", "n x 32 x 32 x 3", "uint8", "variables/variables.index", "bytes"):
        assert words in table
    report = json.loads(cifar("inspect", "saved_model/cifar_classifier/1", "--json").stdout)
    assert report["signatures"]["serving_default"]["inputs"]["input_image"]["dtype"] == "float32"
    assert report["bytes"] == sum(file["bytes"] for file in report["files"].values())


def test_models_lists_versions_and_reports_other_folders(tmp_path):
    """A folder in the registry that is not a version is reported on stderr."""
    rows = json.loads(cifar("models", "list", "--json").stdout)
    assert [row["version"] for row in rows] == VERSIONS
    (tmp_path / "cifar_classifier" / "v1").mkdir(parents=True)
    result = cifar("models", CIFAR_REGISTRY=tmp_path)
    assert result.returncode == 0
    assert "v1 is not a version" in result.stderr


@pytest.mark.slow
def test_four_commands_lead_from_a_folder_of_images_to_a_prediction(tmp_path):
    """data, train, export and predict work with three other classes, at 48 pixels."""
    data = tmp_path / "shapes"
    for part, count in (("train", 20), ("test", 5)):
        for seed, name in enumerate(("circle", "square", "star")):
            for i in range(count):
                darker = noise(60, 60, seed=seed).point(lambda value, i=i: value // (1 + i % 3))
                put(data / part / name / f"{i}.png", darker)
    registry = tmp_path / "registry"
    settings = {"CIFAR_REGISTRY": registry, "CIFAR_MODEL_NAME": "shapes"}
    held = json.loads(cifar("data", data, "--json").stdout)
    assert held["train_images_by_class"] == {"circle": 20, "square": 20, "star": 20}
    run = tmp_path / "run"
    trained = cifar_process(
        "train", "--data", data, "--out", run, "--epochs", 2, "--image-size", 48, "--batch-size", 8, "--h5"
    )
    assert trained.returncode == 0, trained.stderr
    assert Path(trained.stdout.strip()) == run / "model.keras"
    assert "legacy" not in trained.stderr, "Keras's warning about HDF5 is not shown"
    exported = cifar_process("export", run, **settings)
    assert "Please consider" not in exported.stderr, exported.stderr
    assert Path(exported.stdout.strip()) == registry / "shapes" / "1", exported.stderr
    report = json.loads(cifar("evaluate", "--data", data, "--json", **settings).stdout)
    assert report["images"] == 15
    assert report["accuracy"] > 0.8
    written = cifar(
        "evaluate", "--data", data, "--out", tmp_path / "report", "--views", 6, "--robustness", 5, **settings
    )
    assert f"accuracy: {report['accuracy'] * 100:.1f} % (" in written.stdout, written.stderr
    assert "The report is in" in written.stderr
    carded = cifar("card", tmp_path / "report", "--out", tmp_path / "CARD.md", **settings)
    assert "Model card: shapes, version 1" in Path(carded.stdout.strip()).read_text(), carded.stderr
    answer = json.loads(cifar("predict", data / "test" / "star" / "0.png", "--json", **settings).stdout)
    assert answer[0]["top_k"][0]["label"] == "star"


def test_evaluate_refuses_a_data_set_of_other_classes(tmp_path):
    """The accuracy would be meaningless."""
    parts(tmp_path, left=1, right=1)
    result = cifar("evaluate", "--data", tmp_path)
    assert result.returncode == 1
    assert "has the classes left, right; the version has airplane" in result.stderr


@pytest.mark.slow
def test_the_shipped_model_has_the_accuracy_of_its_manifest(tmp_path):
    """10,000 test images give the accuracy that the manifest and the model card state."""
    source = SHARED / "data" / "cifar10-images.tar.xz"
    if not source.exists():
        pytest.skip("the JPEG edition of CIFAR-10 is not here")
    subprocess.run(["tar", "-xJf", source, "-C", tmp_path], check=True)
    report = json.loads(cifar("evaluate", "--data", tmp_path / "cifar10-images", "--version", 1, "--json").stdout)
    manifest = json.loads((ROOT / "saved_model/cifar_classifier/1/manifest.json").read_text())
    assert report["images"] == 10_000
    assert report["accuracy"] == pytest.approx(manifest["metrics"]["test_accuracy"], abs=2e-4)
