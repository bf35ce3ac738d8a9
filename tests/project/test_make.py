"""The Makefile: what each command installs, and which Python it takes. `make -n` prints the commands without running them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cifar.settings import ROOT

OF_TRAINING = ("tensorflow", "keras", "tf_keras", "h5py", "matplotlib", "ai_edge_quantizer", "pyarrow", "tensorboard")


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder with what a fresh clone has for make, and a folder `bin` that shadows the machine's Pythons."""
    for file in [ROOT / "Makefile", *ROOT.glob("requirements*")]:
        shutil.copy(file, tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("python3", *(f"python3.{minor}" for minor in range(9, 16))):
        python(tmp_path, name, None)
    return tmp_path


def python(clone: Path, name: str, minor: int | None) -> None:
    """Put a Python of this version into the folder `bin`, or one that does not start."""
    claim = f"import sys; sys.version_info = (3, {minor}, 0, 'final', 0); exec(sys.argv.pop(1))"
    file = clone / "bin" / name
    file.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "{claim}" "$@"\n' if minor else "#!/bin/sh\nexit 1\n")
    file.chmod(0o755)


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{clone / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(["make", *arguments], cwd=clone, env=environment, capture_output=True, text=True, check=False)


def test_run_installs_what_serving_needs_and_no_tensorflow(clone):
    """A visitor who wants to see the page should not wait for 0.8 GB that it does not use."""
    python(clone, "python3", 12)
    commands = make(clone, "-n", "run").stdout
    assert "-r requirements-serve.txt" in commands
    assert all(name not in commands for name in ("-r requirements.txt", "-train.txt", "keras", "-dev.txt"))


@pytest.mark.parametrize("command", ["training", "test", "test-fast", "lint"])
def test_other_commands_install_training_too(clone, command):
    """Tests and type checks read the code of training."""
    python(clone, "python3", 12)
    commands = make(clone, "-n", command).stdout
    assert "-r requirements-keras2.txt" in commands
    assert ("-r requirements-dev.txt" in commands) == (command != "training")


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3": 11}, "python3"),
        ({"python3": 13, "python3.12": 12}, "python3"),
        ({"python3": 14, "python3.12": 12}, "python3.12"),  # Ubuntu 26.04 with an older one beside it
        ({"python3": 9, "python3.11": 11, "python3.13": 13}, "python3.13"),
        ({"python3": 14}, "python3"),
        ({"python3": 15, "python3.14": 14}, "python3.14"),
    ],
)
def test_a_python_that_fits_is_found(clone, pythons, chosen):
    """One that TensorFlow has releases for, so that training works in the same .venv; else one that can serve."""
    for name, minor in pythons.items():
        python(clone, name, minor)
    assert f"\n{chosen} -m venv .venv\n" in make(clone, "-n", "run").stdout


@pytest.mark.parametrize("pythons", [{}, {"python3": 10}, {"python3": 15}])
def test_without_a_python_that_fits_make_names_those_that_do(clone, pythons):
    """Instead of pip's own words about a package that nobody knows."""
    for name, minor in pythons.items():
        python(clone, name, minor)
    done = make(clone, "run")
    assert done.returncode != 0
    assert "Python 3.11, 3.12, 3.13 or 3.14 is needed" in done.stdout
    assert not (clone / ".venv").exists()


def test_without_the_package_index_make_says_what_to_check(clone):
    """Of itself pip says only that it found no version of the first package."""
    pip = clone / ".venv/bin/pip"
    pip.parent.mkdir(parents=True)
    pip.write_text("#!/bin/sh\nexit 1\n")
    pip.chmod(0o755)
    done = make(clone, "run")
    assert done.returncode != 0
    assert "it does not reach the package index: check the network" in done.stdout
    assert not (clone / ".venv/serving-ready").exists()


def test_training_with_python_3_14_says_which_ones_tensorflow_has(clone):
    """The .venv that serves was made with it, and pip would end in `No matching distribution found`."""
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/bin/pip").touch()
    python(clone, "python3", 14)
    shutil.copy(clone / "bin/python3", clone / ".venv/bin/python")
    done = make(clone, "training")
    assert done.returncode != 0
    assert "Training needs Python 3.11, 3.12 or 3.13" in done.stdout
    assert "make clean && make training PYTHON=python3.13" in done.stdout


def without_training(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command of this project in a process that finds none of the packages of training."""
    code = f"import sys; sys.modules.update(dict.fromkeys({OF_TRAINING})); from cifar.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", "cifar10", "--out", "runs/never"],
        ["export", "tests/data/keras2_64px_3classes_logits.h5", "--classes", "a,b,c"],
    ],
)
def test_a_command_that_needs_tensorflow_says_how_to_install_it(command):
    """At once: before a download, and without a trace."""
    done = without_training(*command)
    assert done.returncode == 1
    assert done.stderr.startswith("cifar: This command needs tensorflow")
    assert "make training" in done.stderr
    assert len(done.stderr.splitlines()) <= 3


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["predict", "examples/cat.jpg"], "cat 0.9"),
        (["models"], "test_accuracy"),
        (["inspect", "saved_model/cifar_classifier/2"], "serving_uint8"),
    ],
)
def test_commands_of_operators_need_no_tensorflow(command, words):
    """They run where the server runs."""
    done = without_training(*command)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
