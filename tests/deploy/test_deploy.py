"""Tests of the deployment files: linters accept them, and they agree with the settings of the app."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import yaml
from support.nginx import render
from support.servers import free_port, listens, need
from support.waiting import until

from cifar.models.registry import Registry
from cifar.settings import ROOT, Settings

BIN = Path(sys.executable).parent
NETWORKS = "10.0.0.0/8, 192.0.2.1"


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing_in_the_dockerfile():
    """The only exception in the file has a reason."""
    result = run("hadolint", "Dockerfile")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_gixy_finds_nothing_in_the_rendered_nginx_conf(tmp_path, tls):
    """It checks for host spoofing, header redefinition, response splitting and aliases, with every option on."""
    for name in ("tls.crt", "tls.key")[: 2 * tls]:
        (tmp_path / name).touch()
    options = {"NGINX_HOSTS": "a.example", "NGINX_TRUSTED_PROXIES": NETWORKS, "NGINX_METRICS_FROM": NETWORKS}
    (tmp_path / "nginx.conf").write_text(render(NGINX_TLS_FOLDER=str(tmp_path), **options).stdout)
    assert (" ssl " in (tmp_path / "nginx.conf").read_text()) == tls
    result = run("gixy", tmp_path / "nginx.conf")
    assert result.returncode == 0, result.stdout
    assert "No issues found" in result.stdout


def test_gixy_finds_a_spoofed_host(tmp_path):
    """The checker works: it finds one careless line."""
    careless = render().stdout.replace("proxy_set_header Host $public_host;", "proxy_set_header Host $http_host;")
    (tmp_path / "nginx.conf").write_text(careless)
    assert "host_spoofing" in run("gixy", tmp_path / "nginx.conf").stdout


def test_nginx_and_the_app_have_the_same_body_limit():
    """By default and when the setting is changed."""
    default = Settings.model_fields["max_body_bytes"].default
    assert f"client_max_body_size {default};" in render().stdout
    assert "client_max_body_size 4096;" in render(CIFAR_MAX_BODY_BYTES="4096").stdout


def test_the_timeout_of_nginx_is_longer_than_that_of_the_app():
    """The client then gets the app's own error message."""
    (nginx_waits,) = re.findall(r"proxy_read_timeout (\d+)s", render().stdout)
    assert int(nginx_waits) > Settings.model_fields["max_wait_seconds"].default


def test_every_variable_of_nginx_is_documented_with_its_default():
    """`.env.example` lists exactly the variables that `render.py` reads."""
    documented = dict(re.findall(r"^#(PORT|NGINX_\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    source = (ROOT / "deploy/container/render.py").read_text()
    known = dict(re.findall(r'^    "(PORT|NGINX_\w+)": "(.*?)",', source, re.MULTILINE))
    assert documented == known


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PORT", "http", "a whole number"),
        ("NGINX_HOSTS", "a.example; return 200", "host names"),
        ("NGINX_UPSTREAM", "app", "HOST:PORT"),
        ("NGINX_TRUSTED_PROXIES", "10.0.0.0/33", "10.0.0.0/33"),
        ("NGINX_METRICS_FROM", "everybody", "everybody"),
        ("NGINX_CONNECTIONS_PER_ADDRESS", "0", "above 0"),
        ("NGINX_RUN_FOLDER", "/tmp/a b;", "absolute path"),
        ("CIFAR_MAX_BODY_BYTES", "20m", "a whole number"),
    ],
)
def test_a_wrong_value_for_nginx_is_refused_with_a_sentence(name, value, expected):
    """The message names the variable, its value and what was expected; nothing is rendered."""
    result = render(**{name: value})
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"start: {name}={value!r} is not usable: ")
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_certificate_without_its_key_is_refused(tmp_path):
    """An incomplete mount is a mistake and must not lead to plain HTTP."""
    (tmp_path / "tls.crt").touch()
    result = render(NGINX_TLS_FOLDER=str(tmp_path))
    assert result.returncode == 1
    assert "needs both tls.crt and tls.key" in result.stderr


def started(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Run the container's command with nginx alone, in front of nothing."""
    variables = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "NGINX_RUN_FOLDER": str(folder),
        "NGINX_UPSTREAM": "127.0.0.1:9",
        **environment,
    }
    return subprocess.Popen(
        ["deploy/container/start", "nginx"],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_with_a_json_log_each_line_of_the_container_is_json(tmp_path, log_format):
    """One line that is none, of nginx or of the start script, stops some collectors. The last line is not lost."""
    need("nginx")
    port = free_port()
    process = started(tmp_path, PORT=str(port), CIFAR_LOG_FORMAT=log_format)
    try:
        until(lambda: listens(port))
        assert httpx2.get(f"http://127.0.0.1:{port}/", headers={"User-Agent": 'a"b\\c'}).status_code == 503
        os.kill(int((tmp_path / "nginx.pid").read_text()), signal.SIGTERM)
    except BaseException:
        process.terminate()
        raise
    output, errors = process.communicate(timeout=20)
    lines = (output + errors).splitlines()
    messages = [json.loads(line).get("message", "") for line in lines] if log_format == "json" else lines
    for words in ("connect() failed", "start: nginx ended unexpectedly"):
        assert any(words in message for message in messages), words
    assert process.returncode == 1


def test_a_container_that_cannot_start_says_so_in_json(tmp_path):
    """The reason is the only line that there is."""
    process = started(tmp_path, NGINX_HOSTS='a b;"c', CIFAR_LOG_FORMAT="json")
    output, errors = process.communicate(timeout=20)
    (line,) = (output + errors).splitlines()
    assert json.loads(line)["message"].startswith("start: NGINX_HOSTS=")
    assert process.returncode == 1


def test_compose_yaml_is_valid():
    """It fits the schema of the Compose specification."""
    result = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")
    assert result.returncode == 0, result.stdout


def services() -> dict[str, dict]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


@pytest.mark.parametrize("name", services())
def test_every_service_of_compose_is_isolated(name):
    """The root file system is read-only, there are no capabilities, resources are limited, and there is a health check."""
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"memory", "cpus", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service or "build" in service, "our own image contains its check"


@pytest.mark.parametrize("name", services())
def test_every_image_of_compose_is_pinned_to_a_version(name):
    """`latest` or a tag of a major version would change over time."""
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", services()[name]["image"])


def test_compose_contains_no_secret():
    """Passwords come from `.env`; without them the services do not start."""
    text = (ROOT / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w*PASSWORD\w*):\?", text)) == {"REDIS_PASSWORD", "GRAFANA_PASSWORD"}
    assert not re.search(r"(?i)password\S*[:=] *[\"']?[a-z0-9]", text.replace("{REDIS_PASSWORD", "{"))


def test_only_nginx_of_compose_can_be_reached_from_other_machines():
    """Other services publish their ports to this machine only, or not at all."""
    for name, service in services().items():
        for port in service.get("ports", []):
            assert name == "nginx" or port.startswith("127.0.0.1:"), port


def test_tensorflow_serving_gets_the_registry_and_its_stable_label():
    """The mounted folders and the files named by flags exist, and the label stable is the shipped version."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["tensorflow-serving"]
    mounts = dict(mount.split(":")[:2][::-1] for mount in service["volumes"])
    for flag in service["command"]:
        if "_file=" in flag:
            folder, _, name = flag.partition("=")[2].rpartition("/")
            assert (ROOT / mounts[folder] / name).is_file(), flag
    config = (ROOT / "deploy/tfserving/models.config").read_text()
    (base,) = re.findall(r'base_path: "/models/(\w+)"', config)
    ((label, number),) = re.findall(r'key: "(\w+)" value: (\d+)', config)
    assert (label, int(number)) == ("stable", Registry(ROOT / "saved_model", base).get().number)
