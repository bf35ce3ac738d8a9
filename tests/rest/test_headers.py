"""Security headers."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from app import create_app
from cifar.settings import Settings, load_settings


@pytest.mark.parametrize("path", ["/", "/predict", "/health", "/config", "/gradio_api/info", "/nowhere", "/docs"])
def test_every_answer_has_the_security_headers(api, path):
    """Errors have them too: no sniffing of types, no frames and no scripts of other sites."""
    headers = api.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["frame-ancestors"] == "'self'"
    assert policy["object-src"] == "'none'"
    assert "https:" not in "".join(policy.values())


def test_on_spaces_only_hugging_face_may_show_the_page_in_a_frame(monkeypatch):
    """Hugging Face sets SPACE_ID and shows a Space in a frame."""
    monkeypatch.setenv("SPACE_ID", "ada/cifar")
    headers = TestClient(create_app(load_settings(), page=False)).get("/health").headers
    assert "frame-ancestors https://huggingface.co https://*.hf.space" in headers["content-security-policy"]
    assert "x-frame-options" not in headers


def test_the_listed_sites_may_show_the_page_in_a_frame():
    """The setting is CIFAR_FRAME_ANCESTORS."""
    headers = TestClient(create_app(Settings(frame_ancestors=["https://a.example"]), page=False)).get("/health").headers
    assert headers["content-security-policy"].endswith("frame-ancestors https://a.example")
