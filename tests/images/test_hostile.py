"""Files and calls that cost far more than their size suggests, or bypass a check. Each one once worked against the server."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib

import httpx2
import pytest
from support.pictures import corners, encoded, noise

from cifar.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from cifar.images.decode import preprocess
from cifar.images.screening import excess
from cifar.images.spec import ImageSpec
from cifar.settings import ROOT


def read(payload: bytes):
    return preprocess(payload, ImageSpec(height=32, width=32, channels=3), max_pixels=50_000_000)


def jpeg_with_last_scan_repeated(times: int) -> bytes:
    """A progressive JPEG. Each further scan makes the decoder process the whole image again."""
    whole = encoded(noise(64, 64), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * times + whole[-2:]


def jpeg_with_after_start(extra: bytes) -> bytes:
    whole = encoded(noise(), "JPEG")
    return whole[:2] + extra + whole[2:]


def tiff_whose_tags_share_their_bytes(tags: int, count: int) -> bytes:
    """A greyscale image of 8 x 8 pixels. Each additional tag claims `count` bytes from the start of the file."""
    pixels = bytes(64)
    own = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 278: 8, 279: 64}
    entries = [(tag, 3, 1, value) for tag, value in own.items()]
    entries += [(40_000 + i, 1, count, 0) for i in range(tags)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return (b"II*\0" + struct.pack("<I", 8 + 64) + pixels + directory).ljust(count, b"\0")


def png_with_chunks(kind: bytes, count: int, data: bytes = b"a\0b") -> bytes:
    whole = encoded(noise())
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return whole[:33] + chunk * count + whole[33:]


def gif_with_comment_blocks(count: int) -> bytes:
    whole = encoded(noise().convert("P"), "GIF")
    start = 13 + 3 * 2 ** ((whole[10] & 7) + 1)
    return whole[:start] + b"\x21\xfe" + (b"\xff" + b"c" * 255) * count + b"\0" + whole[start:]


def box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def with_boxes(format: str, place: tuple[bytes, ...], extra: bytes) -> bytes:
    """Return a file with further boxes at the end of the box at `place`; of the file if it is empty."""
    content = encoded(noise(64, 64), format)
    heads = []
    for kind in place:
        start = content.index(kind) - 4
        size = int.from_bytes(content[start : start + 4])
        heads.append((content[:start], kind, content[start + size :]))
        content = content[start + 8 : start + size]
    content += extra
    for before, kind, after in reversed(heads):
        content = before + box(kind, content) + after
    return content


def png_of_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    whole = encoded(noise())
    chunk = b"IHDR" + header
    return whole[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        pytest.param(jpeg_with_last_scan_repeated(5_000), "64 JPEG scans", id="jpeg_of_5000_scans"),
        pytest.param(jpeg_with_after_start(b"\xff" * 1_000_000), "JPEG fill bytes", id="jpeg_with_1_mb_of_fill"),
        pytest.param(b"\xff\xd8" + b"\xff" * 1_000_000 + b"\0", "JPEG fill bytes", id="jpeg_of_fill_without_a_marker"),
        pytest.param(b"\xff\xd8" + b"\0" * 1_000_000, "JPEG fill bytes", id="jpeg_of_junk"),
        pytest.param(jpeg_with_after_start(b"\xff\xfe\0\2" * 100_000), "JPEG segments", id="jpeg_of_100000_comments"),
        pytest.param(
            tiff_whose_tags_share_their_bytes(200, 1_000_000),
            "TIFF tags that announce more",
            id="tiff_of_200_tags_over_the_same_megabyte",
        ),
        pytest.param(tiff_whose_tags_share_their_bytes(1_001, 10), "1000 TIFF tags", id="tiff_of_1001_tags"),
        pytest.param(b"II\x2b\0\x08\0\0\0" + bytes(100), "BigTIFF", id="bigtiff"),
        pytest.param(png_with_chunks(b"tEXt", 30_000), "20000 PNG chunks", id="png_of_30000_texts"),
        pytest.param(png_with_chunks(b"IDAT", 30_000, b""), "20000 PNG chunks", id="png_of_30000_empty_idat"),
        pytest.param(gif_with_comment_blocks(70_000), "2000 GIF blocks", id="gif_with_an_18_mb_comment"),
        pytest.param(b"GIF89a" + bytes(7) + b"!\xfe\0" * 500_000, "2000 GIF blocks", id="gif_of_500000_empty_comments"),
        pytest.param(b"GIF89a" + bytes(7) + b"\0!\xfe\0" * 500_000, "2000 GIF blocks", id="gif_of_500000_stray_bytes"),
        *(
            pytest.param(with_boxes(format, place, extra), "5000 boxes", id=f"{format}_with_many_{name}")
            for format in ("AVIF", "HEIF")
            for name, place, extra in (
                ("boxes", (), box(b"free") * 6000),
                ("boxes_in_meta", (b"meta",), box(b"free") * 6000),
                ("properties", (b"meta", b"iprp", b"ipco"), box(b"free") * 6000),
                ("items", (b"meta",), box(b"iinf", bytes(120_000))),
                ("places", (b"meta",), box(b"iloc", bytes(60_000))),
                ("references", (b"meta",), box(b"iref", bytes(4) + box(b"dimg", bytes(20_000)))),
                ("associations", (b"meta", b"iprp"), box(b"ipma", bytes(20_000))),
                ("frames", (), box(b"moov", bytes(40_000))),
            )
        ),
    ],
)
def test_a_file_with_an_excessive_structure_is_refused_before_decoding(payload, words):
    """The screening finds it, which decodes nothing; decoding would take seconds or hours."""
    assert words in excess(payload)
    with pytest.raises(UnreadableImage, match=words):
        read(payload)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "HEIF", "AVIF"])
def test_ordinary_files_pass_the_screening(format):
    """The limits are far above what encoders write, also for progressive files and files with EXIF."""
    exif = corners().getexif()
    exif[0x010E] = "a description" * 100
    options = {"progressive": True} if format == "JPEG" else {}
    more = {} if format in {"GIF", "BMP"} else {"exif": exif}
    for picture in (noise(800, 600), corners()):
        payload = encoded(picture, format, **options, **more)
        assert excess(payload) == ""
        read(payload)


def test_bytes_after_the_end_of_a_jpeg_are_ignored():
    """Phones append a video or a second image."""
    payload = encoded(noise(), "JPEG") + b"\xff\xda\x00\x04ab" * 10_000 + b"\xff" * 100_000
    assert read(payload).shape == (32, 32, 3)


def jpeg_segment(kind: int, content: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with_exif(exif: bytes) -> bytes:
    """Without a resolution of its own, so that Pillow looks for it in the EXIF data when it opens the file."""
    whole = encoded(noise(), "JPEG")
    parts = [exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    rest = whole[4 + int.from_bytes(whole[4:6]) :]
    return whole[:2] + b"".join(jpeg_segment(0xE1, b"Exif\0\0" + part) for part in parts) + rest


def png_with_exif_as_text(exif: bytes) -> bytes:
    """ImageMagick's form. It is packed, so the file has 1 kB."""
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}".encode()
    return png_with_chunks(b"zTXt", 1, b"Raw profile type exif\0\0" + zlib.compress(text))


def tiff_with_nested_directory(directory: bytes) -> bytes:
    """Pillow reads the EXIF directory of a TIFF when it decodes the image."""
    whole = tiff_whose_tags_share_their_bytes(0, 0)
    (count,) = struct.unpack_from("<H", whole, 72)
    entries, at = whole[74 : 74 + 12 * count], 74 + 12 * (count + 1) + 4
    own = struct.pack("<H", count + 1) + entries + struct.pack("<HHII", 34665, 4, 1, at) + bytes(4)
    return whole[:72] + own + directory[72:]


EXIF = tiff_whose_tags_share_their_bytes(900, 250_000) + bytes(8)
WITH_DIRECTORY = {
    "EXIF of a PNG": lambda: png_with_chunks(b"eXIf", 1, EXIF),
    "EXIF of a PNG as text": lambda: png_with_exif_as_text(EXIF),
    "EXIF of a JPEG": lambda: jpeg_with_exif(EXIF),
    "index of a JPEG": lambda: jpeg_with_after_start(
        jpeg_segment(0xE2, b"MPF\0" + tiff_whose_tags_share_their_bytes(5000, 64_000) + bytes(8))
    ),
    "EXIF of an AVIF": lambda: encoded(noise(), "AVIF", exif=EXIF),
    "EXIF of a WebP": lambda: encoded(noise(), "WEBP", exif=EXIF),
    "nested directory of a TIFF": lambda: tiff_with_nested_directory(EXIF),
}


@pytest.mark.parametrize("made", WITH_DIRECTORY.values(), ids=WITH_DIRECTORY)
def test_a_directory_whose_tags_share_their_bytes_takes_no_memory(made):
    """Pillow copied them for each tag: 6 kB of a PNG took 0.9 GB in the event loop, 260 kB of a JPEG 1.3 GB. The image is taken as upright."""
    payload = made()
    tracemalloc.start()
    try:
        assert read(payload).shape == (32, 32, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000 + 4 * len(payload)


@pytest.mark.parametrize(("width", "height"), [(1, 50_000_000), (50_000_000, 1), (65_536, 1)])
def test_an_extremely_long_side_is_refused(width, height):
    """The image is within the pixel limit, but would take gigabytes to resample."""
    with pytest.raises(ImageTooLarge, match="65535 a side"):
        read(png_of_size(width, height))


def test_a_tiff_of_random_bytes_is_refused_without_another_error():
    """A TIFF header may point to any byte."""
    for seed in range(200):
        payload = b"II*\0" + noise(8, 8, seed=seed).tobytes()
        with pytest.raises((UnreadableImage, UnsupportedImage)):
            read(payload)


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("charset", ["undefined", "punycode", "\u20ac".encode().decode("latin-1")])
def test_a_form_in_an_invalid_charset_is_a_client_error(api, charset):
    """`charset=undefined` makes Python's codecs raise; others turn the field's name into nonsense."""
    body = b'--x\r\nContent-Disposition: form-data; name="\xe9"\r\n\r\na\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}".encode("latin-1")
    response = api.post("/predict", content=body, headers={"Content-Type": kind})
    assert response.status_code in {400, 422}


@pytest.mark.parametrize("path", ["\0", "/tmp/x\0", "\ud800", "a/" * 20_000, "", ".", "~"])
@pytest.mark.parametrize("route", ["run/predict", "run/upload", "api/upload", "call/predict", "queue/join", "cancel"])
def test_an_invalid_file_path_is_a_400_on_every_route(server, route, path):
    """This includes `api/upload`, whose path merely ends like the upload's."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    call = {"data": [file, None, None], "fn_index": 3, "session_hash": "a"}
    response = httpx2.post(f"{server}/gradio_api/{route}", content=json.dumps(call))
    assert response.status_code == 400, response.text
    assert response.json()["code"] == "bad_request"


@pytest.mark.parametrize("route", ["run/predict", "cancel", "reset", "queue/join", "call/v2/predict"])
def test_a_call_of_megabytes_is_refused(server, route):
    """Parsing 19 MB of `[],` blocked the event loop for 14 s."""
    body = b'{"data":[' + b"[]," * 100_000 + b"0]}"
    response = httpx2.post(f"{server}/gradio_api/{route}", content=body)
    assert response.status_code == 413
    assert response.json()["code"] == "too_large"


def test_a_session_hash_must_be_a_short_word(server):
    """The server keeps sessions in memory, so an unlimited hash would let a client fill the memory."""
    for hash_ in ("a" * 65, "a b", "a\nb", 5, ["a"]):
        response = httpx2.post(f"{server}/gradio_api/queue/join", json={"data": [], "session_hash": hash_})
        assert response.status_code == 400
        assert "session_hash" in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/?page=nowhere", {}),
        ("GET", "/", {"X-Forwarded-Host": "x:y"}),
        ("GET", "/config", {"X-Gradio-Server": "http://localhost:x"}),
        ("POST", "/gradio_api/call/v2/nowhere", {}),
        ("POST", "/gradio_api/call/v2/predict", {}),
        ("POST", "/gradio_api/run/nowhere", {}),
        ("POST", "/gradio_api/upload", {"Content-Type": "multipart/form-data; boundary=" + "b" * 300}),
        ("POST", "/gradio_api/upload", {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"}),
        ("POST", "/gradio_api/upload", {}),
    ],
)
def test_a_call_that_gradio_cannot_process_is_a_client_error(server, method, path, headers):
    """It is never a 5xx, and the body of the error has the same shape as all others."""
    content = (
        b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nhello\r\n--x--\r\n' if "upload" in path else b"{}"
    )
    response = httpx2.request(method, server + path, headers=headers, content=content)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert set(response.json()) == {"error", "code", "request_id"}
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    "path", ["/nowhere", "/predict/", "/v3/models/x", "/gradio_api/nowhere", "/gradio_api/file=/etc/passwd"]
)
def test_an_unknown_path_is_a_404_in_the_usual_shape(server, path):
    """The answer does not repeat the path."""
    response = httpx2.get(server + path)
    assert response.status_code == 404
    assert response.json()["code"] == "not_found"
    assert "passwd" not in response.text


def test_malformed_range_headers_cause_no_5xx(server):
    """Gradio parses Range headers by hand."""
    files = {"files": ("a.png", encoded(noise()))}
    (path,) = httpx2.post(f"{server}/gradio_api/upload", files=files).json()
    for wanted in ("bytes=1-2-3", "bytes=0-1,2-3", "bytes=--", "bytes=²-³".encode(), "bytes=" + "9" * 5000 + "-"):
        response = httpx2.get(f"{server}/gradio_api/file={path}", headers={"Range": wanted})
        assert response.status_code < 500


@pytest.mark.parametrize("value", ["+1", " 1", "1_0", "\uff11", "\u0661", "1e0", "0x1", "true", "[1]", "--1"])
def test_only_plain_digits_are_accepted_as_a_number(api, value):
    """Python's int() also accepts such values, but the server would have to guess what the client meant."""
    response = api.post(
        "/predict", files={"image": (ROOT / "examples" / "cat.jpg").read_bytes()}, data={"top_k": value}
    )
    assert response.status_code == 422
    assert response.json()["code"] == "bad_parameter"


def test_the_header_x_gradio_server_does_not_put_another_host_into_the_page(server):
    """Every address in the configuration is on this server."""
    text = httpx2.get(f"{server}/config", headers={"X-Gradio-Server": "http://evil.example"}).text
    assert "evil.example" not in text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("split", [False, True], ids=["repeated", "split"])
def test_exif_headers_that_pillow_would_drop_one_by_one_cost_no_time(split):
    """It copies the rest of the data each time: a JPEG of 1 MB took 2.5 seconds, and this one would take minutes."""
    photo = encoded(noise(64, 64), "JPEG")
    part = b"Exif\0\0" + (b"\0Exif\0" if split else b"Exif\0\0" * 10_000)
    segment = b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part
    with pytest.raises(UnreadableImage, match="EXIF headers"):
        read(photo[:2] + segment * 100 + photo[2:])
    data = b"Exif\0\0" * 150_000
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    png = encoded(noise(64, 64), "PNG")
    read(png[:33] + chunk + png[33:])
