"""The GitHub workflows: valid, pinned, with minimal permissions, and safe against injected commands."""

from __future__ import annotations

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
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def steps(file: Path) -> list[dict]:
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


def test_zizmor_finds_no_weakness_in_any_workflow():
    """It looks for injected commands, leaked credentials, wide permissions and unpinned actions."""
    command = [BIN / "zizmor", "--offline", "--no-progress", "--quiet", *FILES]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@every_file
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
        assert workflow["jobs"]["build"]["if"] == "github.event_name == 'push'"
        assert "(needs.build.result == 'success' || inputs.rollback)" in workflow["jobs"]["deploy"]["if"]


@every_file
def test_a_called_workflow_gets_the_secrets_that_it_reads(file):
    """Secrets that the caller does not pass are empty in a called workflow, even those of the job's environment."""
    calls = [job for job in yaml.safe_load(file.read_text())["jobs"].values() if "uses" in job]
    for call in calls:
        called = (ROOT / call["uses"]).read_text()
        read = set(re.findall(r"secrets\.(\w+)", called)) - {"GITHUB_TOKEN"}
        declared = yaml.safe_load(called)[True]["workflow_call"].get("secrets", {})  # YAML 1.1 reads `on` as true
        assert read == declared.keys() == call.get("secrets", {}).keys(), call["uses"]


def released(tmp_path: Path, passed: str, tag: str = f"v{__version__}") -> subprocess.CompletedProcess[str]:
    """Run the checks of `release.yml` with a `gh` that reports `passed` successful runs of ci."""
    gh = tmp_path / "gh"
    gh.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/command\necho {passed}\n')
    gh.chmod(0o755)
    commands = [step["run"] for step in steps(ROOT / ".github/workflows/release.yml") if "run" in step]
    checks = commands[: next(i for i, command in enumerate(commands) if "docker" in command)]
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
