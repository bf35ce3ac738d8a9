"""Peak memory of decoding one image, for each format: `python -m benchmarks.decoding_memory`. Linux only.

Each image is decoded in a process of its own. The last column is what `cifar.images.decode.decoding_bytes` allows for it.
"""

from __future__ import annotations

import io
import multiprocessing
import re
import sys
from pathlib import Path

from PIL import Image

from cifar.images.decode import decoding_bytes, open_image, pixels_in_file, to_input
from cifar.images.spec import ImageSpec

SIDE = 4_000
_SPEC = ImageSpec(height=32, width=32, channels=3)


def images(side: int) -> dict[str, bytes]:
    """Return a file of `side` x `side` pixels in each format, by name."""
    import pillow_heif  # only here: what decodes is `pi_heif`

    pillow_heif.register_heif_opener()
    plain, see_through = Image.new("RGB", (side, side), (9, 99, 199)), Image.new("RGBA", (side, side), (9, 99, 199, 9))
    grey, palette = Image.new("L", (side, side), 7), Image.new("P", (side, side))
    return {
        "JPEG baseline": _encoded(plain, "JPEG"),
        "JPEG progressive, 4:2:0": _encoded(plain, "JPEG", progressive=True),
        "JPEG progressive, 4:4:4": _encoded(plain, "JPEG", progressive=True, subsampling=0),
        "JPEG progressive, CMYK": _encoded(plain.convert("CMYK"), "JPEG", progressive=True),
        "PNG RGB": _encoded(plain, "PNG"),
        "PNG RGBA": _encoded(see_through, "PNG"),
        "PNG grey with alpha": _encoded(see_through.convert("LA"), "PNG"),
        "PNG palette, transparent": _encoded(palette, "PNG", transparency=bytes(256)),
        "PNG RGB, one colour transparent": _encoded(plain, "PNG", transparency=(9, 99, 199)),
        "WebP lossy": _encoded(plain, "WEBP", method=0),
        "WebP lossless": _encoded(plain, "WEBP", method=0, lossless=True),
        "WebP with alpha": _encoded(see_through, "WEBP", method=0),
        "GIF, transparent": _encoded(palette, "GIF", transparency=0),
        "BMP": _encoded(plain, "BMP"),
        "TIFF RGB": _encoded(plain, "TIFF", compression="tiff_lzw"),
        "TIFF CMYK": _encoded(plain.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "TIFF 1 bit": _encoded(grey.convert("1"), "TIFF", compression="group4"),
        "AVIF": _encoded(plain, "AVIF", speed=10),
        "AVIF 4:4:4 with alpha": _encoded(see_through, "AVIF", speed=10, subsampling="4:4:4"),
        "HEIF": _encoded(plain, "HEIF", quality=50),
        "HEIF with alpha": _encoded(see_through, "HEIF", quality=50),
    }


def _encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def measure(payload: bytes, small: bytes) -> tuple[float, float]:
    """Return the peak of decoding a file, and what is allowed for it, both in bytes a pixel of the file.

    Args:
        payload: the file.
        small: a small file in the same format, so that loading its decoder is not measured.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cifar.images.decode"])
    with context.Pool(1) as pool:
        return pool.apply(_measure, (payload, small))


def _measure(payload: bytes, small: bytes) -> tuple[float, float]:
    to_input(open_image(small, _SPEC, max_pixels=10**9), _SPEC)  # load the decoder
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    image = open_image(payload, _SPEC, max_pixels=10**9)
    pixels, allowed = pixels_in_file(image), decoding_bytes(image, payload)
    to_input(image, _SPEC)
    return (_memory("VmHWM") - before) / pixels, allowed / pixels


def _memory(name: str) -> int:
    return 1024 * int(re.findall(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def main() -> None:
    print(f"{SIDE} x {SIDE} pixels; bytes a pixel\n{'format':32}{'file bytes':>12}{'peak':>8}{'allowed':>9}")
    for (name, payload), small in zip(images(SIDE).items(), images(64).values(), strict=True):
        peak, allowed = measure(payload, small)
        print(f"{name:32}{len(payload):12,}{peak:8.1f}{allowed:9.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
