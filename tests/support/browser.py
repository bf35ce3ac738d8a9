"""Visits of the page in a browser, with checks for script errors and for requests to other hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from playwright.sync_api import Browser, Page, TimeoutError, expect  # noqa: A004 - the browser's

from cifar.settings import ROOT

EXAMPLES = ROOT / "examples"
FILES = sorted(EXAMPLES.glob("*.jpg"))
"""A photo of each class."""
TABS = {
    "classify": ("Classify", "识别"),
    "batch": ("Batch", "批量"),
    "compare": ("Compare", "对比"),
    "model": ("Model", "模型"),
    "ab": ("A/B", "A/B 测试"),
    "code": ("Code", "代码"),
}
"""The names of each tab, English and Chinese."""
WAIT_MS = 60_000
"""Timeout for loading and for answers; the machine may be busy."""


@contextmanager
def visit(
    browser: Browser, server: str, *, locale: str = "en-US", width: int = 1200, scheme: str = "light"
) -> Iterator[Page]:
    """Open the page; at the end check that there was no script error, no policy violation and no request to another host."""
    page = browser.new_page(viewport={"width": width, "height": 900}, locale=locale, color_scheme=scheme)
    page.set_default_timeout(WAIT_MS)
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if "Content Security Policy" in line.text else None)
    page.goto(server)
    expect(page.locator("#photo input[type=file]")).to_be_attached(timeout=WAIT_MS)
    yield page
    page.close()
    elsewhere = [url for url in requests if not url.startswith((server, "data:", "blob:"))]
    assert elsewhere == []
    assert errors == []


def upload(page: Page, file: Path) -> None:
    """Choose a photo on the tab Classify."""
    page.set_input_files("#photo input[type=file]", file)


def open_tab(page: Page, name: str) -> None:
    """Open a tab of `TABS`; on a narrow screen it may be in the overflow menu."""
    either = TABS[name]
    # that of operators appears once the page knows who opened it
    expect(
        page.locator("#tabs .tab-wrapper button")
        .filter(has_text=either[0])
        .or_(page.locator("#tabs .tab-wrapper button").filter(has_text=either[1]))
        .first
    ).to_be_attached(timeout=WAIT_MS)
    for text in either:
        tab = page.locator("#tabs > .tab-wrapper [role=tablist] [role=tab]:visible", has_text=text)
        with suppress(TimeoutError):  # on a narrow screen it may move into the menu meanwhile
            if tab.count():
                tab.first.click(timeout=5000)
                break
    else:
        page.locator("#tabs .overflow-menu > button").click()
        page.locator("#tabs .overflow-dropdown button").filter(has_text=either[0]).or_(
            page.locator("#tabs .overflow-dropdown button").filter(has_text=either[1])
        ).first.click()
    inside = {"classify": "#photo", "batch": "#batch .drop", "compare": "#compare .drop"}.get(name, f"#{name}")
    expect(page.locator(inside)).to_be_visible(timeout=WAIT_MS)


def open_options(page: Page) -> None:
    """Unfold the options of the tab Classify, and wait until they keep what is typed.

    Gradio gives the fields their values once more some milliseconds after they appear, sooner than a person can type.
    """
    page.get_by_role("button", name="Options").click()
    expect(page.locator("#top-k input[type=number]")).to_be_visible()
    page.evaluate("new Promise(done => requestIdleCallback(() => setTimeout(() => requestIdleCallback(done), 100)))")


def choose_many(page: Page, tab: str, files: list) -> None:
    """Choose files on the tab Batch or Compare."""
    page.set_input_files(f"#{tab} input[type=file]", files)


def saved(page: Page, tab: str, kind: str) -> str:
    """Download a table as `csv` or `json`, and return the text."""
    with page.expect_download() as download:
        page.locator(f"#{tab} [data-do={kind}]").click()
    assert download.value.suggested_filename == f"cifar-{tab}.{kind}"
    return download.value.path().read_text(encoding="utf-8")


def finished(page: Page, tab: str, summary: str) -> None:
    """Wait until the summary of a batch contains `summary`."""
    expect(page.locator(f"#{tab} .summary")).to_contain_text(summary, use_inner_text=True, timeout=WAIT_MS)


def classify_many(page: Page, tab: str, files: list, summary: str) -> None:
    """Open a tab, choose files there, and wait until the summary contains `summary`."""
    open_tab(page, tab)
    choose_many(page, tab, files)
    finished(page, tab, summary)


def names(page: Page) -> list[str]:
    """Return the names of the files in the table of the tab Batch."""
    return page.locator("#batch tbody th").all_inner_texts()


def zip_file(content: bytes) -> list[dict]:
    """Return what a browser's file field takes for a zip of this content."""
    return [{"name": "photos.zip", "mimeType": "application/zip", "buffer": content}]


def drop(page: Page, name: str, media_type: str, content: bytes) -> None:
    """Drop a file on the field for a photo."""
    transfer = page.evaluate_handle(
        """([name, type, bytes]) => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, {type})); return data; }""",
        [name, media_type, list(content)],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.locator("#photo button").first.dispatch_event(event, {"dataTransfer": transfer})


def count_requests(page: Page, pattern: str) -> dict[str, int]:
    """Count the page's requests from now on: `sent`, `running`, and the largest number `at_once`."""
    counts = {"sent": 0, "running": 0, "at_once": 0}

    def answer(route):
        counts["sent"] += 1
        counts["running"] += 1
        counts["at_once"] = max(counts["at_once"], counts["running"])
        response = route.fetch()
        counts["running"] -= 1
        route.fulfill(response=response)

    page.route(pattern, answer)
    return counts


def label(page: Page):
    """Return the element whose attribute `data-label` is the predicted class, in any language."""
    return page.locator("#answer .answer")


def expect_label(page: Page, name: str) -> None:
    """Wait until the answer is `name`."""
    expect(label(page)).to_have_attribute("data-label", name, timeout=WAIT_MS)
