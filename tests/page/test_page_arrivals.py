"""The ways in which a photo comes to the page: chosen with any name, dropped or pasted anywhere, from a camera that may be missing."""

from __future__ import annotations

import json

import pillow_heif
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from support.browser import EXAMPLES, WAIT_MS, expect_label, open_options, open_tab, upload, visit
from support.pictures import encoded

pillow_heif.register_heif_opener()
CAT = Image.open(EXAMPLES / "cat.jpg").resize((128, 128))
SERVER = "server"


def send(page: Page, event: str, target: str, *files: tuple[str, str, bytes], text: str = "") -> None:
    """Dispatch a paste or drop with files, or with a text, as a browser does."""
    page.locator(target).first.evaluate(
        """(target, [event, files, text]) => {
            const data = new DataTransfer();
            for (const [name, type, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name, {type}));
            if (text) { data.setData("text/plain", text); data.setData("text/uri-list", text); }
            const options = {bubbles: true, cancelable: true};
            const sent = event === "paste" ? new ClipboardEvent(event, {...options, clipboardData: data}) : new DragEvent(event, {...options, dataTransfer: data});
            target.dispatchEvent(sent);
        }""",
        [event, [(name, kind, list(content)) for name, kind, content in files], text],
    )


def photo(name: str, file: str = "photo.jpg", kind: str = "image/jpeg") -> tuple[str, str, bytes]:
    return file, kind, (EXAMPLES / f"{name}.jpg").read_bytes()


@pytest.mark.parametrize(
    ("name", "kind", "media_type"),
    [
        ("IMG_0001.HEIC", "HEIF", ""),
        ("x.HEIF", "HEIF", "application/octet-stream"),
        ("x.Avif", "AVIF", ""),
        ("noending", "JPEG", ""),
        ("scan.TIF", "TIFF", "application/octet-stream"),
        ("photo.dat", "PNG", "application/x-unknown"),
    ],
)
def test_the_content_of_a_file_decides_whatever_its_name_and_type_say(page, name, kind, media_type):
    """Browsers take the type from a table of endings, which many systems do not have for an iPhone's photos.

    A sentence, in the page's language, takes the place of a preview that Chromium cannot draw.
    """
    page.evaluate("document.querySelector('#photo input[type=file]').accept = ''")
    file = {"name": name, "mimeType": media_type or "application/octet-stream", "buffer": encoded(CAT, kind)}
    if media_type:
        page.set_input_files("#photo input[type=file]", [file])
    else:  # a type of "" can only come by a drop here
        send(page, "drop", "#photo button", (name, "", file["buffer"]))
    expect_label(page, "cat")
    expect(page.locator("#page-problem")).to_be_hidden()
    page.evaluate("document.documentElement.lang = 'zh-CN'")
    sentence = "getComputedStyle(document.querySelector('#photo .image-frame'), '::after').content"
    page.wait_for_function(f"{sentence}.includes('预览') === {json.dumps(kind in {'HEIF', 'TIFF'})}")


@pytest.mark.parametrize("target", ["body", "#examples", "#live button"])
def test_a_photo_can_be_pasted_anywhere_with_the_keyboard(page, target):
    """Ctrl+V used to work on one button only. The answer follows the second photo too."""
    for name in ("deer", "ship"):
        send(page, "paste", target, photo(name, "image.png", "image/png"))
        expect_label(page, name)


def test_ctrl_v_pastes_the_image_of_the_real_clipboard(page):
    """The other tests send the event; this one presses the keys."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async bytes => { const png = new Blob([new Uint8Array(bytes)], {type: "image/png"});
        await navigator.clipboard.write([new ClipboardItem({"image/png": png})]); }""",
        list(encoded(Image.open(EXAMPLES / "frog.jpg"))),
    )
    page.keyboard.press("Control+v")
    expect_label(page, "frog")


@pytest.mark.parametrize("tab", ["classify", "model", "code"])
def test_a_photo_can_be_dropped_anywhere_on_any_tab(page, tab):
    """The browser would open the file and leave the page. The tab Classify shows the answer."""
    open_tab(page, tab)
    send(page, "drop", "#header", photo("truck"))
    expect_label(page, "truck")
    expect(page.locator("#answer h2")).to_be_visible()


def test_photos_that_are_dropped_beside_the_field_of_a_batch_are_classified_there(page):
    """The open tab takes many."""
    open_tab(page, "batch")
    send(page, "drop", "#header", photo("truck", "a.jpg"), photo("cat", "b.jpg"))
    expect(page.locator("#batch .summary")).to_contain_text("2 of 2 done.", use_inner_text=True, timeout=WAIT_MS)


def test_of_several_dropped_photos_the_first_is_shown_and_the_page_says_which_tab_takes_many(page):
    """The others would be dropped without a word."""
    send(page, "drop", "body", photo("truck", "a.jpg"), photo("cat", "b.jpg"))
    expect_label(page, "truck")
    expect(page.locator("#page-note")).to_contain_text("The tab Batch takes many", use_inner_text=True)


@pytest.mark.parametrize("event", ["drop", "paste"])
@pytest.mark.parametrize(("locale", "words"), [("en-US", "That was a link or text"), ("zh-CN", "收到的是链接或文字")])
def test_a_link_or_text_gets_a_sentence(browser, server, event, locale, words):
    """A picture dragged from another page often comes as its address only."""
    with visit(browser, server, locale=locale) as page:
        send(page, event, "body", text="https://example.org/cat.jpg")
        expect(page.locator("#page-problem")).to_contain_text(words, use_inner_text=True)
        upload(page, EXAMPLES / "cat.jpg")
        expect_label(page, "cat")
        expect(page.locator("#page-problem")).to_be_hidden()


def test_a_text_that_is_pasted_into_a_field_stays_there(page):
    """Only a text that would go nowhere gets the sentence."""
    open_options(page)
    send(page, "paste", "#top-k input[type=number]", text="7")
    expect(page.locator("#page-problem")).to_be_hidden()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("NotFoundError", "No camera was found"),
        ("NotAllowedError", "does not allow this page to use the camera"),
        ("NotReadableError", "Close other programs that use it"),
    ],
)
def test_a_missing_camera_gets_a_sentence_for_a_photo_and_for_the_live_camera(page, error, words):
    """Gradio's own message is a toast, which this page hides."""
    page.reload()
    page.add_init_script(
        f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{error}'); }}"
    )
    page.reload()
    page.locator("[data-live=start]").click()
    expect(page.locator("#live [role=alert]")).to_contain_text(words, use_inner_text=True)
    expect(page.locator("#page-problem")).to_be_hidden()
    page.locator("#photo").get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    expect(page.locator("#page-problem")).to_contain_text(words, use_inner_text=True)
