"""Bulk runs, `python -m cifar predict --input`: every file gets exactly one row, also if something fails in between."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import dataset
from support.servers import free_port, until_listens

from cifar.bulk.run import predict_many
from cifar.cli.main import main
from cifar.errors import BulkError
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry, Version
from cifar.settings import ROOT, Settings

EXAMPLE = ROOT / "examples/cat.jpg"
SETTINGS = Settings()
PART_IMAGES = 4


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Nine copies of one photo and one file that is not an image, in folders up to two levels deep."""
    folder = tmp_path / "images"
    (folder / "deep/deeper").mkdir(parents=True)
    for number in range(9):
        shutil.copy(EXAMPLE, folder / ("deep/deeper" if number % 2 else ".") / f"{number}.jpg")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden").write_text("not listed")
    return folder


def version(number: int | None = None) -> Version:
    return Registry(SETTINGS.registry, SETTINGS.model_name).get(number)


def classify_many(source: Path, output: Path, settings: Settings = SETTINGS, **options: Any) -> int:
    """Run in parts of four images."""
    return predict_many(source, output, version(), settings, part_images=PART_IMAGES, **options)


def rows(output: Path) -> list[dict]:
    return dataset.dataset(output).to_table().to_pylist()


def paths(output: Path) -> list[str]:
    return sorted(row["path"] for row in rows(output))


def test_every_file_has_one_row_and_errors_are_rows(images, tmp_path):
    """Ten files give ten rows: nine with a prediction, one with an error code and a message."""
    output = tmp_path / "out.parquet"
    assert classify_many(images, output) == 1
    assert paths(output) == sorted(str(file.relative_to(images)) for file in images.rglob("[!.]*.*") if file.is_file())
    wrong = [row for row in rows(output) if row["code"]]
    assert [(row["path"], row["code"], row["label"]) for row in wrong] == [("notes.txt", "unsupported_image", None)]
    right = [row for row in rows(output) if not row["code"]]
    assert {row["label"] for row in right} == {"cat"}
    assert all(abs(sum(row["scores"]) - 1) < 1e-5 and max(row["scores"]) == row["score"] for row in right)


def test_a_bulk_run_averages_several_views_on_request_and_resumes_only_with_as_many(images, tmp_path):
    """The rows are those of single predictions; a run must not mix two ways of answering."""
    output = tmp_path / "out.parquet"
    assert classify_many(images, output, views=6) == 1
    (expected,) = Predictor.load(version()).predict(np.asarray(Image.open(EXAMPLE))[None], top_k=1, views=6)
    for row in rows(output):
        if row["code"] is None:
            assert row["scores"] == pytest.approx(list(expected.class_scores.values()), abs=1e-6)
            assert row["ood_score"] == pytest.approx(expected.ood_score, abs=1e-4)
    classify_many(images, output, views=6, resume=True)
    with pytest.raises(BulkError, match="views was 6, is 1"):
        classify_many(images, output, resume=True)


def test_a_run_in_which_no_file_is_an_image_fails(tmp_path, capsys):
    """This happens if the input is not a list of paths. The rows hold the errors, and the command exits with 1."""
    assert main(["predict", "--input", str(ROOT / "LICENSE"), "--output", str(tmp_path / "out")]) == 1
    assert {row["code"] for row in rows(tmp_path / "out")} == {"unreadable_image"}
    message = f"None of the {len(rows(tmp_path / 'out'))} files could be read as an image; the column error of {tmp_path / 'out'}"
    assert message in capsys.readouterr().err


def test_rows_keep_the_order_and_the_repetitions_of_a_file_of_paths(images, tmp_path):
    """Both in a text file and in a CSV file; a missing image gets a row with an error."""
    listed = ["0.jpg", "missing.jpg", str(images / "2.jpg"), "0.jpg", "4.jpg"]
    for name, text in (("m.txt", "\n".join(listed)), ("m.csv", "id,path\n" + "".join(f"1,{x}\n" for x in listed))):
        (images / name).write_text(text)
        output = tmp_path / f"{name}.parquet"
        assert classify_many(images / name, output) == 1
        assert [row["path"] for row in rows(output)] == listed
        assert rows(output)[1]["code"] == "unreadable_image"


def test_a_file_name_that_is_not_utf8_has_a_row(images, tmp_path):
    """File names are bytes on Linux."""
    shutil.copy(EXAMPLE, os.fsencode(images) + b"/\xff\n.jpg")
    classify_many(images, tmp_path / "out")
    assert "\\xff\n.jpg" in paths(tmp_path / "out")


def test_resuming_makes_only_the_missing_parts(images, tmp_path):
    """An existing part is not touched; a missing part is made from the recorded listing; temporary files are removed."""
    output = tmp_path / "out"
    classify_many(images, output)
    before = rows(output)
    written = (output / "part-000001.parquet").stat().st_mtime_ns
    (output / "part-000002.parquet").unlink()
    (output / ".tmp-0123456789abcdef.parquet").write_text("half a part")
    classify_many(images, output, resume=True)
    assert rows(output) == before
    assert (output / "part-000001.parquet").stat().st_mtime_ns == written
    assert not list(output.glob(".tmp*"))


def test_resuming_another_run_is_refused(images, tmp_path):
    """An existing folder, another version, a damaged part, a changed input and a folder without a run have different messages."""
    manifest, output = images / "m.txt", tmp_path / "out"
    manifest.write_text("0.jpg\n2.jpg\n")
    classify_many(manifest, output)
    with pytest.raises(BulkError, match=r"exists\. Choose another --output"):
        classify_many(manifest, output)
    with pytest.raises(BulkError, match=r"version was \d, is 1"):
        predict_many(manifest, output, version(1), SETTINGS, resume=True)
    (output / "part-000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(BulkError, match="is damaged"):
        classify_many(manifest, output, resume=True)
    manifest.write_text("4.jpg\n")
    with pytest.raises(BulkError, match="input_sha256 was"):
        classify_many(manifest, output, resume=True)
    with pytest.raises(BulkError, match="is not a bulk run"):
        classify_many(manifest, images, resume=True)


def test_a_link_to_itself_is_a_row_with_an_error(images, tmp_path):
    """Such a link does not end the run. A dangling link is not a file and has no row."""
    (images / "circle").symlink_to("circle")
    (images / "dangling").symlink_to("missing")
    assert classify_many(images, tmp_path / "out") == 2
    assert {row["path"] for row in rows(tmp_path / "out") if row["code"]} == {"notes.txt", "circle"}
    assert len(paths(tmp_path / "out")) == 11


def test_a_file_of_paths_from_windows_loses_no_row(images, tmp_path):
    """Such a file may begin with a byte order mark and end its lines with a carriage return."""
    (images / "m.txt").write_bytes(b"\xef\xbb\xbf0.jpg\r\n2.jpg\r\n")
    assert classify_many(images / "m.txt", tmp_path / "out") == 0
    assert [row["path"] for row in rows(tmp_path / "out")] == ["0.jpg", "2.jpg"]


def test_resuming_with_other_limits_is_refused(images, tmp_path):
    """Otherwise the same photo could have a prediction in one part and an error in another."""
    output = tmp_path / "out"
    for number in range(9):
        Image.new("RGB", (100, 100)).save(images / f"large-{number}.png")
    narrow = Settings(max_image_pixels=5000)
    assert classify_many(images, output, narrow) == 10
    (output / "part-000002.parquet").unlink()
    with pytest.raises(BulkError, match="max_image_pixels was 5000, is 25500000"):
        classify_many(images, output, resume=True)
    classify_many(images, output, narrow, resume=True)
    assert len([row for row in rows(output) if row["code"]]) == 10


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "does not exist"),
        ("empty", "holds no files"),
        ("photo.jpg", "is not a text file"),
        ("columns.csv", "has no column path. Its columns: a, b"),
        ("quote.csv", "quote.csv is not a valid CSV file"),
        ("long.csv", "long.csv is not a valid CSV file"),
    ],
)
def test_a_wrong_input_leaves_no_output(source, words, tmp_path, capsys):
    """The command exits with 1 and one message, and writes nothing."""
    (tmp_path / "empty").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "photo.jpg")
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    (tmp_path / "quote.csv").write_text('path\na.jpg\n"b.jpg\nc.jpg\n')  # the open quote would hide all following rows
    (tmp_path / "long.csv").write_text("path\n" + "x" * 200_000)
    before = sorted(tmp_path.rglob("*"))
    assert main(["predict", "--input", str(tmp_path / source), "--output", str(tmp_path / "out")]) == 1
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_within_the_input_is_refused(images):
    """Otherwise the output files would be listed as input."""
    with pytest.raises(BulkError, match="lies within the input"):
        classify_many(images, images / "out")


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_message_says_how_to_install_it(images, tmp_path):
    """Nothing is written in this case."""
    with pytest.raises(BulkError, match=r"requirements-ray\.txt"):
        classify_many(images, tmp_path / "out", runner="ray")
    assert not (tmp_path / "out").exists()


KILLABLE_RUN = """
from pathlib import Path
from cifar.bulk.run import predict_many
from cifar.models.registry import Registry
from cifar.settings import load_settings

settings = load_settings()
version = Registry(settings.registry, settings.model_name).get()
predict_many(Path({source!r}), Path({output!r}), version, settings, part_images=50)
"""


def _command(source: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "cifar", "predict", "--input", str(source), "--output", str(output), *more]


def test_a_full_disk_leaves_only_complete_parts(images, tmp_path):
    """A limit on the file size stands in for a full disk; the command reports it and exits with 1."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # enough for the listing, too small for a part

    output = tmp_path / "out"
    command = _command(images, output)
    result = subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(file.name for file in output.iterdir()) == ["_listing", "_run.json"]


def test_a_named_pipe_in_a_file_of_paths_is_a_row_with_an_error(images, tmp_path):
    """The run does not wait for a process that writes into the pipe."""
    os.mkfifo(images / "pipe")
    (images / "m.txt").write_text("pipe\n0.jpg\n")
    subprocess.run(_command(images / "m.txt", tmp_path / "out"), cwd=ROOT, timeout=60, check=False)
    assert [row["code"] for row in rows(tmp_path / "out")] == ["unreadable_image", None]


@pytest.mark.slow
def test_a_killed_run_is_resumed_without_losing_or_repeating_a_row(tmp_path):
    """The process gets SIGKILL after the second part; the same run with `resume` makes the rest."""
    source, output = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    for number in range(3000):
        (source / f"{number}.jpg").symlink_to(EXAMPLE)
    command = [sys.executable, "-c", KILLABLE_RUN.format(source=str(source), output=str(output))]
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (output / "part-000002.parquet").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= len(list(output.glob("part-*"))) < 60
    subprocess.run(_command(source, output, "--resume"), cwd=ROOT, check=True)
    assert paths(output) == sorted(f"{number}.jpg" for number in range(3000))
    assert len(list(output.glob("part-*"))) == 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray 2.60 warns about its own settings
def test_ray_resumes_a_run_that_was_started_locally(images, tmp_path):
    """Ray makes the same parts with the same rows. The lock file, and so CI, has no Ray, which takes 491 MB."""
    pytest.importorskip("ray")
    local, output = tmp_path / "local", tmp_path / "out"
    classify_many(images, local)
    shutil.copytree(local, output)
    (output / "part-000002.parquet").unlink()
    (output / "part-000003.parquet").unlink()
    port = free_port()
    variables = {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": f"127.0.0.1:{port}"}
    environment = {**os.environ, **variables}
    ray = str(Path(sys.executable).with_name("ray"))
    ports = ["--min-worker-port=21000", "--max-worker-port=21099"]
    head = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false", *ports]
    with (tmp_path / "log").open("w") as log:
        cluster = subprocess.Popen(head, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        until_listens(cluster, port)
        command = _command(images, output, "--runner", "ray", "--resume")
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120)
    finally:
        cluster.terminate()
        cluster.wait(90)  # Ray takes up to 30 s to shut down
    assert rows(output) == rows(local)
