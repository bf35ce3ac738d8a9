"""The parts that the benchmarks of serving share: distinct pictures, `wrk` that sends them, and servers with default settings."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PORT = 7990
URL = f"http://127.0.0.1:{PORT}"
LONGEST_START_SECONDS = 180

_BOUNDARY = "------------------------d74496d66958873e"  # as curl writes it
FORM = f"multipart/form-data; boundary={_BOUNDARY}"
_SERIAL = b"0" * 12
_COARSEST, _CONTRAST, _ROUGHNESS, _SENSOR_NOISE = 8, 45.0, 0.62, 3.5


# ---- pictures ----
def picture(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw shapes of all sizes. As in a photograph, details have less contrast than large shapes, and colours less than light.

    So the files are about as large as those of photographs (2.8 and 65 kB in 32x32 and 512x512; real ones: 2.3 and 57 kB).
    """
    levels = max(0, math.ceil(math.log2(max(width, height) / _COARSEST)))
    pixels = np.zeros((1, 1, 3), np.float32)
    for level in range(levels + 1):
        size = math.ceil(width / 2 ** (levels - level)), math.ceil(height / 2 ** (levels - level))
        planes = [Image.fromarray(pixels[..., i]).resize(size, Image.Resampling.BILINEAR) for i in range(3)]
        light = random.standard_normal((size[1], size[0], 1), np.float32)
        colour = random.standard_normal((size[1], size[0], 3), np.float32)
        contrast = max(_CONTRAST * _ROUGHNESS**level, _SENSOR_NOISE)
        pixels = np.stack(planes, -1) + contrast * (light + 0.3 * colour)
    return Image.fromarray(np.clip(pixels + 120, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, file_format: str) -> bytes:
    """Encode a picture. A JPEG gets a comment for the serial number of `post.lua`."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **({"quality": 90, "comment": _SERIAL} if file_format == "JPEG" else {}))
    return buffer.getvalue()


# ---- load ----
LOADS = {
    "32x32 PNG": (32, 32, "PNG", 8000),
    "512x512 JPEG": (512, 512, "JPEG", 200),
    "12-megapixel JPEG": (4000, 3000, "JPEG", 4),
}
"""Width, height, format, and the number of different pictures. A JPEG also gets a serial number in each request."""


@dataclass
class Load:
    """Pictures of one kind. Between two requests with the same file are so many others that no cache holds it any more."""

    name: str
    width: int
    height: int
    file_format: str
    count: int
    file: Path = Path()
    bytes_each: float = 0
    sent: int = 0

    def write(self, folder: Path) -> None:
        """Write the request bodies into a file for `post.lua`."""
        random = np.random.default_rng(self.width)
        self.file = folder / f"{self.width}.bodies"
        with self.file.open("wb") as file:
            for _ in range(self.count):
                image = encoded(picture(random, self.width, self.height), self.file_format)
                body = form(image, self.file_format)
                file.write(b"%d %d\n" % (len(body), body.find(_SERIAL) + 1) + body)
                self.bytes_each += len(image) / self.count

    def drive(self, connections: int, seconds: int, path: str = "/predict") -> dict[str, float]:
        """Send pictures for a bounded time. Returns requests per second, p50 and p99 in milliseconds, errors, requests."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
        result = subprocess.run(
            [*command, "-s", ROOT / "benchmarks/post.lua", URL + path, "--", self.file, FORM, str(self.sent)],
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 120,
        )
        figures: dict[str, float] = json.loads(result.stderr.splitlines()[-1])
        self.sent += int(figures["requests"]) + 2 * connections  # some had no answer yet
        return figures


def form(image: bytes, file_format: str) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo.{file_format.lower()}"\r\n'
    head += f"Content-Type: image/{file_format.lower()}\r\n\r\n"
    return head.encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()


# ---- servers ----
@dataclass(frozen=True)
class System:
    """A server to start. `environment` is all that differs from the default settings, except for the port and the folders."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@contextmanager
def running(system: System) -> Iterator[tuple[int, float]]:
    """Start a system; yields its process id and the seconds to its first answer. Its log goes to a file, as with most operators."""
    if (ROOT / ".env").exists():
        sys.exit(
            "The file .env changes the settings of the server: move it away, so that the default settings are measured."
        )
    if _answers():
        sys.exit(f"Another server answers at {URL}: stop it, so that it is not measured.")
    inherited = {
        name: value for name, value in os.environ.items() if not re.match(r"CIFAR_|MODEL_VERSION$|PORT$", name)
    }
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("wb") as log:
        places = {"CIFAR_HOST": "127.0.0.1", "CIFAR_PORT": str(PORT)}
        places |= {"CIFAR_RECORDS_FOLDER": f"{folder}/records", "CIFAR_UPLOADS": f"{folder}/uploads"}
        environment = {**inherited, **places, **system.environment}
        started = time.monotonic()
        process = subprocess.Popen(
            system.command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while not _answers():
                if process.poll() is not None or time.monotonic() - started > LONGEST_START_SECONDS:
                    sys.exit(f"{system.name} did not start: {Path(log.name).read_text()[-2000:]}")
                time.sleep(0.05)
            yield process.pid, time.monotonic() - started
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):  # some leave children behind
                os.killpg(process.pid, signal.SIGKILL)


def _answers() -> bool:
    try:
        response = httpx2.post(f"{URL}/predict", content=_PROBE, headers={"Content-Type": FORM}, timeout=30)
    except httpx2.TransportError:
        return False
    return response.status_code == httpx2.codes.OK


_PROBE = form(encoded(Image.new("RGB", (32, 32)), "PNG"), "PNG")


def memory_mb(pid: int) -> float:
    """PSS over a process and all below it: shared pages are counted once."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return own + sum(memory_mb(int(child)) for child in children)


def metric(pattern: str) -> float:
    """Return the sum of the metrics of the server whose lines begin with a regular expression."""
    lines = httpx2.get(f"{URL}/metrics", timeout=30).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(pattern, line))
