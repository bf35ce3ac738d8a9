"""What the papers say is what the code does."""

from __future__ import annotations

import json
import re
import subprocess
from importlib import metadata

import pytest
from pydantic_settings import BaseSettings

from cifar.settings import ROOT, Settings

README = (ROOT / "README.md").read_text()


def test_every_setting_is_documented_with_its_default():
    """`.env.example` lists each variable, none is missing and none is made up."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    documented = dict(line[1:].split("=", 1) for line in lines if line.startswith("#CIFAR_"))
    defaults = {}
    for name, field in Settings.model_fields.items():
        value = field.default
        text = "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)
        for long, short in ((f"{ROOT}/", ""), (str(ROOT.home()), "~")):
            text = text.replace(long, short)
        defaults[f"CIFAR_{name.upper()}"] = text
    assert documented == defaults


def test_the_documented_defaults_can_be_uncommented_as_they_are(tmp_path, monkeypatch):
    """A copy of `.env.example` with every line active changes nothing."""
    active = (ROOT / ".env.example").read_text().replace("\n#CIFAR_", "\nCIFAR_")
    (tmp_path / ".env").write_text(active)
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("CIFAR_UPLOADS")
    monkeypatch.delenv("CIFAR_RECORDS_FOLDER")
    from_file = Settings(_env_file=tmp_path / ".env").model_dump()
    folders = {"registry", "examples", "records_folder"}
    relative = {name: value.resolve() for name, value in from_file.items() if name in folders}
    assert from_file | relative == Settings().model_dump()


def test_every_setting_has_a_description_and_every_limit_a_unit():
    """A number without a unit is a question."""
    units = (
        "_bytes",
        "_days",
        "_characters",
        "_pixels",
        "_seconds",
        "_per_second",
        "_versions",
        "_images",
        "_failures",
        "_calls",
        "_files",
        "_ratio",
        "_failures",
        "_sessions",
        "_top_k",
        "_version",
        "port",
        "workers",
        "_slot",
        "_share",
        "_rows",
        "_days",
        "_hours",
        "_psi",
    )
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if field.annotation in {int, float}:
            assert name.endswith(units), name


def test_spaces_finds_what_it_needs_at_the_top_of_the_readme():
    """Hugging Face reads the SDK, its version and the entry file from the front matter."""
    front = dict(re.findall(r"^(\w+): (.+)$", README.split("---")[1], re.MULTILINE))
    assert front["sdk"] == "gradio"
    assert front["app_file"] == "app.py"
    assert front["sdk_version"] == metadata.version("gradio")
    assert front["python_version"].strip("'\"") == "3.11"


def test_every_requirement_is_pinned():
    """The same versions next year: each line of both files names one."""
    for name in ("requirements.txt", "requirements-serve.txt", "requirements-dev.txt"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.lstrip().startswith("#")]
        assert lines
        assert [line for line in lines if not re.match(r"[A-Za-z0-9._-]+==\S+", line)] == []


def test_serving_alone_needs_the_same_pins_without_tensorflow():
    """The small list is a part of the large one."""

    def pins(name):
        return set(re.findall(r"^[A-Za-z0-9._-]+==\S+", (ROOT / name).read_text(), re.MULTILINE))

    assert pins("requirements-serve.txt") < pins("requirements.txt")
    assert not {pin for pin in pins("requirements-serve.txt") if pin.startswith(("tensorflow", "keras", "matplotlib"))}


def test_what_the_readme_links_to_is_there():
    """No dead link to a file."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README) + re.findall(r'src="(?!https?:)([^"]+)"', README):
        assert (ROOT / target).exists(), target


def test_every_make_target_of_the_readme_exists():
    """`make help` lists them all."""
    helped = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", README, re.MULTILINE):
        assert f"make {''.join(target)}" in helped, target


def test_settings_are_the_only_configuration():
    """One class holds all settings."""
    assert [kind for kind in BaseSettings.__subclasses__() if kind.__module__.startswith("cifar")] == [Settings]
    assert Settings.__subclasses__() == []


@pytest.mark.parametrize(
    "name", ["DESIGN.md", "MODEL_CARD.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"]
)
def test_the_papers_that_a_stranger_looks_for_are_there(name):
    """Each short, none empty."""
    assert len((ROOT / name).read_text()) > 300


def test_the_model_card_quotes_the_manifest():
    """The accuracy on the card is the one that was measured."""
    manifest = json.loads((ROOT / "saved_model/cifar_classifier/2/manifest.json").read_text())
    accuracy = f"{manifest['metrics']['test_accuracy'] * 100:.1f} %"
    assert accuracy in (ROOT / "MODEL_CARD.md").read_text()
    assert accuracy in README
