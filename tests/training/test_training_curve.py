"""`benchmarks/training_curve.py`: the plot of validation accuracy over minutes."""

from __future__ import annotations

import pytest
from PIL import Image
from support.cli import python

from benchmarks.training_curve import draw, read_curve


def test_a_curve_is_drawn_for_each_run_folder(tmp_path):
    """The script needs only the files that training writes."""
    for name, pace in (("quick", 10), ("slow", 60)):
        (tmp_path / name).mkdir()
        rows = "".join(f"{epoch},{pace},0.{epoch}5\n" for epoch in range(1, 6))
        (tmp_path / name / "history.csv").write_text("epoch,seconds,val_accuracy\n" + rows)
    runs = tmp_path / "quick", tmp_path / "slow"
    result = python("benchmarks/training_curve.py", *runs, "--out", tmp_path / "curve.png")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width > 600
        assert len({*image.convert("RGB").resize((300, 170)).get_flattened_data()}) > 20, "the plot must not be empty"


def test_the_minutes_are_the_sum_of_the_epochs(tmp_path):
    """The history has the seconds of each epoch, not the total."""
    (tmp_path / "history.csv").write_text("epoch,seconds,val_accuracy\n1,30,0.5\n2,90,0.75\n")
    assert read_curve(tmp_path) == ([0.5, 2.0], [0.5, 0.75])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "FileNotFoundError"),
        ("epoch,loss\n1,2\n", "KeyError"),
        ("epoch,seconds,val_accuracy\n1,x,0.5\n", "ValueError"),
        ("epoch,seconds,val_accuracy\n", "has no epoch yet"),
    ],
)
def test_a_folder_without_a_usable_history_is_refused(tmp_path, text, words):
    """The script ends with a sentence, and no plot is written."""
    if text is not None:
        (tmp_path / "history.csv").write_text(text)
    with pytest.raises(SystemExit, match=words):
        draw([tmp_path], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
