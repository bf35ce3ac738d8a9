"""Accessibility of the page: both languages, keyboard, screen readers, all widths, light and dark theme."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from support.browser import EXAMPLES, FILES, TABS, WAIT_MS, choose_many, expect_label, open_tab, upload, visit

NAMES = r"https?://\S+|[\w.-]+\.(jpg|md|zip|heic)|/docs|cifar_classifier|CIFAR Space|English|EXIF|uint8|ECE|UTC|MB|zip|CSV|JSON|gradio_client|@gradio/client|requests|JavaScript|Python|curl|MCP|JPEG|PNG|WebP|GIF|BMP|TIFF|HEIF|AVIF|https|record=false|s"
"""Names that stay English in a Chinese text."""


def fill_every_tab(page: Page) -> list[str]:
    """Fill each tab with content, and yield the tab's name while it is open."""
    upload(page, EXAMPLES / "cat.jpg")
    expect_label(page, "cat")
    page.locator("#answer [data-why=cat]").click()
    expect(page.locator("#why img")).to_be_visible(timeout=WAIT_MS)
    yield "classify"
    open_tab(page, "batch")
    choose_many(page, "batch", [*FILES, EXAMPLES / "README.md"])
    expect(page.locator("#batch tbody tr")).to_have_count(11, timeout=WAIT_MS)
    expect(page.locator("#batch .summary")).not_to_be_empty(timeout=WAIT_MS)
    yield "batch"
    open_tab(page, "compare")
    choose_many(page, "compare", FILES[:3])
    expect(page.locator("#compare .summary")).not_to_be_empty(timeout=WAIT_MS)
    yield "compare"
    open_tab(page, "model")
    expect(page.locator("#model svg")).to_have_count(3, timeout=WAIT_MS)
    yield "model"
    open_tab(page, "ab")
    expect(page.locator("#ab svg")).to_be_visible(timeout=WAIT_MS)
    yield "ab"
    open_tab(page, "code")
    expect(page.locator("#code pre").first).to_be_visible(timeout=WAIT_MS)
    yield "code"


def serious(page: Page) -> list[str]:
    """Return the problems that axe-core rates serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {[n['html'][:120] for n in v['nodes']]}" for v in found if v["impact"] in {"serious", "critical"}
    ]


def choose_version_2(page: Page) -> None:
    """Choose version 2 on the tab Model: only its manifest has measurements to plot."""
    open_tab(page, "model")
    page.locator("#model-version input").click()
    page.get_by_role("option", name="2").click()
    expect(page.locator("#model svg")).to_have_count(3, timeout=WAIT_MS)
    open_tab(page, "classify")


def width_of_content(page: Page, width: int) -> int:
    """Return the width that the page scrolls over, once it fits; while a picture or a table is laid out, it may be wider."""
    for _ in range(50):
        if page.evaluate("document.documentElement.scrollWidth") <= width:
            break
        page.wait_for_timeout(100)
    return page.evaluate("document.documentElement.scrollWidth")


def english_texts(page: Page) -> list[str]:
    """Return the visible texts with English words that are no names."""
    texts = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(e => e.checkVisibility({checkOpacity: true})
          && !e.closest("pre, code, script, style, option, dd, .rows tbody th") && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
          .map(e => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join(" ").trim())"""
    )
    return [text for text in texts if re.search(r"[A-Za-z]{2,}", re.sub(NAMES, "", text))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme", "locale"), [(390, "light", "en-US"), (390, "dark", "zh-CN"), (1600, "dark", "en-US")]
)
def test_every_tab_fits_any_width_can_be_read_and_speaks_one_language(
    browser, two_version_server, width, scheme, locale
):
    """Only wide tables scroll sideways, within themselves. axe-core finds no serious problem of contrast, names and roles.

    The Chinese page has no English sentence, not in errors and not in the texts of Gradio's components.
    """
    with visit(browser, two_version_server, width=width, scheme=scheme, locale=locale) as page:
        choose_version_2(page)
        problems, english, tabs = {}, {}, []
        for tab in fill_every_tab(page):
            tabs.append(tab)
            assert width_of_content(page, width) <= width, tab
            brightness = page.evaluate(
                """() => { const of = c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3;
                return [of(getComputedStyle(document.querySelector('h1')).color), of(getComputedStyle(document.body).backgroundColor)]; }"""
            )
            assert abs(brightness[0] - brightness[1]) > 120
            assert (brightness[1] < 128) == (scheme == "dark")
            problems[tab] = serious(page)
            if locale == "zh-CN":
                english[tab] = english_texts(page)
                if tab == "batch":
                    assert page.locator("#batch .failed").inner_text().startswith("文件内容不是受支持的图像。")
        assert tabs == list(TABS)
        assert {tab: found for tab, found in problems.items() if found} == {}
        assert {tab: found for tab, found in english.items() if found} == {}


def test_the_page_speaks_the_browsers_language_and_can_be_switched_without_losing_the_answer(browser, server):
    """The answer stays on the page, and the choice applies to the next visit."""
    with visit(browser, server, locale="zh-HK") as page:
        upload(page, EXAMPLES / "cat.jpg")
        expect_label(page, "cat")
        expect(page.get_by_role("tab", name="识别").first).to_be_visible(timeout=WAIT_MS)
        expect(page.locator("#answer h2")).to_have_text(re.compile("猫"), use_inner_text=True)
        page.get_by_role("button", name="English").click()
        expect(page.get_by_role("tab", name="Classify").first).to_be_visible(timeout=WAIT_MS)
        expect(page.locator("#answer h2")).to_have_text(re.compile("cat"), use_inner_text=True)
        expect(page.get_by_role("button", name="English")).to_have_attribute("aria-pressed", "true")
        assert page.evaluate("document.documentElement.lang") == "en"
        page.reload()
        expect(page.get_by_role("tab", name="Classify").first).to_be_visible(timeout=WAIT_MS)


@pytest.mark.parametrize(("locale", "language"), [("de-DE", "en"), ("en-GB", "en"), ("zh-TW", "zh-CN")])
def test_a_browser_with_another_language_gets_the_closest_one(browser, server, locale, language):
    """English if we do not have the language, and simplified Chinese for every kind of Chinese."""
    with visit(browser, server, locale=locale) as page:
        expect(page.locator("html")).to_have_attribute("lang", language)
        name = TABS["model"][language == "zh-CN"]
        expect(page.get_by_role("tab", name=name).first).to_be_visible(timeout=WAIT_MS)


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.outerHTML.slice(0, 200)")


def tab_to(page: Page, mark: str, limit: int = 60) -> None:
    """Press Tab until the HTML of the focused element contains `mark`."""
    for _ in range(limit):
        page.keyboard.press("Tab")
        if mark in focused(page):
            return
    pytest.fail(f"{mark} cannot be reached by Tab")


def test_a_photo_can_be_classified_and_explained_by_keyboard(browser, server):
    """People who use no mouse can choose an example, its heat map and the language."""
    with visit(browser, server) as page:
        tab_to(page, 'data-example="ship"')
        page.keyboard.press("Enter")
        expect_label(page, "ship")
        page.keyboard.press("Home")
        page.evaluate("document.activeElement.blur()")
        tab_to(page, 'data-why="ship"')
        page.keyboard.press("Enter")
        expect(page.locator("#why img")).to_be_visible(timeout=WAIT_MS)
        page.evaluate("document.body.focus()")
        tab_to(page, 'data-language="zh-CN"')
        page.keyboard.press("Space")
        expect(page.get_by_role("tab", name="批量").first).to_be_visible(timeout=WAIT_MS)


def test_the_tabs_and_the_batch_can_be_used_by_keyboard(browser, server):
    """The Tab key reaches the tabs, Enter opens one, and Tab continues to its file field."""
    with visit(browser, server) as page:
        tab_to(page, 'role="tab"')
        for _ in range(10):
            if "Batch" in focused(page):
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#batch .drop")).to_be_visible(timeout=WAIT_MS)
        tab_to(page, ".heif")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
            page.wait_for_timeout(1000)
            page.keyboard.press("Enter")  # Chromium ignores the first key press after a tab was opened by keyboard
        chooser.value.set_files(FILES[:2])
        expect(page.locator("#batch .summary")).to_contain_text("2 of 2 done", use_inner_text=True, timeout=WAIT_MS)


def test_the_answer_is_announced_to_screen_readers(browser, server):
    """It appears without a click, so that nothing else would draw attention to it."""
    with visit(browser, server) as page:
        upload(page, EXAMPLES / "cat.jpg")
        expect_label(page, "cat")
        assert page.locator("#answer h2").evaluate("node => Boolean(node.closest('[aria-live], [role=status]'))")
