"""Four workers as gunicorn runs them: every client works, whichever worker it meets, and a death costs little."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import expect, sync_playwright
from support.page_visits import choose_many, expect_label, open_tab, visit
from support.pictures import encoded, noise
from support.servers import (
    EXAMPLES,
    Server,
    ask_all,
    classify,
    metric,
    mixed_payloads,
    need,
    running,
    scores,
    wait_for_workers,
)

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


def test_every_call_of_every_gradio_client_comes_back_with_its_own_answer(server):
    """Eight clients, 160 calls, four workers, no sticky proxy: plain Gradio answers none."""

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


def test_a_call_by_curl_finds_its_event_wherever_it_asks(server):
    """`POST /call/predict` and then `GET /call/predict/EVENT`, each on a connection of its own, twelve times."""
    for i in range(12):
        name = CLASS_NAMES[i % 10]
        files = {"files": (f"{name}.jpg", (EXAMPLES / f"{name}.jpg").read_bytes())}
        (path,) = httpx.post(f"{server.address}/gradio_api/upload", files=files).json()
        image = {"path": path, "meta": {"_type": "gradio.FileData"}}
        call = httpx.post(f"{server.address}/gradio_api/call/predict", json={"data": [image, 1, None]})
        event = call.json()["event_id"]
        assert re.fullmatch(r"[0-3]-[0-9a-f]{32}", event)
        answer = httpx.get(f"{server.address}/gradio_api/call/predict/{event}", timeout=30).text
        assert "event: complete" in answer
        assert json.loads(answer.split("data: ")[-1])[0]["predicted_class"] == name


def test_the_progress_of_an_upload_is_told_by_whichever_worker_is_asked(server):
    """Upload and progress name the same id, and meet."""
    for _ in range(6):
        upload = uuid.uuid4().hex
        files = {"files": ("a.jpg", (EXAMPLES / "cat.jpg").read_bytes())}
        with ThreadPoolExecutor(1) as pool:
            address = f"{server.address}/gradio_api/upload_progress?upload_id={upload}"
            told = pool.submit(httpx.get, address, timeout=20)
            httpx.post(f"{server.address}/gradio_api/upload?upload_id={upload}", files=files)
            assert "done" in told.result().text


def test_ten_pages_at_once_get_their_answers(server):
    """Real browsers, each its own session."""
    path = need("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        pages = [browser.new_context().new_page() for _ in range(10)]
        for page in pages:
            page.goto(server.address)
        for i, page in enumerate(pages):
            expect(page.locator("#photo input[type=file]")).to_be_attached(timeout=60_000)
            page.set_input_files("#photo input[type=file]", EXAMPLES / f"{CLASS_NAMES[i]}.jpg")
        for i, page in enumerate(pages):
            expect_label(page, CLASS_NAMES[i])
        browser.close()


def test_batch_cancel_and_live_camera_need_no_particular_worker(server):
    """Each photo and each frame is a request of its own, whoever answers."""
    options = ["--no-sandbox", "--disable-gpu", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=need("chromium"), args=options)
        with visit(browser, server.address) as page:
            page.locator("[data-live=start]").click()
            expect(page.locator("#live .live-answer .bars li")).to_have_count(3, timeout=60_000)
            page.locator("[data-live=stop]").click()
            open_tab(page, "batch")
            photos = [
                {"name": f"{i}.png", "mimeType": "image/png", "buffer": encoded(noise(seed=i))} for i in range(200)
            ]
            choose_many(page, "batch", photos)
            expect(page.locator("#batch tbody tr").nth(9)).to_be_attached(timeout=60_000)
            page.locator("#batch [data-do=cancel]").click()
            expect(page.locator("#batch .summary")).to_contain_text("Cancelled", timeout=60_000)
            done = page.locator("#batch tbody tr").count()
            assert 10 <= done < 200
            expect(page.locator("#batch .failed")).to_have_count(0)
        browser.close()


def test_requests_spread_over_the_workers(server):
    """Each worker answers some of 80 connections."""
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda i: classify(server, i), range(80)))


def test_under_load_each_answer_is_the_one_of_its_image_alone(server):
    """A thousand requests over 16 connections, files small and large: every score as when nobody else asked."""
    payloads = mixed_payloads()
    alone = [scores(httpx.post(f"{server.address}/predict", files={"image": one}, timeout=30)) for one in payloads]
    assert len(set(map(tuple, alone))) > len(payloads) / 2, "the answers differ, so that a mix-up would show"
    assert ask_all(server.address, payloads, 1000) == [alone[i % len(payloads)] for i in range(1000)]


def test_tensorflow_answers_in_batches_what_it_answers_alone(tmp_path):
    """Two workers, both engines' road: batches were formed, and no answer went to a neighbour."""
    payloads = mixed_payloads()
    with running(tmp_path, workers=2, CIFAR_ENGINE="tensorflow", CIFAR_CACHE_IMAGES="0") as server:
        alone = [scores(httpx.post(f"{server.address}/predict", files={"image": one}, timeout=30)) for one in payloads]
        for i, answer in enumerate(ask_all(server.address, payloads, 600)):
            assert answer == pytest.approx(alone[i % len(payloads)], abs=2e-5)
        images, batches = (metric(server, f"cifar_batch_images_{which}") for which in ("sum", "count"))
        assert images == 600 + len(payloads)
        assert batches < images


def test_the_metrics_of_all_workers_are_added_up_whoever_is_asked(server):
    """Forty requests are forty, not ten of each worker."""
    name = 'cifar_images_total{route="rest",version="2"}'
    before = metric(server, name)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda i: classify(server, i), range(40)))
    for _ in range(8):
        assert metric(server, name) == before + 40


def test_a_worker_forked_shares_what_was_imported_and_no_tensorflow(server):
    """With LiteRT no process ever maps TensorFlow, and the parent least of all."""
    for pid in {server.process.pid, *server.workers()}:
        assert "libtensorflow" not in Path(f"/proc/{pid}/maps").read_text()


def test_a_reload_in_the_middle_of_a_load_costs_no_request(server):
    """SIGHUP: new workers are there before the old ones go, and each finishes what it began."""
    before = server.workers()
    stop = threading.Event()
    results = []

    def load(k: int) -> None:
        i = k
        with httpx.Client() as client:  # it keeps its connection, and the old worker has to close that in time
            while not stop.is_set() and i < 20_000:
                results.append(classify(server, i, client))
                i += 1

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(load, k) for k in range(4)]
        ready = server.log.read_text().count("is ready on")
        server.process.send_signal(signal.SIGHUP)
        wait_for_workers(server, ready + WORKERS)
        deadline = time.monotonic() + 60
        while server.workers() & before and time.monotonic() < deadline:
            time.sleep(0.1)
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


def test_a_worker_killed_takes_its_own_sessions_and_no_other(server):
    """SIGKILL: another worker takes its slot, and soon every session, of each slot, is answered again."""
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
        joined = httpx.post(
            f"{server.address}/gradio_api/queue/join",
            json={"data": [None, None, None], "fn_index": _predict_index(server), "session_hash": session},
            timeout=30,
        )
        assert joined.status_code == 200, joined.text
        stream = httpx.get(f"{server.address}/gradio_api/queue/data", params={"session_hash": session}, timeout=30).text
        assert "No image came" in stream
    assert seen == set(range(WORKERS))


def _predict_index(server: Server) -> int:
    dependencies = httpx.get(f"{server.address}/config").json()["dependencies"]
    return next(d["id"] for d in dependencies if d["api_name"] == "predict")


def test_a_stream_whose_worker_dies_ends_with_a_reason_and_no_other_ends(server):
    """Who listens through another worker reads why; sessions of other workers go on."""
    victim_slot, sessions = 1, [str(uuid.uuid4()) for _ in range(60)]
    theirs = [session for session in sessions if owner(session) == victim_slot][:8]
    others = [session for session in sessions if owner(session) == 3][:4]
    pid = worker_in(server, victim_slot)
    with ThreadPoolExecutor(12) as pool:
        os.kill(pid, signal.SIGSTOP)  # so that the other workers accept the streams, and pass its own on to it
        streams = {session: pool.submit(listen, server, session) for session in (*theirs, *others)}
        time.sleep(1)
        os.kill(pid, signal.SIGCONT)
        time.sleep(2)
        assert not any(stream.done() for stream in streams.values())
        ready = server.log.read_text().count("is ready on")
        os.kill(pid, signal.SIGKILL)
        heard = [streams[session].result(timeout=10) for session in theirs]
        assert ["The worker that held this session has gone" in text for text in heard] == [True] * len(theirs), heard
        assert all(streams[session].result(timeout=20).endswith("silent") for session in others)
    wait_for_workers(server, ready + 1)


def listen(server: Server, session: str) -> str:
    """What a page's heartbeat stream says until it ends, or for six seconds."""
    text = ""
    try:
        with httpx.stream("GET", f"{server.address}/gradio_api/heartbeat/{session}", timeout=40) as stream:
            began = time.monotonic()
            for piece in stream.iter_text():
                text += piece
                if time.monotonic() - began > 6:
                    return text + " silent"
    except httpx.TransportError:
        return text + " cut off"
    return text


def worker_in(server: Server, slot: int) -> int:
    """The process id of the worker in a slot."""
    link = next(server.log.parent.glob(f"cifar-workers-*/{slot}.sock")).resolve()
    return int(re.search(r"-(\d+)\.sock", link.name)[1])


def test_under_load_the_death_of_a_worker_costs_only_what_it_was_answering(server):
    """SIGKILL while eight callers ask without a break: each fails once at most, and soon all are answered."""
    stop = threading.Event()
    answered, broken = [], []

    def load(k: int) -> None:
        i = k
        while not stop.is_set() and i < 4000:
            try:
                answered.append(classify(server, i))
            except httpx.TransportError as error:
                broken.append(type(error).__name__)
            i += 1

    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(load, k) for k in range(8)]
        time.sleep(1)
        ready = server.log.read_text().count("is ready on")
        os.kill(worker_in(server, 0), signal.SIGKILL)
        wait_for_workers(server, ready + 1)
        time.sleep(1)
        stop.set()
        for run in runs:
            run.result()
    print(f"{len(answered)} answered, {len(broken)} broken: {set(broken)}")
    assert len(answered) > 100
    assert all(answered), "no answer was wrong, and none was an error of the server's"
    assert len(broken) <= 8
