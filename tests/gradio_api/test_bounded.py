"""The data that Gradio keeps of its callers: private, limited in size, and never in caches."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio import queueing, route_utils, routes
from gradio.server_messages import ProcessCompletedMessage
from starlette.datastructures import Headers

from cifar.serving.gradio import bounded
from cifar.settings import ROOT

CAT = (ROOT / "examples/cat.jpg").read_bytes()


def upload(api, **query: str) -> str:
    return api.post("/gradio_api/upload", files={"files": ("cat.jpg", CAT)}, params=query).json()[0]


def test_two_uploads_of_one_photo_have_paths_that_nobody_can_guess(api):
    """Otherwise whoever has a photo learns from a GET whether another caller uploaded it."""
    paths = {upload(api) for _ in range(3)}
    assert len(paths) == 3
    for path in paths:
        assert api.get(f"/gradio_api/file={path}").content == CAT, "who knows the path can read it"


def test_of_an_upload_of_many_files_only_one_is_open(tmp_path):
    """A form of 70 kB held a thousand file descriptors until it was complete, which on many systems are all that a process has."""
    bounded.bound_uploads()
    open_files: list[int] = []

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def form() -> AsyncIterator[bytes]:
        for number in range(200):
            yield f'--x\r\nContent-Disposition: form-data; name="files"; filename="{number}"\r\n\r\na\r\n'.encode()
            open_files.append(descriptors())
        yield b"--x--"

    headers = Headers({"content-type": "multipart/form-data; boundary=x"})
    parser = route_utils.GradioMultiPartParser(headers, form(), upload_dir=tmp_path, max_file_size=10)
    assert len(asyncio.run(parser.parse()).getlist("files")) == 200
    assert max(open_files) - open_files[0] < 50


def test_calls_that_name_one_large_upload_hold_few_copies_of_it(api):
    """200 calls of 100 bytes each took 1.5 GB: Gradio held each copy while it waited for a thread, and, after an error, until a garbage collection."""
    (path,) = api.post("/gradio_api/upload", files={"files": ("a.jpg", b"\xff\xd8" + bytes(15_000_000))}).json()
    call = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
    tracemalloc.start()
    with ThreadPoolExecutor(24) as pool:
        answers = pool.map(lambda kind: api.post(f"/gradio_api/{kind}/predict", json=call), ["run", "call"] * 12)
        assert {answer.status_code for answer in answers} == {200, 422}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150_000_000


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_no_cache_keeps_the_page_or_a_call(api, path):
    """The page sets a cookie, and may show tabs that belong to its caller."""
    assert api.get(path).headers["cache-control"] == "private, no-store"


def test_no_cache_keeps_an_upload(api):
    """A cache in front of the server would give one caller's photo to others."""
    assert api.get(f"/gradio_api/file={upload(api)}").headers["cache-control"] == "private, no-store"


def test_assets_may_be_kept_by_caches(api):
    """They are the same for all."""
    assert "no-store" not in api.get("/theme.css").headers.get("cache-control", "")


def test_the_progress_of_uploads_is_forgotten(api, monkeypatch):
    """Gradio kept 2 kB of each upload with an `upload_id` for ever, unless somebody asked for it."""
    monkeypatch.setattr(bounded, "_MAX_TRACKED_UPLOADS", 5)
    for number in range(12):
        upload(api, upload_id=f"upload-{number}")
    progress = routes.file_upload_statuses
    statuses, signals = (vars(progress)[name] for name in ("_statuses", "_signals"))
    assert list(statuses) == [f"upload-{number}" for number in range(7, 12)]
    assert len(signals) <= 5


def test_gradio_computes_no_statistics_after_a_call():
    """It summed up its last 10,000 calls after each one, which took most of a call's time."""
    bounded.leave_out_statistics()
    with gr.Blocks() as page:
        gr.api(lambda: 1, api_name="one")
    page.queue()
    queue = vars(page)["_queue"]
    assert queue.ANALYTICS_MAX_EVENTS == 1
    assert queue.compute_analytics_summary([{"function": "one"}]) == {"functions": {}}


def test_results_that_nobody_reads_take_a_limited_amount_of_memory(monkeypatch):
    """250 batches of 1,000 images took a gigabyte. Who reads their results, or has few, loses none to whoever hoards them."""
    monkeypatch.setattr(bounded, "_MAX_UNREAD_BYTES", 4_000_000)
    with gr.Blocks() as page:
        gr.api(lambda: 1, api_name="one")
    page.queue()
    bounded.bound_results(page)
    queue = vars(page)["_queue"]
    sessions = queue.pending_messages_per_session

    def answered(session: str, content: str) -> None:
        sessions.setdefault(session, queueing.AsyncQueue())
        event = SimpleNamespace(session_hash=session, alive=True, _id="id")
        queue.send_message(event, ProcessCompletedMessage(output={"data": [content]}, success=True))

    answered("modest", "m" * 1000)
    for number in range(20):
        answered("one of many", "h" * 90_000)
        answered(f"many {number}", "h" * 90_000)
        answered("reader", "r" * 200_000)
        assert sessions["reader"].get_nowait().output == {"data": ["r" * 200_000]}
        assert sum(each.own_bytes for each in sessions.values()) <= 4_000_000
    assert sessions["modest"].get_nowait().output == {"data": ["m" * 1000]}
    assert len(sessions) < 20


def test_opened_pages_leave_little_for_the_garbage_collector(api):
    """It holds up the whole process while it looks through them: 0.4 seconds for a thousand pages, which one caller can open."""
    kept = []
    for page in range(120):
        api.post("/gradio_api/run/models", json={"data": [], "session_hash": f"page{page}"}).raise_for_status()
        if page in {59, 119}:
            gc.collect()
            kept.append(len(gc.get_objects()))
    assert kept[1] - kept[0] < 5000


def test_calls_that_nobody_reads_are_forgotten(api):
    """Each one left an entry for ever. The limit is twice Gradio's own for results."""
    queue = vars(api.app.routes[-1].app.app.gradio)["_queue"]
    before = len(queue.pending_event_ids_session)
    queue.pending_event_ids_session |= {f"left-{number}": {"x"} for number in range(2 * 2000)}
    path = upload(api)
    event = api.post(
        "/gradio_api/call/predict", json={"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, 3, None]}
    )
    assert event.status_code == 200, event.text
    assert len(queue.pending_event_ids_session) <= before + 1
