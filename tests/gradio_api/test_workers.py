"""Four workers under gunicorn: every client works, whichever workers accept its requests, and the death of a worker costs little."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import expect
from psutil import Process
from support.browser import WAIT_MS, choose_many, expect_label, open_tab, upload, visit
from support.pictures import encoded, noise
from support.servers import (
    EXAMPLES,
    Server,
    ask_all,
    classify,
    load_on,
    metric,
    mixed_payloads,
    running,
    scores,
    wait_for_workers,
)
from support.shipped import NEWEST
from support.waiting import until

from cifar import CLASS_NAMES

WORKERS = 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Four workers for all tests."""
    with running(tmp_path_factory.mktemp("workers"), workers=WORKERS) as server:
        yield server


def owner(session: str) -> int:
    return zlib.crc32(session.encode()) % WORKERS


def test_every_call_of_every_gradio_client_gets_its_own_answer(server):
    """With several workers and no sticky proxy, Gradio alone would lose most calls of these eight clients."""

    def run(k: int) -> int:
        client = Client(server.address, verbose=False)
        right = 0
        for i in range(20):
            name = CLASS_NAMES[(i + k) % 10]
            answer = client.predict(handle_file(EXAMPLES / f"{name}.jpg"), top_k=2, api_name="/predict")
            right += answer["predicted_class"] == name
        return right

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(run, range(8))) == 160


def test_a_call_by_curl_finds_its_event_through_any_worker(server):
    """`POST /call/predict` and `GET /call/predict/EVENT` use two connections, which any two workers may accept."""
    for i in range(12):
        name = CLASS_NAMES[i % 10]
        files = {"files": (f"{name}.jpg", (EXAMPLES / f"{name}.jpg").read_bytes())}
        (path,) = httpx2.post(f"{server.address}/gradio_api/upload", files=files).json()
        image = {"path": path, "meta": {"_type": "gradio.FileData"}}
        call = httpx2.post(f"{server.address}/gradio_api/call/predict", json={"data": [image, 1, None]})
        event = call.json()["event_id"]
        assert re.fullmatch(r"[0-3]-[0-9a-f]{32}", event)
        answer = httpx2.get(f"{server.address}/gradio_api/call/predict/{event}", timeout=30).text
        assert "event: complete" in answer
        assert json.loads(answer.split("data: ")[-1])[0]["predicted_class"] == name


def test_any_worker_can_report_the_progress_of_an_upload(server):
    """Both requests name the same upload id, which leads them to the same worker."""
    for _ in range(6):
        upload = uuid.uuid4().hex
        files = {"files": ("a.jpg", (EXAMPLES / "cat.jpg").read_bytes())}
        with ThreadPoolExecutor(1) as pool:
            address = f"{server.address}/gradio_api/upload_progress?upload_id={upload}"
            progress = pool.submit(httpx2.get, address, timeout=20)
            httpx2.post(f"{server.address}/gradio_api/upload?upload_id={upload}", files=files)
            assert "done" in progress.result().text


def test_a_get_request_to_a_route_for_calls_gets_a_4xx(server):
    """It has no body that could name a session."""
    for route in ("queue/join", "cancel"):
        assert 400 <= httpx2.get(f"{server.address}/gradio_api/{route}").status_code < 500


def test_no_call_of_a_client_that_leaves_or_sends_nothing_is_an_internal_error(server):
    """It would be in the error budget of the operator. A request may have to be forwarded to another worker."""
    for number in range(8):
        with socket.create_connection((httpx2.URL(server.address).host, httpx2.URL(server.address).port)) as connection:
            head = f"POST /gradio_api/upload?upload_id={number} HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            connection.sendall(f"{head}Content-Length: 99\r\n\r\n--x".encode())
    for route in ("queue/join", "cancel"):
        assert httpx2.post(f"{server.address}/gradio_api/{route}").status_code < 500
    left = 'request_count_total{endpoint="/gradio_api/upload",method="POST",status="499"}'
    until(lambda: metric(server, left) >= 8)


def test_five_pages_at_once_get_their_answers(browser, server):
    """Each page has a session of its own."""
    names = CLASS_NAMES[:5]
    with ExitStack() as open_pages:
        pages = [open_pages.enter_context(visit(browser, server.address)) for _ in names]
        for page, name in zip(pages, names, strict=True):
            upload(page, EXAMPLES / f"{name}.jpg")
        for page, name in zip(pages, names, strict=True):
            expect_label(page, name)


def test_a_batch_and_the_live_camera_work_with_several_workers(browser, server):
    """Each photo and each frame is one request, which any worker can answer."""
    with visit(browser, server.address) as page:
        page.locator("[data-live=start]").click()
        expect(page.locator(".live-answer .bars li")).to_have_count(3, timeout=WAIT_MS)
        page.locator("[data-live=stop]").click()
        open_tab(page, "batch")
        photos = [{"name": f"{i}.png", "mimeType": "image/png", "buffer": encoded(noise(seed=i))} for i in range(1000)]
        choose_many(page, "batch", photos)
        expect(page.locator("#batch tbody tr").nth(9)).to_be_attached(timeout=WAIT_MS)
        page.locator("#batch [data-do=cancel]").click()
        expect(page.locator("#batch .summary")).to_contain_text("Cancelled", timeout=WAIT_MS)
        assert 10 <= page.locator("#batch tbody tr").count() < 1000
        expect(page.locator("#batch .failed")).to_have_count(0)


def test_under_load_each_image_gets_the_scores_that_it_gets_alone(server):
    """A thousand requests with small and large files over 16 connections must not be mixed up."""
    payloads = mixed_payloads()
    alone = [scores(httpx2.post(f"{server.address}/predict", files={"image": one}, timeout=30)) for one in payloads]
    assert len(set(map(tuple, alone))) > len(payloads) / 2, "the answers differ, so that a mix-up would show"
    assert ask_all(server.address, payloads, 1000) == [alone[i % len(payloads)] for i in range(1000)]


def test_tensorflow_gives_the_same_scores_in_batches_as_alone(tmp_path):
    """Batches were formed, and no answer went to another request."""
    payloads = mixed_payloads()
    with running(tmp_path, workers=2, CIFAR_ENGINE="tensorflow", CIFAR_CACHE_IMAGES="0") as server:
        alone = [scores(httpx2.post(f"{server.address}/predict", files={"image": one}, timeout=30)) for one in payloads]
        for i, answer in enumerate(ask_all(server.address, payloads, 600)):
            assert answer == pytest.approx(alone[i % len(payloads)], abs=2e-5)
        images, batches = (metric(server, f"cifar_batch_images_{which}") for which in ("sum", "count"))
        assert images == 600 + len(payloads)
        assert batches < images


def test_every_worker_reports_the_metrics_of_all_workers(server):
    """Forty requests count as forty, not as the ten of one worker."""
    name = f'cifar_images_total{{route="rest",version="{NEWEST}"}}'
    before = metric(server, name)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda i: classify(server, i), range(40)))
    for _ in range(8):
        assert metric(server, name) == before + 40


def test_no_process_loads_a_large_library_that_it_does_not_use(server):
    """They would cost memory, TensorFlow does not survive the fork of the workers, and Gradio's first call held the loop to import matplotlib."""
    assert httpx2.post(f"{server.address}/gradio_api/run/models", json={"data": []}).status_code == 200
    for pid in {server.process.pid, *server.workers()}:
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert not {
            library for library in ("libtensorflow", "/pandas/", "/pyarrow/", "/matplotlib/") if library in mapped
        }


def test_connections_that_open_together_are_spread_evenly_over_the_workers(server):
    """Otherwise the first worker to wake up keeps most of them, and does most of the work."""
    before = sockets_of_workers(server)
    with ExitStack() as stack:
        for _ in range(16 * WORKERS):
            stack.enter_context(socket.create_connection(("127.0.0.1", httpx2.URL(server.address).port)))
        for _ in range(100):
            held = [after - earlier for after, earlier in zip(sockets_of_workers(server), before, strict=True)]
            if sum(held) >= 16 * WORKERS:
                break
            time.sleep(0.1)
    assert sum(held) == 16 * WORKERS
    assert max(held) <= 24


def sockets_of_workers(server: Server) -> list[int]:
    """Return the number of open sockets of each worker."""
    folders = (Path(f"/proc/{pid}/fd") for pid in sorted(server.workers()))
    return [sum(str(link.readlink()).startswith("socket:") for link in folder.iterdir()) for folder in folders]


def test_a_reload_under_load_costs_no_request(server):
    """On SIGHUP, new workers start before the old ones stop, and each finishes its requests."""
    before = server.workers()
    stop = threading.Event()
    results = []

    def load(k: int) -> None:
        i = k
        with httpx2.Client() as client:  # it keeps its connection open until the old worker closes it
            while not stop.is_set() and i < 20_000:
                results.append(classify(server, i, client))
                i += 1

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(load, k) for k in range(4)]
        ready = server.log.read_text().count("is ready on")
        server.process.send_signal(signal.SIGHUP)
        wait_for_workers(server, ready + WORKERS)
        until(lambda: not server.workers() & before)
        time.sleep(1)
        stop.set()
        for run in runs:
            run.result()
    assert not server.workers() & before
    assert len(server.workers()) == WORKERS
    assert len(results) > 20
    assert all(results)
    client = Client(server.address, verbose=False)
    assert client.predict(handle_file(EXAMPLES / "ship.jpg"), api_name="/predict")["predicted_class"] == "ship"


def test_a_killed_worker_is_replaced_and_every_session_is_answered_again(server):
    """The new worker takes over the slot of the old one."""
    victim = worker_in(server, 2)
    ready = server.log.read_text().count("is ready on")
    os.kill(victim, signal.SIGKILL)
    wait_for_workers(server, ready + 1)
    assert victim not in server.workers()
    assert len(server.workers()) == WORKERS
    seen = set()
    for _ in range(40):
        session = str(uuid.uuid4())
        if owner(session) in seen:
            continue
        seen.add(owner(session))
        joined = httpx2.post(
            f"{server.address}/gradio_api/queue/join",
            json={"data": [None, None, None], "fn_index": _predict_index(server), "session_hash": session},
            timeout=30,
        )
        assert joined.status_code == 200, joined.text
        stream = httpx2.get(
            f"{server.address}/gradio_api/queue/data", params={"session_hash": session}, timeout=30
        ).text
        assert "No image came" in stream
    assert seen == set(range(WORKERS))


def _predict_index(server: Server) -> int:
    dependencies = httpx2.get(f"{server.address}/config").json()["dependencies"]
    return next(d["id"] for d in dependencies if d["api_name"] == "predict")


def test_when_a_worker_dies_its_streams_end_with_a_reason_and_no_others_end(server):
    """Clients that are connected through another worker learn what happened."""
    sessions = [str(uuid.uuid4()) for _ in range(80)]
    theirs = [session for session in sessions if owner(session) == 1][:12]
    others = [session for session in sessions if owner(session) == 3][:6]
    victim, ended = worker_in(server, 1), threading.Event()
    heard: dict[str, tuple[int, str]] = {}
    with ThreadPoolExecutor(len(theirs) + len(others)) as pool:
        try:
            streams = {s: pool.submit(listen, server, s, heard, ended) for s in (*theirs, *others)}
            until(lambda: len(heard) == len(streams), heard)
            cut = {connection.raddr.port for connection in Process(victim).net_connections("tcp") if connection.raddr}
            theirs, others = ([s for s in each if heard[s][0] not in cut] for each in (theirs, others))
            assert theirs, "another worker accepted some connections, and passes their streams on"
            assert others
            ready = server.log.read_text().count("is ready on")
            os.kill(victim, signal.SIGKILL)
            ends = [streams[session].result(timeout=60) for session in theirs]
        finally:
            ended.set()
    assert ["The worker that held this session has ended" in text for text in ends] == [True] * len(theirs), ends
    ends = [streams[session].result() for session in others]
    assert [text.endswith("still open") for text in ends] == [True] * len(others), ends
    wait_for_workers(server, ready + 1)


def listen(server: Server, session: str, heard: dict[str, tuple[int, str]], ended: threading.Event) -> str:
    """Return what a session's heartbeat stream sends until it ends, or until it sends something after `ended`.

    `heard` gets the port of the client, and what has come so far.
    """
    text = ""
    try:
        with httpx2.stream("GET", f"{server.address}/gradio_api/heartbeat/{session}", timeout=60) as stream:
            _host, port = stream.extensions["network_stream"].get_extra_info("client_addr")
            for piece in stream.iter_text():
                text += piece
                heard[session] = (port, text)
                if ended.is_set():
                    return text + " still open"
    except httpx2.TransportError:
        return text + " cut off"
    return text


def worker_in(server: Server, slot: int) -> int:
    """Return the process id of the worker in a slot."""
    link = next(server.log.parent.glob(f"cifar-workers-*/{slot}.sock")).resolve()
    return int(re.search(r"-(\d+)\.sock", link.name)[1])


def test_the_death_of_a_worker_under_load_costs_only_the_requests_that_it_was_answering(server):
    """Each of eight clients has at most one error, and later requests are answered."""
    with load_on(server) as load:
        time.sleep(1)
        ready = server.log.read_text().count("is ready on")
        os.kill(worker_in(server, 0), signal.SIGKILL)
        wait_for_workers(server, ready + 1)
        time.sleep(1)
    print(f"{len(load.right)} answered, errors: {load.errors}")
    assert len(load.right) > 100
    assert all(load.right), "no answer was wrong, and none was a server error"
    assert len(load.errors) <= 8
