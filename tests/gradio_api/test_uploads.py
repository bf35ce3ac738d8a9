"""Photos are not stored: calls write no files, and uploads are deleted after their lifetime."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from support.hostile_files import zipped
from support.servers import CAT, DATA_URL, mcp_session, running
from support.waiting import until

from cifar.errors import SettingsError
from cifar.serving.gradio.uploads import UPLOAD_LIFETIME_SECONDS, UploadQuota, own_folder, sweep, sweep_while_serving
from cifar.settings import ROOT, Settings

MARKER = ".cifar-uploads"


def files_below(folder: Path) -> set[Path]:
    """Return all files but the workers' sockets and counters, which contain nothing of a request."""
    return {file for file in folder.rglob("*") if file.is_file() and file.suffix != ".db"}


@pytest.mark.slow
def test_calls_write_no_files_and_a_worker_deletes_the_old_uploads_of_all_workers(tmp_path):
    """This includes archives and uploads through a worker that no longer runs; a worker that starts sweeps them."""
    temporary, uploads = tmp_path / "tmp", tmp_path / "tmp/uploads"
    temporary.mkdir()
    archive = tmp_path / "photos.zip"
    archive.write_bytes(zipped([("a/cat.jpg", CAT), ("b.txt", b"text")]))
    with running(temporary, workers=2, CIFAR_MCP="true") as server:
        before = files_below(temporary)
        for path in ("/predict", "/explain"):
            for _ in range(4):  # so that each worker answers some
                assert httpx2.post(server.address + path, files={"image": CAT}, timeout=60).status_code == 200
        asyncio.run(by_mcp(server.address))
        assert files_below(temporary) == before, "REST and MCP write nothing"

        client = Client(server.address, verbose=False, download_files=str(tmp_path))
        for _ in range(3):
            client.predict(handle_file(ROOT / "examples/cat.jpg"), api_name="/explain")
            client.predict([handle_file(archive), handle_file(ROOT / "examples/dog.jpg")], api_name="/predict_batch")
        written = files_below(temporary) - before
        assert written, "an upload is a file"
        assert all(file.is_relative_to(uploads) for file in written), "in the upload folder only"
        assert {file.name for file in written} == {"cat.jpg", "dog.jpg", "photos.zip"}, "nothing is unpacked"

        for path in written:
            os.utime(path, (time.time() - UPLOAD_LIFETIME_SECONDS - 1,) * 2)
        server.process.send_signal(signal.SIGHUP)  # starts new workers
        until(lambda: not written & files_below(uploads), "no worker deleted the uploads")


def test_old_uploads_are_deleted_and_recent_ones_stay(tmp_path):
    """Only their age counts. Empty folders are deleted as well, and links are not followed."""
    tmp_path = own_folder(Settings(uploads=tmp_path))
    long_ago = (time.time() - 100,) * 2
    for name in ("old/a.png", "tmp_cut_off", "young/b.png", "other/d.png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
        if "young" not in name:
            os.utime(file, long_ago)
    (tmp_path / "just made").mkdir()
    (tmp_path / "outside").symlink_to(ROOT / "examples")
    os.utime(tmp_path / "outside", long_ago, follow_symlinks=False)
    sweep(tmp_path, max_age_seconds=60)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"young/b.png", MARKER}
    assert (tmp_path / "just made").exists()
    assert not (tmp_path / "outside").is_symlink()
    assert len(list((ROOT / "examples").iterdir())) == 11, "the target of a link is not deleted"
    sweep(Path(tmp_path / "never made"), max_age_seconds=60)


def test_an_upload_that_cannot_be_deleted_does_not_prevent_the_deletion_of_others(tmp_path, monkeypatch):
    """Each one counts for itself."""
    tmp_path = own_folder(Settings(uploads=tmp_path))
    for name in "abc":
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    unlink = Path.unlink

    def unlink_own(path: Path, **more: bool) -> None:
        if path.name == "b":
            raise PermissionError
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", unlink_own)
    sweep(tmp_path, max_age_seconds=60)
    assert {path.name for path in tmp_path.iterdir()} == {"b", MARKER}


def test_a_running_server_deletes_old_uploads_of_an_earlier_one(tmp_path, monkeypatch):
    """A partial upload that a crash left behind does not stay forever."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ.get("GRADIO_TEMP_DIR", ""))  # set by the app; restored afterwards
    from app import create_app

    left_over = own_folder(Settings(uploads=tmp_path)) / "tmp123"
    left_over.write_bytes(b"x")
    os.utime(left_over, (1, 1))
    application = create_app(Settings(uploads=tmp_path))
    with TestClient(application):
        until(lambda: not left_over.exists())


def test_old_uploads_are_deleted_while_the_server_runs(tmp_path):
    """Newer uploads, and folders that are not empty, stay."""
    api = FastAPI()
    tmp_path = own_folder(Settings(uploads=tmp_path))
    sweep_while_serving(api, tmp_path, max_age_seconds=0.4)
    old, new = tmp_path / "a/old.jpg", tmp_path / "b/new.jpg"
    with TestClient(api):
        for file in (old, new):
            file.parent.mkdir()
            file.touch()
        os.utime(new, (time.time() + 3600,) * 2)
        until(lambda: not old.parent.exists(), "the old upload is still there")
    assert new.exists()


def test_only_files_in_a_folder_made_for_uploads_are_deleted(tmp_path):
    """An operator may name a folder that holds other files: whatever stood in it before stays, however old it is."""
    thesis = tmp_path / "thesis/chapter1.tex"
    thesis.parent.mkdir()
    for place in (thesis, tmp_path / "old.txt"):
        place.write_text("mine")
        os.utime(place, (1, 1))
    folder = own_folder(Settings(uploads=tmp_path))
    upload = folder / "sha/photo.jpg"
    upload.parent.mkdir()
    upload.touch()
    os.utime(upload, (1, 1))
    for swept in (folder, tmp_path, tmp_path / "thesis"):
        sweep(swept, max_age_seconds=0)
    assert thesis.exists()
    assert (tmp_path / "old.txt").exists()
    assert not upload.exists()


@pytest.mark.parametrize("kind", ["a link", "open to others", "full of other files"])
def test_a_folder_that_others_could_have_prepared_is_not_used(tmp_path, monkeypatch, kind):
    """The default name is known, and the folder of temporary files is open to all users of the machine."""
    treasure = tmp_path / "treasure"
    treasure.mkdir(mode=0o700)
    (treasure / "a.txt").write_text("mine")
    os.utime(treasure / "a.txt", (1, 1))

    def prepare(prepared: Path) -> None:
        if kind == "a link":
            prepared.symlink_to(treasure)
        elif kind == "open to others":
            prepared.mkdir()
            prepared.chmod(0o777)
        else:
            treasure.rename(prepared)
            treasure.symlink_to(prepared)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prepare(tmp_path / f"cifar-space-{os.geteuid()}")
    folder = own_folder(Settings(uploads=None))
    assert folder.parent.name.startswith("cifar-space-")
    assert folder.parent.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0
    sweep(tmp_path / f"cifar-space-{os.geteuid()}", max_age_seconds=0)
    assert (treasure / "a.txt").read_text() == "mine"

    named = tmp_path / "named"
    named.mkdir()
    (named / "cifar-uploads").symlink_to(treasure)
    with pytest.raises(SettingsError, match="set CIFAR_UPLOADS to another folder"):
        own_folder(Settings(uploads=named))
    with pytest.raises(SettingsError, match=r"CIFAR_UPLOADS='.*' cannot be written: Not a directory\."):
        own_folder(Settings(uploads=treasure / "a.txt" / "uploads"))


def test_without_the_setting_uploads_lie_in_a_private_folder_that_all_workers_find(tmp_path, monkeypatch):
    """A later server finds it again, and deletes what an earlier one left behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = own_folder(Settings(uploads=None))
    assert folder == own_folder(Settings(uploads=None)) == tmp_path / f"cifar-space-{os.geteuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


def api_with_quota(folder: Path, quota_bytes: int, clock: Callable[[], float]) -> Callable[[str, int], int]:
    """Serve the upload route alone, which stores each body as a file; return a function that uploads bytes from an address."""
    settings = Settings(uploads=folder, max_uploads_bytes=quota_bytes, max_body_bytes=200_000)
    uploads = own_folder(settings)

    async def store(request: Request) -> PlainTextResponse:
        content = await request.body()
        (uploads / f"{time.monotonic_ns()}").write_bytes(content)
        return PlainTextResponse("stored")

    app = Starlette(routes=[Route("/gradio_api/upload", store, methods=["POST"])])

    quota = UploadQuota(app, uploads, settings, clock=clock)

    async def entry(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"request_id": "r"}
        await quota(scope, receive, send)

    def upload(address: str, size: int) -> int:
        pieces = iter([b"x" * size]) if address == "192.0.2.2" else b"x" * size  # chunked from one of them
        answer = TestClient(entry, client=(address, 1)).post("/gradio_api/upload", content=pieces)
        if answer.status_code != 200:
            assert (answer.json()["code"], int(answer.headers["retry-after"]) > 0) == ("uploads_full", True)
        return answer.status_code

    return upload


def test_uploads_over_the_quota_are_refused_before_they_are_read(tmp_path):
    """A stranger used to be able to fill the disk, and to keep others from the page. When old uploads are deleted, there is room again."""
    now = 1e6
    upload = api_with_quota(tmp_path, 1_000_000, lambda: now)
    for address in ("192.0.2.1", "192.0.2.2"):
        assert [upload(address, 140_000) for _ in range(4)] == [200, 200, 200, 507], "half of the quota for one"
    assert upload("192.0.2.3", 140_000) == 507, "all of it is taken"
    assert sum(file.stat().st_size for file in tmp_path.rglob("*")) < 1_000_000
    for file in (tmp_path / "cifar-uploads").iterdir():
        os.utime(file, (1, 1))
    sweep(tmp_path / "cifar-uploads")
    assert upload("192.0.2.3", 140_000) == 200
    now += UPLOAD_LIFETIME_SECONDS / 2
    assert upload("192.0.2.1", 140_000) == 507
    now += UPLOAD_LIFETIME_SECONDS
    assert upload("192.0.2.1", 140_000) == 200


async def by_mcp(address: str) -> None:
    async with mcp_session(address) as opened:
        for tool, arguments in (
            ("predict", {"image": DATA_URL}),
            ("explain", {"image": DATA_URL}),
            ("predict_batch", {"files": [DATA_URL]}),
        ):
            result = await opened.call_tool(tool, arguments)
            assert not result.isError, json.dumps(result.structuredContent)
