"""Zip files on the tab Batch in a real browser."""

from __future__ import annotations

import io
import struct
import zipfile
from contextlib import ExitStack

import numpy as np
import pytest
from playwright.sync_api import expect
from support.browser import FILES, WAIT_MS, choose_many, classify_many, names, open_tab, zip_file
from support.hostile_files import zipped
from support.servers import CAT

from cifar.serving.inference.archives import Upload, entries_of
from cifar.settings import Settings

SERVER = "two_version_server"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_each_photo_in_a_zip_file_is_a_row(page, method):
    """Folders and the files that macOS adds are left out, and Chinese names are kept."""
    photos = [("pets/cat.jpg", CAT), ("船.jpg", FILES[8].read_bytes()), ("__MACOSX/pets/._cat.jpg", b"x")]
    classify_many(
        page, "batch", zip_file(zipped([*photos, ("pets/", b""), (".DS_Store", b"x")], method)), "2 of 2 done."
    )
    assert names(page) == ["pets/cat.jpg", "船.jpg"]
    assert page.locator("#batch tbody td:nth-of-type(2)").all_inner_texts() == ["cat", "ship"]


def test_a_decompression_bomb_in_a_zip_file_is_a_row_with_its_error(page):
    """Unpacking stops at the limit, and the other photo is answered."""
    content = zipped([("bomb.bmp", bytes(5 * 1024**2)), ("cat.jpg", CAT)])
    classify_many(page, "batch", zip_file(content), "2 of 2 done. 1 with an error.")
    expect(page.locator("#batch tbody tr").first).to_contain_text("more than 100 times its packed size")


def test_a_zip_file_with_wrong_sizes_is_stopped_while_unpacking(page):
    """The directory of the file says 10 bytes, but the page counts the bytes that arrive."""
    large = np.random.default_rng(0).integers(0, 4, 300_000, np.uint8).tobytes()
    content = bytearray(zipped([("large.bmp", large), ("cat.jpg", CAT)]))
    content[(entry := content.find(b"PK\x01\x02")) + 24 : entry + 28] = struct.pack("<I", 10)
    open_tab(page, "batch")
    page.locator("#batch .many").evaluate("box => { box.dataset.each = 200_000; }")
    classify_many(page, "batch", zip_file(bytes(content)), "2 of 2 done. 1 with an error.")
    expect(page.locator("#batch tbody tr").first).to_contain_text("exceeds 0 MB")


def test_a_file_that_is_only_named_zip_gets_an_error_message(page):
    """The content decides, not the name."""
    open_tab(page, "batch")
    choose_many(page, "batch", zip_file(b"PK but no more"))
    expect(page.locator("#batch .problems")).to_contain_text("photos.zip cannot be read as a zip", timeout=WAIT_MS)


def named_zip(files: list[tuple[str, str, bool]]) -> bytes:
    """Return a zip file with a cat under each name, encoded as stated, with the flag for UTF-8 or without it."""
    buffer = io.BytesIO()
    raw = {
        f"{place}".zfill(len(name.encode(encoding))): name.encode(encoding)
        for place, (name, encoding, _) in enumerate(files)
    }
    with zipfile.ZipFile(buffer, "w") as archive:
        for stand_in in raw:
            archive.writestr(stand_in, CAT)
    content = buffer.getvalue()
    for (stand_in, name), (_, _, flag) in zip(raw.items(), files, strict=True):
        for signature, at, length in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
            place = content.find(stand_in.encode(), content.find(signature)) - length
            while content[place : place + 4] != signature:
                place = content.find(stand_in.encode(), place + length + 1) - length
            head = bytearray(content[place : place + length])
            head[at : at + 2] = struct.pack("<H", 0x800 * flag)
            content = content[:place] + bytes(head) + name + content[place + length + len(name) :]
    return content


def test_the_same_zip_file_has_the_same_names_on_the_page_and_in_the_api(page):
    """Windows writes Chinese names in GB 18030 and says nothing of it; other programs write UTF-8 with or without the flag."""
    files = [
        ("照片/猫猫猫.jpg", "gb18030", False),
        ("船船船.jpg", "utf-8", True),
        ("фото.jpg", "utf-8", False),
        ("plain-cat.jpg", "ascii", False),
        ("马马马.jpg", "gb18030", True),
        ("./under-here.jpg", "ascii", False),
    ]
    hidden = ["pets/.cat.jpg", ".git/cat.jpg", "pets/THUMBS.DB", "desktop.ini", "a/__MACOSX/cat.jpg"]
    content = named_zip([*files, *((name, "ascii", False) for name in hidden)])
    classify_many(page, "batch", zip_file(content), "6 of 6 done.")
    assert names(page) == [name for name, _, _ in files]
    with ExitStack() as stack:
        entries = entries_of([Upload("a.zip", content)], Settings(), stack)
        assert [entry.name for entry in entries] == names(page)
        assert [entry.read() for entry in entries] == [CAT] * 6
