"""Lines that libraries print become events of the log, in text and in JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from urllib.parse import quote

import httpx2
import pytest
from support.servers import CAT, classify, running

from cifar.settings import ROOT

FORGED = "\n2026-11-26 00:00:00,000 INFO cifar.access: POST /admin/models/promote 200 in 0.0001 s [forged]\n"
FORGED_JSON = '\n{"time": "2026-11-26", "level": "INFO", "logger": "cifar.access", "message": "forged"}\n'
TERMINAL = "\x1b]0;title\x07\x1b[2J\x9b31m\r\u2028\u202e"
PRINTS = """
import logging.config, os, sys, traceback, warnings
from cifar.serving.process.logs import log_config
from cifar.serving.process.printed import capture_prints
from cifar.settings import Settings
logging.config.dictConfig(log_config(Settings(log_format=sys.argv[1])))
capture_prints()
capture_prints()
print(sys.argv[2])
print(sys.argv[2], file=sys.stderr)
os.write(1, sys.argv[2].encode("utf-8", "surrogateescape") + b"\\xff\\n")
os.write(2, b"x" * 300_000 + b"\\n")
warnings.warn(sys.argv[2])
try:
    raise ValueError(sys.argv[2] * 1000)
except ValueError:
    traceback.print_exc()
    logging.getLogger("cifar").exception("ours: %s", sys.argv[2])
child = os.fork()
if not child:
    os.write(2, b"last words of a worker")
    os._exit(1)
os.waitpid(child, 0)
print("unfinished", end="")
sys.exit("the reason of the exit")
"""


def is_ours(line: str, format: str) -> bool:
    """Return whether a line begins an event, or is an indented one of an event, and has only visible characters."""
    if format == "json":
        event = json.loads(line)
        return line.isascii() and {"time", "level", "logger", "message"} <= event.keys()
    begins = re.match(r"( {4}|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [\w.]+: )", line)
    return bool(begins) and line.replace("\t", "").isprintable()


@pytest.mark.parametrize("format", ["text", "json"])
def test_all_that_a_process_prints_is_logged_line_by_line(format):
    """Also what is written to the descriptors by libraries in C, by a forked process before it dies, and by the exit itself."""
    command = [sys.executable, "-c", PRINTS, format, FORGED + FORGED_JSON + TERMINAL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=60)
    lines = done.stderr.decode().removesuffix("\n").split("\n")
    assert (done.returncode, done.stdout) == (1, b"")
    assert [line for line in lines if not is_ours(line, format)] == []
    text = "\n".join(lines)
    for words in (
        "a library caught ValueError in <string>, line",
        "last words of a worker",
        "unfinished",
        "the reason of",
    ):
        assert text.count(words) == 1, words
    assert max(map(len, lines)) < 20_000
    assert text.count("x" * 1000) == 1


def hostile(address: str) -> None:
    """Send texts that libraries print or log."""
    with httpx2.Client(base_url=address, timeout=30) as client:
        for words in (FORGED, FORGED_JSON, TERMINAL, FORGED * 40):
            for data in (
                [0, words],
                [words],
                [{"path": words}],
                [{"path": words, "meta": {"_type": "gradio.FileData"}}],
            ):
                for path in ("run/predict", "call/predict", "run/models", "queue/join"):
                    body = {"data": data, "fn_index": 1, "session_hash": "abcdef12", "event_data": words}
                    with suppress(httpx2.TransportError):
                        client.post(f"/gradio_api/{path}", json=body)
            client.post("/feedback", json={"request_id": words, "label": words, "note": words})
            client.post("/predict", files={"image": (words, CAT[:500])}, data={"top_k": words})
            client.post("/gradio_api/upload", files={"files": (words, words.encode())})
            client.get(f"/gradio_api/file={quote(words)}", params={"a": words})


@pytest.mark.slow
@pytest.mark.parametrize(("format", "workers"), [("text", 1), ("json", 2)])
def test_every_line_of_a_hostile_run_is_one_of_ours(tmp_path, format, workers):
    """Gradio prints the caller's text with each call that does not fit an endpoint."""
    with running(tmp_path, workers=workers, CIFAR_LOG_FORMAT=format) as server:
        hostile(server.address)
        assert classify(server, 3)
        lines = server.log.read_text().removesuffix("\n").split("\n")
    caught = [line for line in lines if "a library caught" in line]
    assert caught, "the requests reached Gradio"
    assert [line for line in server.log.read_text().removesuffix("\n").split("\n") if not is_ours(line, format)] == []
    assert max(map(len, caught)) < 2500
