"""The GitHub workflows: valid, pinned, with minimal permissions, and safe against injected commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cifar import __version__
from cifar.settings import ROOT

BIN = Path(sys.executable).parent
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
IMAGE = ROOT / ".github/actions/image/action.yml"
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def steps(file: Path) -> list[dict]:
    """Return the steps of every job of a workflow."""
    return [step for job in yaml.safe_load(file.read_text())["jobs"].values() for step in job.get("steps", [])]


def test_there_are_workflows_for_tests_deployment_space_and_release():
    """A new workflow must be added here, so that the tests below are reviewed for it."""
    assert [file.stem for file in FILES] == ["ci", "deploy", "release", "space"]


@every_file
def test_a_workflow_matches_the_schema_of_github(file):
    """GitHub ignores a workflow that does not match, so no test would run."""
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", file]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_zizmor_finds_no_weakness_in_any_workflow_or_action():
    """It looks for injected commands, leaked credentials, wide permissions and unpinned actions."""
    command = [BIN / "zizmor", "--offline", "--no-progress", "--quiet", ROOT / ".github"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("file", [*FILES, IMAGE], ids=lambda file: file.stem)
def test_actions_are_pinned_by_commit_with_their_version_in_a_comment(file):
    """A tag can be moved to other code; a commit hash cannot."""
    for line in file.read_text().splitlines():
        if "uses:" in line and "uses: ./" not in line:
            assert re.search(r"uses: [\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


@every_file
def test_a_workflow_has_minimal_permissions_and_runs_no_text_of_an_event(file):
    """Permissions are granted job by job, event text reaches a command only as a variable, and checkouts leave no token."""
    text = file.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert "pull_request_target" not in text
    for step in steps(file):
        assert "${{" not in step.get("run", ""), step
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
        if "secrets." in str(step):
            assert "set -x" not in step.get("run", "")
    for job in workflow["jobs"].values():
        assert job.get("uses", "").startswith("./") or job["timeout-minutes"] <= 75


@pytest.mark.parametrize("name", ["deploy", "space"])
def test_only_a_commit_on_main_that_passed_ci_is_deployed(name):
    """A manual run can only roll back: nothing shows that another commit passed its tests."""
    workflow = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())
    for job in workflow["jobs"].values():
        if "environment" in job:
            assert "github.ref == 'refs/heads/main' &&" in f"{job['if']} &&", (
                "otherwise scripts of a branch would run with its secrets"
            )
    by_hand = workflow[True].get("workflow_dispatch", {"inputs": {}})  # YAML 1.1 reads `on` as true
    assert by_hand["inputs"].keys() <= {"rollback"}
    if by_hand["inputs"]:
        assert "(github.event_name == 'push' || inputs.rollback)" in workflow["jobs"]["deploy"]["if"]


@every_file
def test_a_called_workflow_gets_the_secrets_that_it_reads(file):
    """Secrets that the caller does not pass are empty in a called workflow, even those of the job's environment."""
    calls = [job for job in yaml.safe_load(file.read_text())["jobs"].values() if "uses" in job]
    for call in calls:
        called = (ROOT / call["uses"]).read_text()
        read = set(re.findall(r"secrets\.(\w+)", called)) - {"GITHUB_TOKEN"}
        declared = yaml.safe_load(called)[True]["workflow_call"].get("secrets", {})  # YAML 1.1 reads `on` as true
        assert read == declared.keys() == call.get("secrets", {}).keys(), call["uses"]


def commands(file: Path) -> str:
    """Return the commands of a workflow, line by line."""
    return "\n".join(step["run"] for step in steps(file) if "run" in step)


def test_the_image_that_is_deployed_and_released_is_the_one_that_was_tested_and_scanned():
    """A second build may differ from the first: packages of Debian have changed meanwhile."""
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    tested = yaml.safe_load(IMAGE.read_text())["runs"]["steps"]
    assert [step["with"] for step in tested if "scan-action" in step.get("uses", "")] == [
        {"sbom": "sbom.spdx.json", "severity-cutoff": "high", "only-fixed": True}
    ]
    assert any("cifar-space:ci" in str(step.get("with")) for step in tested if "sbom-action" in step.get("uses", ""))
    assert [step["uses"] for step in ci["publish"]["steps"] if "uses" in step][-1] == "./.github/actions/image"
    assert "docker tag cifar-space:ci" in commands(ROOT / ".github/workflows/ci.yml")
    assert ci["deploy"]["with"]["image"] == "${{ needs.publish.outputs.image }}"
    for name in ("ci", "deploy", "release"):
        assert "docker build " not in commands(ROOT / f".github/workflows/{name}.yml")


def test_known_weaknesses_with_a_fix_fail_ci_for_every_pinned_package_every_week():
    """They become known after the commit that pinned the package; nothing is deployed before the scan has passed."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow[True]["schedule"]
    (scan,) = [step for step in workflow["jobs"]["packages"]["steps"] if "scan-action" in step["uses"]]
    assert scan["with"] == {"path": ".", "severity-cutoff": "high", "only-fixed": True}
    assert workflow["jobs"]["image"]["if"] == "github.event_name != 'push'"
    for name in ("deploy", "space"):
        assert {"test", "packages", "publish"} == set(workflow["jobs"][name]["needs"])


@every_file
def test_a_step_that_holds_a_secret_installs_nothing(file):
    """Code of a package that is installed could read it."""
    for step in steps(file):
        if "secrets." in str(step.get("env")):
            assert not re.search(r"\b(pip|uv|npm|apt-get) ", step.get("run", "")), step


def test_the_update_bot_reads_every_lock_file_and_pins_images_by_digest():
    """It reads the command at the head of each file, and leaves out a file whose options it does not know."""
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.renovate", ROOT / ".github/renovate.json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    settings = json.loads((ROOT / ".github/renovate.json").read_text())
    assert "config:best-practices" in settings["extends"], "it holds docker:pinDigests"
    (pattern,) = settings["pip-compile"]["managerFilePatterns"]
    locks = [file for file in ROOT.glob("requirements*.txt") if "autogenerated" in file.read_text()]
    assert len(locks) == 4
    for lock in locks:
        assert re.search(pattern.strip("/"), lock.name), lock.name
        words = lock.read_text().splitlines()[1].removeprefix("#    ").split()
        assert words[:3] == ["uv", "pip", "compile"]
        options = {word for word in words if word.startswith("-")}
        assert options <= {"--universal", "--python-version", "--generate-hashes", "--constraint", "--output-file"}
    (gradio,) = settings["customManagers"][0]["matchStrings"]
    assert re.search(gradio.replace("(?<", "(?P<"), (ROOT / "README.md").read_text())


def released(tmp_path: Path, passed: str, tag: str = f"v{__version__}") -> subprocess.CompletedProcess[str]:
    """Run the checks of `release.yml` with a `gh` that reports `passed` successful runs of ci."""
    gh = tmp_path / "gh"
    gh.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/command\necho {passed}\n')
    gh.chmod(0o755)
    runs = [step["run"] for step in steps(ROOT / ".github/workflows/release.yml") if "run" in step]
    checks = runs[: next(i for i, run in enumerate(runs) if "docker" in run)]
    path = f"{tmp_path}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-c", "\n".join(checks)],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "GITHUB_REF_NAME": tag, "RUNNER_TEMP": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_tag_is_released_only_if_its_commit_passed_ci_on_main(tmp_path):
    """A tag can be put on any commit; a release must have been tested."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    refused = released(tmp_path, "0")
    assert refused.returncode != 0
    assert f"ci has not passed for {commit.strip()} on main" in refused.stdout
    command = (tmp_path / "command").read_text()
    assert f"--workflow ci.yml --branch main --event push --commit {commit.strip()} --status success" in command
    assert released(tmp_path, "1").returncode == 0


def test_package_chart_image_and_changelog_have_the_same_version(tmp_path):
    """A release needs one version everywhere, and a tag with another one is refused."""
    chart = yaml.safe_load((ROOT / "deploy/helm/cifar-space/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    assert f'image.version="{__version__}"' in (ROOT / "Dockerfile").read_text()
    assert released(tmp_path, "1").returncode == 0
    assert len((tmp_path / "notes.md").read_text()) > 300
    assert released(tmp_path, "1", tag="v99.0.0").returncode != 0
