"""The tab Classify in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from support.browser import EXAMPLES, WAIT_MS, count_requests, drop, expect_label, upload, visit
from support.pictures import encoded, png_of_100_megapixels


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    with visit(browser, server) as page:
        yield page


def test_an_uploaded_photo_is_answered_without_a_button(page):
    """The answer has a sentence, bars, the model's input, the version and the time."""
    upload(page, EXAMPLES / "ship.jpg")
    expect_label(page, "ship")
    expect(page.locator("#answer h2")).to_have_text("Almost certainly a ship.", use_inner_text=True)
    expect(page.locator("#answer .bars li")).to_have_count(3)
    seen = page.locator("#answer .seen")
    expect(seen).to_contain_text("32 x 32 pixels")
    expect(seen).to_contain_text(re.compile(r"version \d"))
    expect(seen).to_contain_text(re.compile("ms in the model|cached"))
    expect(seen.locator("img")).to_be_visible()


def test_the_components_of_the_endpoints_are_not_visible(page):
    """Their inputs are in the page's HTML, but a person must see only one field for a photo."""
    expect(page.locator("#photo input[type=file]")).to_be_attached(timeout=WAIT_MS)
    expect(page.locator("input[type=file]:not(#photo *):not(.many *)")).to_have_count(0)


def test_the_api_documentation_needs_no_other_host(page, server):
    """`/docs` works without access to the internet, and runs no script of another site."""
    page.goto(f"{server}/docs")
    expect(page.locator(".opblock-summary-path", has_text="/predict").first).to_be_visible()


def test_a_photo_can_be_dropped_on_the_page(page):
    """The text in the field says so."""
    drop(page, "truck.jpg", "image/jpeg", (EXAMPLES / "truck.jpg").read_bytes())
    expect_label(page, "truck")


def test_the_number_of_labels_follows_the_slider(page):
    """It goes from 1 to the number of classes, and applies to the photo on the page."""
    upload(page, EXAMPLES / "cat.jpg")
    bars = page.locator("#answer .bars li")
    expect(bars).to_have_count(3)
    slider = page.locator("#top-k input[type=range]")
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("1", "10")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    slider.dispatch_event("pointerup")
    expect(bars).to_have_count(7)


def test_the_number_of_labels_can_be_typed(page):
    """The field beside the slider has the same effect."""
    upload(page, EXAMPLES / "cat.jpg")
    field = page.locator("#top-k input[type=number]")
    field.fill("10")
    field.press("Enter")
    field.blur()
    expect(page.locator("#answer .bars li")).to_have_count(10)


def test_the_number_of_views_can_be_chosen_and_the_answer_says_so(page):
    """Without a choice, the answer is that of the photo alone."""
    upload(page, EXAMPLES / "cat.jpg")
    seen, score = page.locator("#answer .seen"), page.locator("#answer .score").nth(1)
    expect(seen).to_contain_text("Confidence is calibrated", use_inner_text=True)
    expect(seen).not_to_contain_text("views")
    alone = score.inner_text()
    for views in ("6", "2"):
        page.locator("#views input").click()
        page.get_by_role("option", name=views).click()
        expect(seen).to_contain_text(f"mean of {views} views", use_inner_text=True)
        expect(score).not_to_have_text(alone)


def test_a_click_on_an_example_classifies_it(page):
    """There is an example for each class."""
    thumbnails = page.locator("#examples button")
    expect(thumbnails).to_have_count(10)
    thumbnails.nth(7).click()
    expect_label(page, "horse")


def test_an_unreadable_file_gets_the_error_message_of_the_api_in_place_of_the_answer(page, tmp_path):
    """The browser shows no broken image, and the next photo is answered."""
    (tmp_path / "bad.png").write_text("just text")
    upload(page, tmp_path / "bad.png")
    problem = page.get_by_role("alert").filter(has_text="whatever its name says")
    expect(problem).to_be_visible()
    expect(page.locator("#photo img")).to_be_hidden()
    page.locator("#examples [data-example]").first.click()
    expect(page.locator("#photo img")).to_be_visible()
    page.get_by_role("button", name="Remove Image").click()
    expect(problem).to_be_hidden()
    upload(page, EXAMPLES / "frog.jpg")
    expect_label(page, "frog")


@pytest.mark.parametrize("dropped", [False, True], ids=["chosen", "dropped"])
def test_a_file_that_is_not_an_image_by_its_type_gets_an_error_message(page, dropped):
    """Gradio's front end would ignore the file and show only a toast, which this page hides."""
    if dropped:
        drop(page, "scan.pdf", "application/pdf", b"%PDF")
    else:
        page.set_input_files(
            "#photo input[type=file]", [{"name": "scan.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"}]
        )
    problem = page.locator("#page-problem")
    expect(problem).to_contain_text("scan.pdf is not an image. Choose a JPEG", use_inner_text=True)
    upload(page, EXAMPLES / "frog.jpg")
    expect_label(page, "frog")
    expect(problem).to_be_hidden()


def test_a_decompression_bomb_gets_an_error_message(page, tmp_path):
    """The browser cannot show the image either; the message says why."""
    (tmp_path / "bomb.png").write_bytes(png_of_100_megapixels())
    upload(page, tmp_path / "bomb.png")
    expect(page.get_by_role("alert").filter(has_text="megapixels")).to_be_visible()


def test_a_photo_from_the_camera_is_answered(page):
    """The camera is Chromium's fake one."""
    page.context.grant_permissions(["camera"])
    page.locator("#photo").get_by_label("Capture from camera").or_(
        page.locator("#photo [aria-label*=ebcam]")
    ).first.click()
    page.get_by_text("Click to Access Webcam").click()
    page.locator("#photo video").wait_for()
    page.wait_for_function("document.querySelector('#photo video').readyState >= 2")
    page.locator(
        "#photo .button-wrap button, #photo [aria-label='capture photo'], #photo [aria-label='Capture photo']"
    ).first.click()
    expect(page.locator("#answer .seen")).to_contain_text(re.compile(r"version \d"))


def test_an_image_can_be_pasted_from_the_clipboard(page):
    """People copy images in one window and paste them in another."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async bytes => { const png = new Blob([new Uint8Array(bytes)], {type: "image/png"});
        await navigator.clipboard.write([new ClipboardItem({"image/png": png})]); }""",
        list(encoded(Image.open(EXAMPLES / "deer.jpg"))),
    )
    page.get_by_role("button", name="Paste from clipboard").click()
    expect_label(page, "deer")


def test_the_button_why_shows_a_heat_map_for_its_class(page):
    """The next photo removes it."""
    upload(page, EXAMPLES / "cat.jpg")
    page.locator("#answer [data-why=airplane]").click()
    heat = page.locator("#why img")
    expect(heat).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#why h2")).to_have_text("Why airplane?", use_inner_text=True)
    assert heat.evaluate("image => image.naturalWidth") == 32
    page.locator("#examples button").nth(9).click()
    expect_label(page, "truck")
    expect(heat).to_have_count(0)


def test_the_previous_answer_stays_until_the_next_one_arrives(page):
    """A slow answer must not leave the page empty."""
    upload(page, EXAMPLES / "cat.jpg")
    expect_label(page, "cat")
    calls, held = [], []

    def hold_the_second(route):  # the first call fetches the example, the second classifies it
        calls.append(route)
        held.append(route) if len(calls) == 2 else route.continue_()

    page.route("**/gradio_api/run/**", hold_the_second)
    page.locator("#examples button").nth(7).click()
    for _ in range(100):
        page.wait_for_timeout(100)
        if held:
            break
    page.wait_for_timeout(300)
    expect_label(page, "cat")
    held[0].continue_()
    expect_label(page, "horse")


def test_a_photo_over_the_size_limit_gets_an_error_message_and_is_not_sent(page, tmp_path):
    """The limit is the server's. The next answer removes the message."""
    file = tmp_path / "large.jpg"
    file.write_bytes((EXAMPLES / "cat.jpg").read_bytes() + bytes(21 * 1024**2))
    upload(page, file)
    problem = page.locator("#page-problem")
    expect(problem).to_have_text("The file exceeds 20 MB. Send a smaller image.", use_inner_text=True)
    upload(page, EXAMPLES / "cat.jpg")
    expect_label(page, "cat")
    expect(problem).to_be_hidden()


def test_a_server_that_does_not_answer_is_reported_on_the_page(page):
    """A toast would disappear before it is read."""
    page.route("**/gradio_api/run/**", lambda route: route.abort())
    upload(page, EXAMPLES / "cat.jpg")
    expect(page.locator("#page-problem")).to_contain_text("The server does not answer.", timeout=WAIT_MS)


def test_the_live_camera_sends_one_frame_at_a_time(page):
    """Frames that arrive before the answer are dropped, and after a stop none is sent."""
    page.context.grant_permissions(["camera"])
    frames = count_requests(page, "**/gradio_api/run/**")
    page.locator("[data-live=start]").click()
    expect(page.locator("#live .live-answer .bars li")).to_have_count(3, timeout=WAIT_MS)
    expect(page.locator("#live .rate")).to_contain_text("frames per second", timeout=WAIT_MS)
    page.wait_for_timeout(1500)
    page.locator("[data-live=stop]").click()
    expect(page.locator("#live video")).to_be_hidden()
    page.wait_for_timeout(500)
    after_stop = frames["sent"]
    page.wait_for_timeout(800)
    assert (frames["at_once"], frames["sent"]) == (1, after_stop)
    assert frames["sent"] >= 2


def test_a_camera_without_permission_gets_an_error_message(page):
    """The message says what to do."""
    page.evaluate("""() => {
        navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", "NotAllowedError"); };
    }""")
    page.locator("[data-live=start]").click()
    expect(page.locator("#live [role=alert]")).to_contain_text("NotAllowedError. Allow camera access in the browser")
