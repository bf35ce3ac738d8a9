"""Tests of the app under the conditions of Hugging Face Spaces: its variables, uid 1000, read-only code, a frame on another site."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import httpx2
import pytest
import yaml
from playwright.sync_api import sync_playwright
from support.browser import EXAMPLES, WAIT_MS, expect_label
from support.nginx import Nginx, certificate_in, running_nginx
from support.servers import free_port, need, wait_until_ready

from cifar.settings import ROOT, Settings

SPACE = "ada-cifar.hf.space"
SPACES_SETS = {
    "SYSTEM": "spaces",
    "SPACE_ID": "ada/cifar",
    "SPACE_HOST": SPACE,
    "SPACE_AUTHOR_NAME": "ada",
    "SPACE_REPO_NAME": "cifar",
    "GRADIO_ALLOW_FLAGGING": "never",
    "GRADIO_NUM_PORTS": "1",
    "GRADIO_SERVER_NAME": "0.0.0.0",  # noqa: S104 - as there
    "GRADIO_THEME": "huggingface",
    "GRADIO_SSR_MODE": "true",
    "PYTHONUNBUFFERED": "1",
}
ONLY_THESE = """
import json, pathlib, sys

REFUSED = set(json.loads(pathlib.Path(__file__).with_name("refused.json").read_text()))

class NotInstalled:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{name} is not in requirements.txt", name=name)

sys.meta_path.insert(0, NotInstalled)
"""
"""A `sitecustomize` module that hides every package that requirements.txt does not install."""

HEADER = "https://huggingface.co/api/spaces/by-subdomain/"
"""Gradio's page requests the Space's name and likes from here. Our policy blocks it, which does no harm."""

pytestmark = pytest.mark.slow


def front_matter(file: Path) -> dict:
    return yaml.safe_load(file.read_text().split("---\n")[1])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(file: str = "requirements.txt") -> dict[str, str]:
    """Return the packages of a lock file and their versions."""
    found = re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([\w.]+)", (ROOT / file).read_text(), re.MULTILINE)
    return {normal(name): version for name, version in found}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """The Space behind a proxy with HTTPS, as on Hugging Face."""
    folder = Path(tempfile.mkdtemp(prefix="cifar-space-"))
    folder.chmod(0o755)
    try:
        yield from _running_space(folder, tmp_path_factory.mktemp("proxy"))
    finally:
        shutil.rmtree(folder)


def _running_space(folder: Path, proxy: Path) -> Iterator[Nginx]:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        (folder / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "app" / name, follow_symlinks=False)
    hook, home = folder / "hook", folder / "home"
    for made in (hook, home):
        made.mkdir()
    (hook / "sitecustomize.py").write_text(ONLY_THESE)
    modules = importlib.metadata.packages_distributions().items()
    refused = [module for module, names in modules if not {*map(normal, names)} & {*pinned()}]
    assert {"pytest", "playwright"} <= {*refused}
    (hook / "refused.json").write_text(json.dumps(refused))
    if os.geteuid() == 0:
        os.chown(home, 1000, 1000)
        may_read = [
            "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search",
        ]  # Python may be installed in root's home folder
        as_user = [need("setpriv"), "--reuid=1000", "--regid=1000", "--clear-groups", *may_read]
    else:
        as_user = []
        for path in (folder / "app").rglob("*"):
            path.chmod(path.stat().st_mode & ~0o222)
    port = free_port()
    own = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(hook)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*as_user, sys.executable, "app.py"],
            cwd=folder / "app",
            env={**SPACES_SETS, **own, "PORT": str(port)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_until_ready(client)
        with running_nginx(proxy, f"127.0.0.1:{port}", NGINX_TLS_FOLDER=str(certificate_in(proxy))) as nginx:
            yield nginx
    finally:
        process.terminate()
        process.wait(30)
    log = (folder / "log").read_text()
    assert " ERROR " not in log, log
    assert "Traceback" not in log, log


def test_the_space_works_in_a_frame_of_hugging_face(space):
    """A photo is classified in the frame, where third-party cookies are blocked, and no other host is contacted."""
    rules = f"MAP {SPACE}:443 127.0.0.1:{space.tls_port}"
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        f"--host-resolver-rules={rules}",
        "--test-third-party-cookie-phaseout",
    ]
    arguments.append(
        "--disable-features=LocalNetworkAccessChecks"
    )  # on Hugging Face the frame is not on the local machine
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=need("chromium"), args=arguments)
        page = browser.new_page(ignore_https_errors=True, locale="en-US")
        page.set_default_timeout(WAIT_MS)
        errors, asked = [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if "Content Security Policy" in line.text else None)
        page.on("request", lambda request: asked.append(request.url))
        outer = f'<!doctype html><iframe src="https://{SPACE}/" width="1200" height="900"></iframe>'
        site = "https://huggingface.co/spaces/ada/cifar"
        page.route(site, lambda route: route.fulfill(body=outer, content_type="text/html"))
        page.goto(site)
        frame = page.wait_for_selector("iframe").content_frame()
        frame.set_input_files("#photo input[type=file]", EXAMPLES / "cat.jpg")
        expect_label(frame, "cat")
        frame.get_by_role("tab", name="Code").first.click()
        frame.get_by_text(f"https://{SPACE}").first.wait_for()
        browser.close()
    assert [error for error in errors if HEADER not in error] == []
    expected = (site, f"https://{SPACE}/", HEADER, "data:", "blob:")
    assert [url for url in asked if not url.startswith(expected)] == []


def test_no_other_site_may_frame_the_space(space):
    """The policy allows Hugging Face only."""
    plain = httpx2.get(space.address)
    page = httpx2.get(f"https://localhost:{space.tls_port}/", verify=False)
    assert plain.status_code == 308, "plain HTTP is sent to HTTPS by the proxy"
    assert "frame-ancestors https://huggingface.co https://*.hf.space" in page.headers["content-security-policy"]
    assert "x-frame-options" not in page.headers


def test_the_front_matter_of_the_readme_matches_the_pinned_versions():
    """Spaces installs its own Gradio after requirements.txt: another version would replace the tested one."""
    top = front_matter(ROOT / "README.md")
    assert top["sdk"] == "gradio"
    assert top["sdk_version"] == pinned()["gradio"]
    assert (ROOT / top["app_file"]).is_file()
    assert f"FROM python:{top['python_version']}-slim" in (ROOT / "Dockerfile").read_text()
    assert len(top["short_description"]) <= 60, "the Hub refuses longer ones"
    assert Settings().port == 7860, "Spaces expects this port and sets no variable"


def test_the_lock_file_is_complete():
    """Every package that a pinned package requires is pinned too."""
    from packaging.requirements import Requirement

    locked = pinned()
    for name in locked:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # not for this system
        required = [Requirement(text) for text in needs]
        missing = [
            r.name
            for r in required
            if (not r.marker or r.marker.evaluate({"extra": ""})) and normal(r.name) not in locked
        ]
        assert [name for name in missing if name != "setuptools"] == [], name


def test_the_documented_push_commands_are_valid_and_upload_tracked_files_only():
    """The pinned `hf` knows the commands of docs/spaces.md, and git ignores the files with secrets."""
    text = (ROOT / "docs/spaces.md").read_text()
    commands = re.findall(r"^(hf .+)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        words = [Path(sys.executable).with_name("hf"), *command.split()[1:], "--help"]
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    (prefix, folder) = re.findall(r"^git archive HEAD --prefix=(\w+)/ \| tar -x -C (\S+)$", text, re.MULTILINE)[0]
    assert f"hf upload YOU/cifar {folder}/{prefix} ." in text
    secrets = ["tls/tls.key", "api-keys.json", ".env", "var/users.key", "deploy/prometheus/token"]
    ignored = subprocess.run(
        ["git", "check-ignore", *secrets], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    assert ignored.split() == secrets


def test_the_docker_variant_of_the_front_matter_fits_the_dockerfile():
    """The sed command of docs/spaces.md gives a valid front matter with the port of the image."""
    (change,) = re.findall(r"^sed -i '(.+)' README.md$", (ROOT / "docs/spaces.md").read_text(), re.MULTILINE)
    changed = subprocess.run(["sed", change, ROOT / "README.md"], capture_output=True, text=True, check=True).stdout
    top = yaml.safe_load(changed.split("---\n")[1])
    assert (top["sdk"], top["app_port"]) == ("docker", 7860)
    assert not {"sdk_version", "python_version", "app_file"} & top.keys()
    image = (ROOT / "Dockerfile").read_text()
    assert "USER 1000:1000" in image
    assert f"PORT={top['app_port']}" in image


def test_only_files_that_go_to_large_file_storage_anyway_are_as_large_as_to_need_it():
    """The Hub refuses others above 10 MB. `hf upload` stores binary files there, and the command for git names their endings."""
    (endings,) = re.findall(r'--include="([^"]+)"', (ROOT / "docs/spaces.md").read_text())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    others = [name for name in tracked.splitlines() if not any(fnmatch(name, each) for each in endings.split(","))]
    assert len(others) > 100
    assert [name for name in others if (ROOT / name).stat().st_size > 10_000_000] == []
