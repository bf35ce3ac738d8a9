"""With sign-in, a session or call of Gradio's belongs to the caller who began it."""

from __future__ import annotations

import pytest
from support.identities import bearer


@pytest.fixture
def alice(key) -> dict[str, str]:
    return bearer(key["caller"])


@pytest.fixture
def mallory(key) -> dict[str, str]:
    return bearer(key["boss"])


def test_another_caller_cannot_read_the_result_of_a_call(closed, alice, mallory):
    """Its id is a secret, but ids get into logs. The owner still gets the result afterwards."""
    event = closed.post("/gradio_api/call/models", json={"data": []}, headers=alice).json()["event_id"]
    for path in (f"/gradio_api/call/models/{event}", f"/gradio_api/call/v2/models/{event}"):
        assert closed.get(path, headers=mallory).status_code == 404
    assert "event: complete" in closed.get(f"/gradio_api/call/models/{event}", headers=alice).text


def test_another_caller_cannot_use_a_session(closed, alice, mallory):
    """Not its stream, which would take the answers away, nor its queue, its calls and its end."""
    functions = closed.get("/config", headers=alice).json()["dependencies"]
    models = next(each["id"] for each in functions if each["api_name"] == "models")
    call = {"data": [], "fn_index": models, "session_hash": "alices"}
    event = closed.post("/gradio_api/queue/join", json=call, headers=alice).json()["event_id"]

    cancel = {"session_hash": "alices", "fn_index": models, "event_id": event}
    assert closed.post("/gradio_api/queue/join", json=call, headers=mallory).status_code == 404
    assert closed.post("/gradio_api/cancel", json=cancel, headers=mallory).status_code == 404
    again = {"data": [], "session_hash": "alices"}
    assert closed.post("/gradio_api/call/models", json=again, headers=mallory).status_code == 404
    assert closed.get("/gradio_api/heartbeat/alices", headers=mallory).status_code == 404
    assert closed.get("/gradio_api/queue/data?session_hash=alices", headers=mallory).status_code == 404
    twice = "/gradio_api/queue/data?session_hash=mallorys&session_hash=alices"
    assert closed.get(twice, headers=mallory).status_code == 404, "Gradio takes the last one"
    assert "process_completed" in closed.get("/gradio_api/queue/data?session_hash=alices", headers=alice).text
