"""What browsers are told with every answer."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from app import create_app
from cifar.settings import Settings, load_settings


@pytest.mark.parametrize("path", ["/", "/predict", "/health", "/config", "/gradio_api/info", "/nowhere", "/docs"])
def test_every_answer_says_what_a_browser_must_not_do(api, path):
    """Errors too: no sniffing, no frames of others, no scripts from elsewhere."""
    headers = api.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["frame-ancestors"] == "'self'"
    assert policy["object-src"] == "'none'"
    assert "https:" not in "".join(policy.values())


def test_a_page_on_spaces_may_be_framed_by_spaces_and_by_no_other(monkeypatch):
    """Hugging Face shows a Space in a frame, and says so by SPACE_ID."""
    monkeypatch.setenv("SPACE_ID", "ada/cifar")
    headers = TestClient(create_app(load_settings(), page=False)).get("/health").headers
    assert "frame-ancestors https://huggingface.co https://*.hf.space" in headers["content-security-policy"]
    assert "x-frame-options" not in headers


def test_the_sites_of_the_setting_may_frame_the_page():
    """What CIFAR_FRAME_ANCESTORS is for."""
    headers = TestClient(create_app(Settings(frame_ancestors=["https://a.example"]), page=False)).get("/health").headers
    assert headers["content-security-policy"].endswith("frame-ancestors https://a.example")
