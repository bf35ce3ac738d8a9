"""The tab Classify in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect
from support.browser import EXAMPLES, WAIT_MS, count_requests, drop, expect_label, open_options, open_tab, upload, visit
from support.pictures import png_of_100_megapixels
from support.servers import running

from cifar.serving.auth.api_keys import create

SERVER = "server"


def test_an_uploaded_photo_is_answered_without_a_button(page):
    """The answer has a sentence, bars, the model's input and the version."""
    upload(page, EXAMPLES / "ship.jpg")
    expect_label(page, "ship")
    expect(page.locator("#answer h2")).to_have_text("Almost certainly a ship.", use_inner_text=True)
    expect(page.locator("#answer .bars li")).to_have_count(3)
    seen = page.locator("#answer .seen")
    expect(seen).to_contain_text("32 x 32 pixels")
    expect(seen).to_contain_text(re.compile(r"version \d"))
    expect(seen.locator("img")).to_be_visible()


def test_the_components_of_the_endpoints_are_not_visible(page):
    """Their inputs are in the page's HTML, but a person must see only one field for a photo."""
    expect(page.locator("#photo input[type=file]")).to_be_attached(timeout=WAIT_MS)
    expect(page.locator("input[type=file]:not(#photo *):not(.many *)")).to_have_count(0)


def test_the_api_documentation_needs_no_other_host(page, server):
    """`/docs` works without access to the internet, and runs no script of another site."""
    page.goto(f"{server}/docs")
    expect(page.locator(".opblock-summary-path", has_text="/predict").first).to_be_visible(timeout=WAIT_MS)


def test_a_photo_can_be_dropped_on_the_page(page):
    """The text in the field says so."""
    drop(page, "truck.jpg", "image/jpeg", (EXAMPLES / "truck.jpg").read_bytes())
    expect_label(page, "truck")


def test_the_number_of_labels_follows_the_slider(page):
    """It goes from 1 to the number of classes, and applies to the photo on the page. Keys have the effect of the mouse."""
    upload(page, EXAMPLES / "cat.jpg")
    bars = page.locator("#answer .bars li")
    expect(bars).to_have_count(3)
    open_options(page)
    slider = page.locator("#top-k input[type=range]")
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("1", "10")
    slider.focus()
    for key, count in (("ArrowRight", 4), ("ArrowRight", 5), ("ArrowLeft", 4), ("End", 10), ("Home", 1), ("PageUp", 2)):
        slider.press(key)
        expect(bars).to_have_count(count)


def test_the_number_of_labels_can_be_typed(page):
    """The field beside the slider has the same effect."""
    upload(page, EXAMPLES / "cat.jpg")
    expect_label(page, "cat")
    open_options(page)
    field = page.locator("#top-k input[type=number]")
    field.fill("10")
    field.press("Enter")
    field.blur()
    expect(page.locator("#answer .bars li")).to_have_count(10, timeout=WAIT_MS)


def test_the_number_of_views_can_be_chosen_and_the_answer_says_so(page):
    """Without a choice, the answer is that of the photo alone."""
    upload(page, EXAMPLES / "cat.jpg")
    seen, score = page.locator("#answer .seen"), page.locator("#answer .score").nth(1)
    expect(seen).to_contain_text("Confidence is calibrated", use_inner_text=True)
    expect(seen).not_to_contain_text("views")
    alone = score.inner_text()
    open_options(page)
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


def test_the_button_why_shows_a_heat_map_for_its_class(page):
    """The next photo removes it."""
    upload(page, EXAMPLES / "cat.jpg")
    second = page.locator("#answer [data-why]").nth(1)  # it appears under the pointer, or with the focus
    name = second.get_attribute("data-why", timeout=WAIT_MS)
    second.click()
    heat = page.locator("#why img")
    expect(heat).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#why h2")).to_have_text(f"Why {name}?", use_inner_text=True)
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
    """Frames that arrive before the answer are dropped, and after a stop none is sent. The answer fills the answer's place."""
    page.context.grant_permissions(["camera"])
    frames = count_requests(page, "**/gradio_api/run/**")
    page.locator("[data-live=start]").click()
    expect(page.locator(".live-answer .bars li")).to_have_count(3, timeout=WAIT_MS)
    expect(page.locator("#live .rate")).to_contain_text("frames per second", timeout=WAIT_MS)
    expect(page.locator("#photo")).to_be_hidden()
    video, answer = (page.locator(part).bounding_box() for part in ("#live video", ".live-answer"))
    assert video["x"] + video["width"] <= answer["x"], "side by side on a wide screen"
    assert min(video["width"], answer["width"]) > 450
    page.wait_for_timeout(1500)
    page.locator("[data-live=stop]").click()
    expect(page.locator("#photo")).to_be_visible()
    expect(page.locator("#live video")).to_be_hidden()
    page.wait_for_timeout(500)
    after_stop = frames["sent"]
    page.wait_for_timeout(800)
    assert (frames["at_once"], frames["sent"]) == (1, after_stop)
    assert frames["sent"] >= 2


def test_the_live_camera_uses_the_chosen_version(browser, two_version_server):
    """It used to send every frame to the default one."""
    with visit(browser, two_version_server) as page:
        page.context.grant_permissions(["camera"])
        open_options(page)
        page.locator("#version input").click()
        page.get_by_role("option", name="2", exact=True).click()
        with page.expect_request(lambda request: '"jpeg"' in (request.post_data or "")) as frame:
            page.locator("[data-live=start]").click()
        assert frame.value.post_data_json["data"][0] == 2
        expect(page.locator(".live-answer")).to_contain_text("version 2", timeout=WAIT_MS, use_inner_text=True)


def test_a_camera_without_permission_gets_an_error_message(page):
    """The message says what to do."""
    page.evaluate("""() => {
        navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", "NotAllowedError"); };
    }""")
    page.locator("[data-live=start]").click()
    expect(page.locator("#live [role=alert]")).to_contain_text("The browser does not allow this page to use the camera")


@pytest.mark.parametrize(("width", "height"), [(375, 667), (390, 844)])
@pytest.mark.parametrize("source", ["file", "example"])
def test_on_a_phone_the_answer_is_in_sight_after_a_photo_is_chosen(browser, server, width, height, source):
    """It used to be below the photo, outside the window, with nothing that pointed to it."""
    with visit(browser, server, width=width) as page:
        page.set_viewport_size({"width": width, "height": height})
        if source == "file":
            upload(page, EXAMPLES / "ship.jpg")
        else:
            page.locator("[data-example=ship]").click()
        expect_label(page, "ship")
        for part in ("#answer h2", "#answer .bars li >> nth=0"):
            expect(page.locator(part)).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize(("width", "locale"), [(375, "en-US"), (390, "zh-CN")])
def test_on_a_phone_all_tabs_are_in_sight(browser, server, width, locale):
    """Four of six used to be in a menu behind three dots."""
    with visit(browser, server, width=width, locale=locale) as page:
        tabs = page.locator("#tabs > .tab-wrapper [role=tablist] [role=tab]")
        expect(tabs).to_have_count(5, timeout=WAIT_MS)
        for at in range(5):
            expect(tabs.nth(at)).to_be_in_viewport(ratio=1)


def test_the_answer_is_the_largest_text_and_everything_begins_at_one_left_edge(page):
    """The page has one message."""
    upload(page, EXAMPLES / "ship.jpg")
    expect_label(page, "ship")
    size = "e => parseFloat(getComputedStyle(e).fontSize)"
    answer = page.locator("#answer h2").evaluate(size)
    others = page.locator("body *:not(#answer h2, #answer h2 *)").evaluate_all(f"all => all.map({size})")
    assert answer >= 1.5 * max(others)
    edges = [
        page.locator(part).first.bounding_box()["x"]
        for part in (".top", "#header p", "#tabs", "#photo", "#live button", "#examples h2")
    ]
    assert max(edges) - min(edges) <= 1


def test_no_focus_ring_is_clipped(page):
    """A ring that is cut at one side looks like a fault, and is hard to see. Each lies within the parts that clip it."""
    upload(page, EXAMPLES / "ship.jpg")
    expect_label(page, "ship")
    page.evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(45):
        page.keyboard.press("Tab")
        name, clipped = page.evaluate("""() => {
            const focused = document.activeElement, style = getComputedStyle(focused);
            if (focused === document.body) return ["", null];
            const reach = parseFloat(style.outlineOffset) + (style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth));
            const box = focused.getBoundingClientRect();
            let by = null;
            for (let outer = focused.parentElement; outer && outer !== document.body; outer = outer.parentElement) {
                const limit = outer.getBoundingClientRect();
                if (getComputedStyle(outer).overflow !== "visible" && (box.left - reach < limit.left - .5 || box.right + reach > limit.right + .5 || box.top - reach < limit.top - .5 || box.bottom + reach > limit.bottom + .5)) by ??= outer.outerHTML.slice(0, 90);
            }
            return [focused.outerHTML.slice(0, 90), by];
        }""")
        assert clipped is None, f"{name} is clipped by {clipped}"
        seen.add(name)
    assert len(seen) > 20


def test_the_page_says_that_predictions_are_logged_and_how_to_turn_it_off(page):
    """Without the log there is nothing that feedback could refer to, so nothing is asked."""
    note = page.locator("#record-note")
    expect(note).to_contain_text("Kept for 90 days, without the photo", use_inner_text=True)
    upload(page, EXAMPLES / "ship.jpg")
    expect_label(page, "ship")
    expect(page.locator(".feedback")).to_be_visible()
    page.get_by_label("Log my answers").uncheck()
    upload(page, EXAMPLES / "frog.jpg")
    expect_label(page, "frog")
    expect(page.locator(".feedback")).to_have_count(0)


def test_a_stranger_sees_no_tabs_for_operators(page):
    """The setting CIFAR_OPERATOR_TABS shows them where nobody signs in."""
    expect(page.get_by_role("tab", name="Code").first).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_role("tab", name="A/B")).to_have_count(0)
    open_tab(page, "model")
    expect(page.locator("#model .facts")).to_contain_text("Accuracy on photographs", timeout=WAIT_MS)
    expect(page.locator("#model .drift")).to_have_count(0)


@pytest.fixture(scope="module")
def keys_server(tmp_path_factory) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a server with sign-in, and the keys by their scope."""
    folder = tmp_path_factory.mktemp("keys")
    keys = {scope: create(folder / "keys.json", scope, ["predict", scope]) for scope in ("feedback", "admin")}
    with running(folder, CIFAR_API_KEYS_FILE=str(folder / "keys.json"), CIFAR_OPERATOR_TABS="true") as server:
        yield server.address, keys


@pytest.mark.parametrize("scope", ["feedback", "admin"])
def test_with_sign_in_only_the_scope_admin_sees_the_tabs_for_operators(browser, keys_server, scope):
    """Also the calls behind them: whoever may not see a tab cannot ask for its content."""
    address, keys = keys_server
    context = browser.new_context(extra_http_headers={"X-API-Key": keys[scope]})
    page = context.new_page()
    page.goto(address)
    expect(page.get_by_role("tab", name="Code").first).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_role("tab", name="A/B")).to_have_count(int(scope == "admin"), timeout=WAIT_MS)
    answer = page.evaluate("""async () => {
        const {dependencies, components} = gradio_config;
        const tab = components.find(({props}) => props.elem_id === "ab").id;
        const id = dependencies.find(({outputs, inputs}) => outputs.length === 1 && outputs[0] === tab && !inputs.length).id;
        const body = JSON.stringify({fn_index: id, data: [], session_hash: "x"});
        return await (await fetch("/gradio_api/run/predict", {method: "POST", headers: {"Content-Type": "application/json"}, body})).json();
    }""")
    assert ("Your account may not do this." in answer["data"][0]) == (scope != "admin")
    context.close()
