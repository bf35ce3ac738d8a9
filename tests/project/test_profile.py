"""One word for a server that strangers can reach."""

from __future__ import annotations

import pytest
import yaml
from support.servers import running

from cifar.errors import Overloaded
from cifar.models.registry import Registry
from cifar.profile import PUBLIC, who_can_reach
from cifar.serving.inference.loaded import LoadedVersions
from cifar.settings import ROOT, Settings, load_settings

ALL = "0.0.0.0"  # noqa: S104 - a test's name for it


def test_the_profile_public_turns_on_limits(monkeypatch):
    """By default there is none, since a newcomer's own machine needs none."""
    assert not any(getattr(load_settings(), name) for name in PUBLIC)
    monkeypatch.setenv("CIFAR_PROFILE", "public")
    assert {name: getattr(load_settings(), name) for name in PUBLIC} == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_setting_that_is_set_wins_over_the_profile(monkeypatch, name):
    """An operator's own word counts; an empty value is none."""
    own = 9 if isinstance(PUBLIC[name], int) else "9/hour"
    monkeypatch.setenv("CIFAR_PROFILE", "public")
    monkeypatch.setenv(f"CIFAR_{name.upper()}", str(own))
    assert {each: getattr(load_settings(), each) for each in PUBLIC} == {**PUBLIC, name: own}
    monkeypatch.setenv(f"CIFAR_{name.upper()}", "")
    assert getattr(load_settings(), name) == PUBLIC[name]


def test_on_spaces_the_profile_is_public(monkeypatch):
    """A Space is open to everyone, and each visitor has a limit of his own."""
    monkeypatch.setenv("SPACE_ID", "ada/cifar")
    settings = load_settings()
    assert (settings.profile, settings.rate_limit_page, settings.trusted_proxies) == ("public", "240/minute", "*")
    monkeypatch.setenv("CIFAR_PROFILE", "local")
    assert load_settings().rate_limit_page == ""


def test_compose_and_the_chart_use_the_profile():
    """Both are made for the internet."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["app"]["environment"]
    chart = yaml.safe_load((ROOT / "deploy/helm/cifar-space/values.yaml").read_text())["settings"]
    assert (compose["CIFAR_PROFILE"], chart["CIFAR_PROFILE"]) == ("${CIFAR_PROFILE:-public}", "public")


@pytest.mark.parametrize(
    ("host", "public", "said", "warns"),
    [
        ("127.0.0.1", False, "http://localhost:80, for programs on this machine only", False),
        ("::1", False, "for programs on this machine only", False),
        (ALL, False, "http://localhost:80, for everyone whose network reaches port 80", True),
        (ALL, True, "for everyone whose network reaches port 80", False),
        ("192.0.2.7", False, "http://192.0.2.7:80, for everyone", True),
    ],
)
def test_the_first_line_says_who_can_reach_the_server(host, public, said, warns):
    """And what to set before it faces the internet, if that is not set."""
    line = who_can_reach(host, 80, public=public)
    assert said in line
    assert ("CIFAR_PROFILE=public" in line) == warns


@pytest.mark.slow
def test_the_first_line_of_a_server_is_that_line(tmp_path):
    """A newcomer reads it before anything else."""
    with running(tmp_path) as server:
        assert "Serving at http://" in server.log.read_text().splitlines()[0]


def test_strangers_cannot_make_the_server_load_one_version_after_the_other():
    """Each takes seconds of a core. A version in memory is answered all the same."""
    seconds = 0.0
    versions = LoadedVersions(
        Registry(ROOT / "saved_model", "cifar_classifier"),
        Settings(version_loads_per_minute=1, max_loaded_versions=1),
        clock=lambda: seconds,
    )
    versions.load_default()
    first, *_ = (number for number in versions.registry.numbers() if number != versions.default.number)
    versions.get(first)
    versions.get(first)
    versions.get()
    vars(versions)["_in_memory"].pop(first)  # as if others had displaced it
    with pytest.raises(Overloaded, match="try again in a minute"):
        versions.get(first)
    seconds = 61.0
    assert versions.get(first).predictor.version.number == first
