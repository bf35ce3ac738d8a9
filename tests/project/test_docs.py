"""The documents agree with the code, and stay short."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings
from support.shipped import NEWEST

from cifar import __version__
from cifar.settings import ROOT, Settings

README = (ROOT / "README.md").read_text()
UNITS = r"(bytes|days|pixels|seconds|versions|images|files|top_k|version|port|workers|share|per_minute)$"
FRAGMENT = ROOT / "docs/model_card_notes.md"
"""Becomes a part of MODEL_CARD.md, so its links are relative to the root."""


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


PAGES = [file for file in tracked("*.md") if file != FRAGMENT]


def test_the_generated_documents_are_up_to_date():
    """docs/errors.md, docs/settings.md and .env.example follow from the code: run `python docs/generate.py`."""
    command = [sys.executable, "docs/generate.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_documented_defaults_can_be_uncommented_as_they_are(tmp_path, monkeypatch):
    """A copy of `.env.example` with every line active changes nothing."""
    example = (ROOT / ".env.example").read_text()
    assert example.count("\n#CIFAR_") == len(Settings.model_fields)
    (tmp_path / ".env").write_text(example.replace("\n#CIFAR_", "\nCIFAR_"))
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("CIFAR_UPLOADS")
    monkeypatch.delenv("CIFAR_RECORDS_FOLDER")
    from_file = Settings(_env_file=tmp_path / ".env").model_dump()
    folders = {"registry", "examples", "records_folder"}
    relative = {name: value.resolve() for name, value in from_file.items() if name in folders}
    assert from_file | relative == Settings().model_dump()


def test_every_setting_has_a_description_and_every_limit_a_unit():
    """Operators read the descriptions in docs/settings.md; a number without a unit would have to be guessed."""
    for name, field in Settings.model_fields.items():
        assert re.search(r"\w{3}.*\.\W*$", field.description or ""), name
        if field.annotation in {int, float, int | None}:
            assert re.search(UNITS, name), name


def test_every_setting_that_a_file_names_exists():
    """A misspelt or removed variable stops the start of a server, so nobody should be able to copy one."""
    known = {f"CIFAR_{name.upper()}{suffix}" for name in Settings.model_fields for suffix in ("", "_FILE")}
    found: dict[str, str] = {}
    for file in tracked(":!tests", ":!CHANGELOG.md", ":!*.jpg", ":!*.png", ":!saved_model", ":!benchmarks/results"):
        text = file.read_text(encoding="utf-8", errors="ignore")
        found |= dict.fromkeys(re.findall(r"\bCIFAR_[A-Z0-9_]*[A-Z0-9]\b(?!_|\.\.\.|\*)", text), file.name)
    assert len(found) >= len(Settings.model_fields)
    assert {name: file for name, file in found.items() if name not in known} == {}


def test_settings_are_the_only_configuration():
    """One class holds all settings."""
    assert [kind for kind in BaseSettings.__subclasses__() if kind.__module__.startswith("cifar")] == [Settings]
    assert Settings.__subclasses__() == []


def test_spaces_finds_what_it_needs_at_the_top_of_the_readme():
    """Hugging Face reads the SDK, its version and the entry file from the front matter."""
    front = dict(re.findall(r"^(\w+): (.+)$", README.split("---")[1], re.MULTILINE))
    assert front["sdk"] == "gradio"
    assert front["app_file"] == "app.py"
    assert front["sdk_version"] == metadata.version("gradio")
    assert front["python_version"].strip("'\"") == "3.11"


def test_the_readme_and_the_design_stay_short():
    """A reader has a few minutes for them; details belong in docs/."""
    readme = README.split("---", 2)[2].strip()
    assert 40 < len(readme.splitlines()) <= 100
    assert len(readme.split()) <= 1_000
    assert 40 < len((ROOT / "DESIGN.md").read_text().splitlines()) <= 80


def locked(name: str) -> dict[str, str]:
    """Return what a lock file says of each `package==version`: its marker and its hashes."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


def pins(name: str) -> set[str]:
    return set(locked(name))


HASHED = ("requirements-train.txt", "requirements-serve.txt", "requirements-dev.txt", "requirements-keras2.txt")
"""What `make` and the image install. Hugging Face Spaces installs requirements.txt together with packages of its own, which have no
hashes, and pip accepts hashes for all packages or for none."""


@pytest.mark.parametrize("name", ["requirements.txt", *HASHED])
def test_every_requirement_is_pinned_and_names_no_registry(name):
    """An installation next year, from whichever registry, then gets the same versions."""
    assert locked(name)
    assert [pin for pin in pins(name) if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)] == []
    assert "://" not in (ROOT / name).read_text()
    assert "-url" not in (ROOT / name).read_text()


@pytest.mark.parametrize("name", HASHED)
def test_every_package_has_hashes_which_every_installation_checks(name):
    """A registry that was broken into cannot deliver another file under the same version."""
    assert [pin for pin, line in locked(name).items() if not re.search(r"--hash=sha256:[0-9a-f]{64}", line)] == []
    installs = [
        line
        for file in ("Makefile", "Dockerfile", ".github/workflows/space.yml")
        for line in (ROOT / file).read_text().splitlines()
        if re.search(r"\bpip\b.* install ", line) or "pip install " in line
    ]
    assert len(installs) >= 5
    assert [line for line in installs if "--require-hashes" not in line] == []


def test_the_requirements_of_spaces_are_those_of_training_without_hashes():
    """A Space and a training machine then run the same versions."""
    assert pins("requirements.txt") == pins("requirements-train.txt")
    assert "--hash" not in (ROOT / "requirements.txt").read_text()


def test_the_page_of_dependencies_follows_from_the_requirements_and_the_installed_packages():
    """A reason or a licence that changes is seen in the page: run `python docs/dependencies.py`."""
    command = [sys.executable, "docs/dependencies.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_direct_dependency_has_a_reason():
    """A package without a reason cannot be judged, and is never removed."""
    for file in ("requirements-serve.in", "requirements.in", "requirements-dev.in"):
        lines = [line for line in (ROOT / file).read_text().splitlines() if re.match(r"[a-z]", line)]
        assert lines
        assert [line for line in lines if not re.search(r"\s# \S", line)] == []


def test_packages_whose_licence_sets_conditions_are_named_in_the_notice_and_the_label_of_the_image():
    """Whoever passes on the image must know them."""
    notice = (ROOT / "NOTICE").read_text()
    table = (ROOT / "docs/dependencies.md").read_text().partition("## Packages in the image")[2]
    packages = dict(re.findall(r"^\| ([a-z][\w-]*) \| (.+) \|$", table, re.MULTILINE))
    packages.pop("package")
    assert "GPL" in packages["pillow-heif"]
    assert [name for name in packages if name not in notice] == []
    label = re.search(r'image.licenses="(.+)"', (ROOT / "Dockerfile").read_text())
    assert label is not None
    needed = {short for short in ("GPL", "LGPL", "MPL") if re.search(rf"(?<!L){short}", str(packages.values()))}
    assert {each.split("-")[0] for each in label[1].split(" AND ")} == {"MIT"} | needed
    assert "!NOTICE" in (ROOT / ".dockerignore").read_text()


def test_serving_alone_needs_the_same_pins_without_tensorflow():
    """A server and a training machine then run the same versions, and the server's image stays small."""
    assert pins("requirements-serve.txt") < pins("requirements.txt")
    assert not {
        pin for pin in pins("requirements-serve.txt") if pin.startswith(("tensorflow", "keras", "h5py", "matplotlib"))
    }


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_or_heading_leads_somewhere(page):
    """A dead link sends a reader away."""
    links = re.findall(r'(?:\]\(|src=")(?!https?:|mailto:)([^)"\s]+)', page.read_text())
    assert len(links) >= {"README.md": 20, "docs/README.md": 20}.get(str(page.relative_to(ROOT)), 0)
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_every_page_of_the_documentation_is_in_its_index():
    """Readers find pages by the index."""
    index = (ROOT / "docs/README.md").read_text()
    pages = [page.name for page in PAGES if page.parent == ROOT / "docs" and page.name != "README.md"]
    assert len(pages) >= 15
    assert [name for name in pages if f"]({name})" not in index] == []


def test_every_file_of_the_code_that_a_page_names_exists():
    """A page must be updated when a file that it names is moved."""
    folders = "cifar|tests|docs|deploy|benchmarks|notebooks|examples"
    found = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(rf"`((?:{folders})/[\w./-]*\w\.\w+)\b", page.read_text())
    }
    assert len(found) >= 15
    assert {(page, name) for page, name in found if not (ROOT / name).exists()} == set()


def test_every_make_target_that_a_page_names_exists():
    """`make help` lists them all."""
    helped = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pages = {page: re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE) for page in PAGES}
    assert {"run", "test"} <= set(pages[ROOT / "README.md"])
    for page, targets in pages.items():
        for target in targets:
            assert re.search(rf"^ *make {target} ", helped, re.MULTILINE), f"{page}: make {target}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LICENSE", "MIT License"),
        ("SECURITY.md", "Report a "),
        ("CONTRIBUTING.md", "make test"),
        ("CHANGELOG.md", f"\n## {__version__}"),
    ],
)
def test_the_files_that_a_visitor_looks_for_say_what_they_are_for(name, words):
    """The licence, where to report a weakness, what a change must pass, and what is in this version."""
    assert words in (ROOT / name).read_text()
    assert name == "CHANGELOG.md" or name in README


def test_the_model_card_and_the_readme_quote_the_manifest():
    """The accuracy that a reader sees is the one that was measured for the served version."""
    manifest = json.loads((ROOT / f"saved_model/cifar_classifier/{NEWEST}/manifest.json").read_text())
    accuracy = f"{manifest['metrics']['test_accuracy'] * 100:.1f} %"
    assert accuracy in (ROOT / "MODEL_CARD.md").read_text()
    assert accuracy in README
