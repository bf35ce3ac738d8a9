"""The page in a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page
from support.browser import visit


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Open the page of the server whose fixture the test module names in `SERVER`."""
    with visit(browser, request.getfixturevalue(request.module.SERVER)) as page:
        yield page
