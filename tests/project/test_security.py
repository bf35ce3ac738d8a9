"""SECURITY.md: each point names the tests that hold it."""

from __future__ import annotations

import re

from cifar.settings import ROOT

HELD = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## What is not defended")[0]
POINTS = re.findall(r"^- .*?(?=\n- |\n\n|\Z)", HELD, re.MULTILINE | re.DOTALL)
TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def test_each_point_of_the_security_policy_names_a_test():
    """A sentence without one can become false without anybody noticing."""
    assert len(POINTS) > 30
    assert [point[:60] for point in POINTS if not TEST.search(point)] == []


def test_the_tests_that_the_security_policy_names_exist():
    """A test that was renamed or deleted holds nothing."""
    for file, name in TEST.findall(HELD):
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name
