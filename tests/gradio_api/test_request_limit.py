"""A worker that has answered as many requests as it may, while a browser has the page open."""

from __future__ import annotations

import time

import httpx2
import pytest
from support.servers import classify, running

GRACE_SECONDS = 10


@pytest.mark.slow
def test_a_worker_at_its_request_limit_ends_while_a_stream_is_open(tmp_path):
    """An open page holds a stream that never ends by itself. The worker used to wait for it for ever, and nobody replaced it."""
    limits = f"--max-requests 40 --max-requests-jitter 0 --graceful-timeout {GRACE_SECONDS}"
    with running(tmp_path, workers=2, GUNICORN_CMD_ARGS=limits) as server:
        before, answers = server.workers(), []
        with httpx2.Client(base_url=server.address, timeout=60) as browser:
            streams = [browser.build_request("GET", f"/gradio_api/heartbeat/h{i}") for i in range(8)]
            held = [browser.send(request, stream=True) for request in streams]
            assert [stream.status_code for stream in held] == [200] * 8
            while "Maximum request limit" not in server.log.read_text():
                answers.append(classify(server, len(answers)))
            reached = time.monotonic()
            while before <= server.workers() and time.monotonic() < reached + GRACE_SECONDS + 2:
                time.sleep(0.1)
            assert not before <= server.workers(), "the worker has ended"
            for stream in held:
                stream.close()
        assert answers.count(False) == 0
        assert server.errors() == []
