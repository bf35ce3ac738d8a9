"""`python -m cifar predict --input`: every image has one row, whatever becomes of the run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, noise

from cifar.bulk.folder import listed
from cifar.bulk.run import predict_many
from cifar.cli import main
from cifar.errors import BulkError
from cifar.predictor import Predictor
from cifar.preprocess import preprocess
from cifar.registry import Registry
from cifar.settings import ROOT, Settings

VERSION = Registry(ROOT / "saved_model", "cifar_classifier").get(1)
PART_IMAGES = 4
SETTINGS = Settings(bulk_part_images=PART_IMAGES)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten examples in folders, one picture that is none, one hidden file."""
    folder = tmp_path / "images"
    for place, file in enumerate(sorted((ROOT / "examples").glob("*.jpg"))):
        target = folder / f"part {place % 3}" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    (folder / "broken.png").write_bytes(encoded(noise())[:50])
    (folder / ".hidden").write_text("not listed")
    return folder


def rows(output: Path) -> list[dict]:
    parts = sorted(output.glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_every_image_has_one_row_and_a_bad_one_has_its_error(images, tmp_path):
    """The answer is that of `predict`, in parts of fixed size that any reader of Parquet takes as one table."""
    output = tmp_path / "out.parquet"
    assert predict_many(images, output, VERSION, SETTINGS) == 1
    found = {row["path"]: row for row in rows(output)}
    assert len(found) == len(rows(output)) == 11
    assert ".hidden" not in found
    predictor = Predictor.load(VERSION)
    for path, row in found.items():
        if path == "broken.png":
            assert (row["code"], row["label"]) == ("unreadable_image", None)
            assert "cannot be decoded" in row["error"] or "truncated" in row["error"]
            continue
        pixels = preprocess((images / path).read_bytes(), height=32, width=32, channels=3, max_pixels=10**6)
        (expected,) = predictor.predict(pixels[None], top_k=1)
        assert (row["label"], row["code"], row["version"]) == (expected.top_k[0][0], None, 1)
        np.testing.assert_allclose(row["scores"], list(expected.class_scores.values()), atol=1e-6)
    table = pq.read_table([str(part) for part in sorted(output.glob("part-*.parquet"))])
    assert isinstance(table, pa.Table)
    assert table.num_rows == 11
    names = table.schema.field("scores").metadata[b"class_names"].decode().split("\n")
    assert names == VERSION.manifest.class_names


@pytest.mark.parametrize("kind", ["text", "csv"])
def test_a_file_of_paths_gives_rows_in_its_order(images, tmp_path, kind):
    """Relative paths are relative to the file; a path that is not there has a row too."""
    paths = ["part 0/airplane.jpg", "nowhere.jpg", str(next(images.glob("part 1/*.jpg"))), "part 0/airplane.jpg"]
    manifest = images / f"list.{kind}"
    if kind == "csv":
        manifest.write_text("id,path\n" + "".join(f'{place},"{path}"\n' for place, path in enumerate(paths)))
    else:
        manifest.write_text("".join(f"{path}\n" for path in paths))
    output = tmp_path / "out.parquet"
    assert predict_many(manifest, output, VERSION, SETTINGS) == 1
    assert [row["path"] for row in rows(output)] == paths
    assert [row["code"] for row in rows(output)] == [None, "unreadable_image", None, None]


_SLOW = """
import sys, time
from pathlib import Path
from cifar.bulk import folder
from cifar.bulk.run import predict_many
from cifar.registry import Registry
from cifar.settings import ROOT, Settings
from cifar.bulk import run
write = folder.write_part
def slow(output, number, table):
    write(output, number, table)
    print(number, flush=True)
    time.sleep(1)
run.write_part = slow
predict_many(Path(sys.argv[1]), Path(sys.argv[2]), Registry(ROOT / "saved_model", "cifar_classifier").get(1), Settings(bulk_part_images=4))
"""


def test_a_run_that_was_killed_goes_on_without_repeating_or_losing_a_row(images, tmp_path):
    """SIGKILL after the first part: what is there stays as it is, and the rest is made, in the same order."""
    output = tmp_path / "out.parquet"
    command = [sys.executable, "-c", _SLOW, str(images), str(output)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = output / "part-000001.parquet"
    before = first.stat().st_mtime_ns
    (images / "late.jpg").write_bytes(encoded(noise(), "JPEG"))  # it is not in the listing, so not in the run
    predict_many(images, output, VERSION, SETTINGS, resume=True)
    assert first.stat().st_mtime_ns == before
    paths = [row["path"] for row in rows(output)]
    assert paths == [path for number in (1, 2, 3) for path in listed(output, number)]
    assert len(set(paths)) == 11
    assert list(output.glob(".tmp*")) == []
    predict_many(images, output, VERSION, SETTINGS, resume=True)  # nothing is left to do
    assert first.stat().st_mtime_ns == before


def test_what_cannot_begin_or_go_on_says_why_and_leaves_everything(images, tmp_path):
    """Another version, another list, an output that is there, inside its input, or none of ours; nothing at all to do."""
    output = tmp_path / "out.parquet"
    manifest = images / "list.txt"
    manifest.write_text("part 0/airplane.jpg\n")
    predict_many(manifest, output, VERSION, SETTINGS)
    (tmp_path / "other").mkdir()
    (tmp_path / "empty").mkdir()
    other = Registry(ROOT / "saved_model", "cifar_classifier").get(2)
    for source, target, version, resume, sentence in (
        (manifest, output, VERSION, False, "exists. Choose another"),
        (manifest, output, other, True, "version was 1, is 2"),
        (images, output, VERSION, True, "input was .*list.txt, is .*images"),
        (images, images / "out", VERSION, False, "lies in"),
        (images, tmp_path / "other", VERSION, True, "is no bulk run"),
        (tmp_path / "empty", tmp_path / "new", VERSION, False, "holds no files"),
        (tmp_path / "nowhere", tmp_path / "new", VERSION, False, "is not there"),
    ):
        with pytest.raises(BulkError, match=sentence):
            predict_many(source, target, version, SETTINGS, resume=resume)
    assert not (tmp_path / "new").exists()
    manifest.write_text("part 0/airplane.jpg\nbroken.png\n")
    with pytest.raises(BulkError, match="input_sha256 was"):
        predict_many(manifest, output, VERSION, SETTINGS, resume=True)
    (output / "part-000001.parquet").write_bytes(b"x")
    manifest.write_text("part 0/airplane.jpg\n")
    with pytest.raises(BulkError, match=r"part-000001\.parquet is damaged. Remove it"):
        predict_many(manifest, output, VERSION, SETTINGS, resume=True)


def test_a_full_disk_leaves_whole_parts_only(images, tmp_path, monkeypatch):
    """The second part does not fit; the first is there, and no piece of the second."""
    written = []

    def full(table: pa.Table, where: Path, **_: object) -> None:
        Path(where).write_bytes(b"half")
        if written:
            raise OSError(28, "No space left on device")
        written.append(where)
        table_writer(table, where)

    table_writer = pq.write_table
    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        predict_many(images, tmp_path / "out", VERSION, SETTINGS)
    monkeypatch.undo()
    assert [file.name for file in sorted((tmp_path / "out").glob("*part*"))] == ["part-000001.parquet"]
    predict_many(images, tmp_path / "out", VERSION, SETTINGS, resume=True)
    assert len(rows(tmp_path / "out")) == 11


def test_the_command_line_makes_a_table_and_says_how_many_rows_are_errors(images, tmp_path, monkeypatch, capsys):
    """The path on stdout, words on stderr; the interactive form is as before, and the two do not mix."""
    monkeypatch.setenv("MODEL_VERSION", "1")
    output = tmp_path / "out.parquet"
    assert main(["predict", "--input", str(images), "--output", str(output)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{output}\n"
    assert "1 rows hold an error" in told.err
    assert main(["predict", "--input", str(images)]) == 1
    assert "--input needs --output" in capsys.readouterr().err
    for words in (["predict"], ["predict", "a.jpg", "--input", str(images)]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
    capsys.readouterr()
    assert main(["predict", str(ROOT / "examples/cat.jpg"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["top_k"][0]["label"] == "cat"


def test_without_ray_its_runner_says_what_to_install(images, tmp_path):
    """Half a gigabyte that few need is no part of requirements.txt; nothing is written."""
    if util.find_spec("ray"):
        pytest.skip("Ray is installed; the next test uses it")
    with pytest.raises(BulkError, match=r"pip install -r requirements-ray\.txt"):
        predict_many(images, tmp_path / "out", VERSION, SETTINGS, runner="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_ray_cluster_goes_on_where_this_machine_stopped(images, tmp_path):
    """The same parts, the same rows. Ray is not installed by .ci/run: it is 491 MB, so this is skipped there."""
    if not util.find_spec("ray"):
        pytest.skip("Ray is not installed: pip install -r requirements-ray.txt")
    output, alone = tmp_path / "out", tmp_path / "alone"
    predict_many(images, alone, VERSION, SETTINGS)
    predict_many(images, output, VERSION, SETTINGS)
    (output / "part-000002.parquet").unlink()
    os.environ.setdefault("RAY_DISABLE_DOCKER_CPU_WARNING", "1")
    started = time.monotonic()
    assert predict_many(images, output, VERSION, SETTINGS, runner="ray", resume=True) in {0, 1}
    print(f"Ray: {time.monotonic() - started:.1f} s for one part")
    assert rows(output) == rows(alone)
