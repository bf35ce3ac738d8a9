"""The page in a real browser: what a person does, sees and reads."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from conftest import need
from pictures import encoded, png_of_100_megapixels
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cifar.settings import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = need("chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--use-fake-ui-for-media-stream"]
        yield playwright.chromium.launch(executable_path=path, args=[*options, "--use-fake-device-for-media-stream"])


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    """The page, opened and ready; afterwards: no script error, nothing that the policy forbids, no request to another host."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if "Content Security Policy" in line.text else None)
    page.goto(server)
    expect(page.locator("#photo input[type=file]")).to_be_attached(timeout=30_000)
    yield page
    page.close()
    elsewhere = [url for url in requests if not url.startswith((server, "data:", "blob:"))]
    assert elsewhere == []
    assert errors == []


def upload(page: Page, file) -> None:
    page.set_input_files("#photo input[type=file]", file)


def test_an_uploaded_photo_is_answered_at_once(page):
    """Label, bars, what the model saw, version and time, without pressing a button."""
    upload(page, EXAMPLES / "ship.jpg")
    expect(page.locator("#answer h2")).to_have_text("ship")
    expect(page.locator("#answer [class*=confidence-set]")).to_have_count(3)
    expect(page.locator("#details")).to_contain_text("32 x 32 pixels")
    expect(page.locator("#details")).to_contain_text("version 1")
    expect(page.locator("#details")).to_contain_text(re.compile("ms in the model|answered before"))
    expect(page.locator("#details img")).to_be_visible()


def test_a_photo_can_be_dropped_on_the_page(page):
    """Drag and drop, as the page invites to."""
    content = list((EXAMPLES / "truck.jpg").read_bytes())
    transfer = page.evaluate_handle(
        """bytes => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "truck.jpg", {type: "image/jpeg"})); return data; }""",
        content,
    )
    target = page.locator("#photo button").first
    for event in ("dragenter", "dragover", "drop"):
        target.dispatch_event(event, {"dataTransfer": transfer})
    expect(page.locator("#answer h2")).to_have_text("truck")


def test_the_number_of_labels_follows_the_slider(page):
    """From 1 to the number of classes, for the photo that is there."""
    upload(page, EXAMPLES / "cat.jpg")
    bars = page.locator("#answer [class*=confidence-set]")
    expect(bars).to_have_count(3)
    slider = page.locator("#top-k input[type=range]")
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("1", "10")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    slider.dispatch_event("pointerup")
    expect(bars).to_have_count(7)


def test_the_number_of_labels_can_be_typed(page):
    """The field beside the slider does the same."""
    upload(page, EXAMPLES / "cat.jpg")
    field = page.locator("#top-k input[type=number]")
    field.fill("10")
    field.press("Enter")
    field.blur()
    expect(page.locator("#answer [class*=confidence-set]")).to_have_count(10)


def test_an_example_is_answered_by_a_click(page):
    """There is one for each class."""
    thumbnails = page.locator(".gallery button, button.gallery-item")
    expect(thumbnails).to_have_count(10)
    thumbnails.nth(7).click()
    expect(page.locator("#answer h2")).to_have_text("horse")


def test_a_bad_file_gets_the_sentence_of_the_api_in_place_and_the_page_stays_usable(page, tmp_path):
    """The sentence stands where the answer would; the next photo is answered."""
    (tmp_path / "bad.png").write_text("just text")
    upload(page, tmp_path / "bad.png")
    problem = page.get_by_role("alert").filter(has_text="whatever its name says")
    expect(problem).to_be_visible()
    page.get_by_role("button", name="Remove Image").click()
    expect(problem).to_be_hidden()
    upload(page, EXAMPLES / "frog.jpg")
    expect(page.locator("#answer h2")).to_have_text("frog")


def test_a_bomb_gets_its_sentence(page, tmp_path):
    """The browser cannot show it either; the sentence says why."""
    (tmp_path / "bomb.png").write_bytes(png_of_100_megapixels())
    upload(page, tmp_path / "bomb.png")
    expect(page.get_by_role("alert").filter(has_text="megapixels")).to_be_visible()


def test_a_still_from_the_camera_is_answered(page):
    """Chromium's fake camera stands for a real one."""
    page.context.grant_permissions(["camera"])
    page.locator("#photo").get_by_label("Capture from camera").or_(
        page.locator("#photo [aria-label*=ebcam]")
    ).first.click()
    access = page.get_by_text("Click to Access Webcam")
    access.click()
    page.locator("#photo video").wait_for()
    page.wait_for_function("document.querySelector('#photo video').readyState >= 2")
    page.locator(
        "#photo .button-wrap button, #photo [aria-label='capture photo'], #photo [aria-label='Capture photo']"
    ).first.click()
    expect(page.locator("#details")).to_contain_text("version 1")


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 390), ("light", 1600), ("dark", 1200)])
def test_the_page_fits_its_window_in_light_and_dark(browser, server, scheme, width):
    """No sideways scrolling; text stands out from its background."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(server)
    expect(page.locator("#photo input[type=file]")).to_be_attached(timeout=30_000)
    upload(page, EXAMPLES / "dog.jpg")
    expect(page.locator("#answer h2")).to_have_text("dog")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    brightness = page.evaluate(
        """() => { const of = c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3;
        return [of(getComputedStyle(document.querySelector('#answer h2')).color),
                of(getComputedStyle(document.body).backgroundColor)]; }"""
    )
    assert abs(brightness[0] - brightness[1]) > 120
    assert (brightness[1] < 128) == (scheme == "dark")
    page.close()


def test_a_picture_in_the_clipboard_can_be_pasted(page):
    """Copy in one window, paste in this one."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async bytes => { const png = new Blob([new Uint8Array(bytes)], {type: "image/png"});
        await navigator.clipboard.write([new ClipboardItem({"image/png": png})]); }""",
        list(encoded(Image.open(EXAMPLES / "deer.jpg"))),
    )
    page.get_by_role("button", name="Paste from clipboard").click()
    expect(page.locator("#answer h2")).to_have_text("deer")
