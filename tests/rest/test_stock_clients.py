"""The HTTP clients that Node.js and Java bring along, against a running server."""

from __future__ import annotations

import subprocess

import pytest
from support.servers import EXAMPLES, need

from cifar.settings import ROOT

CAT, TOO_LARGE = "200 cat", "413 body_too_large"


def answers(program: str, script: str, address: str) -> list[str]:
    command = [program, ROOT / "tests/programs" / script, address, EXAMPLES / "cat.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_fetch_of_node_classifies_and_reads_a_refusal_while_it_still_sends(server):
    """A server that closed the connection after its 413 would be an ECONNRESET there."""
    assert answers(need("node"), "classify.mjs", server) == [CAT, CAT, CAT, TOO_LARGE]


@pytest.mark.slow
def test_javas_client_which_offers_http_2_classifies_and_reads_a_refusal(server):
    """Its stock client sends each first request with `Upgrade: h2c`. `test_http.py` sends the same bytes."""
    need("javac")  # `java` compiles the file
    assert answers(need("java"), "Classify.java", server) == [*[CAT] * 4, *[TOO_LARGE] * 2]
