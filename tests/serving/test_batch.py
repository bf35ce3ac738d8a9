"""`cifar.serving.inference.batch`: many files, archives, and the cost of hostile ones."""

from __future__ import annotations

import asyncio
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from support import hostile_files as zips
from support.pictures import encoded, noise
from support.servers import NO_CACHE

from cifar.errors import BadParameter, BatchTooLarge, MissingImage, Overloaded, VersionNotFound
from cifar.models.registry import Registry
from cifar.serving.inference.archives import Upload
from cifar.serving.inference.batch import Batches, Row, count_by_label
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.inference.service import Service
from cifar.settings import ROOT, Settings

PHOTO = zips.PHOTO


def service(**limits) -> Service:
    settings = Settings(**limits)
    registry = Registry(settings.registry, settings.model_name)
    versions = LoadedVersions(registry, settings)
    versions.load_default()
    return Service.over(RecordedClassifier(Classifier(versions, settings, NO_CACHE)), settings)


def rows_of(*contents: bytes | Path, **limits) -> list[Row]:
    """Classify files named `file 1`, `file 2`, ... as one batch."""
    uploads = [Upload(f"file {place}", content) for place, content in enumerate(contents, 1)]

    async def ask() -> list[Row]:
        async with service(**limits).batches.open(uploads) as batch:
            rows = [row async for row in batch.rows()]
            assert len(batch.entries) == len(rows)
            return rows

    return asyncio.run(ask())


def code_of(content: bytes, **limits) -> str:
    """Return the error code of a batch of one file."""
    (row,) = rows_of(content, **limits)
    assert row.answer is None
    return row.error.code


def test_a_batch_gives_each_image_the_answer_of_a_single_call(tmp_path):
    """Files in memory, files on disk and archives are answered in their order, with exactly equal labels and scores."""
    (tmp_path / "upload").write_bytes(PHOTO)
    cat = (ROOT / "examples/cat.jpg").read_bytes()
    rows = rows_of(tmp_path / "upload", cat, zips.zipped([("a/cat.jpg", cat), ("a/", b""), ("b.png", PHOTO)]))
    assert [row.name for row in rows] == ["file 1", "file 2", "a/cat.jpg", "b.png"]

    async def alone(payload: bytes) -> dict:
        return (await service().classifier.classify(payload, channel="rest")).as_json()

    for row, payload in zip(rows, [PHOTO, cat, cat, PHOTO], strict=True):
        single = asyncio.run(alone(payload))
        assert row.as_json()["top_k"] == single["top_k"]
        assert row.as_json()["label"] == single["predicted_class"]


def test_a_bad_file_among_twenty_is_a_row_with_its_error():
    """The other nineteen are answered."""
    files = [(f"{place}.png", encoded(noise(seed=place))) for place in range(20)]
    files[7] = ("7.png", b"just text")
    rows = rows_of(zips.zipped(files))
    bad = rows[7].as_json()
    assert (bad["name"], bad["code"], bad["label"], bad["top_k"]) == ("7.png", "unsupported_image", None, None)
    assert "whatever its name says" in bad["error"]
    assert sum(row.error is None for row in rows) == 19
    assert count_by_label(rows)[""] == 1
    assert sum(count_by_label(rows).values()) == 20
    graded_none = [row for row in rows if row.as_json()["grade"] == "none"]
    assert count_by_label(rows)["none"] == len(graded_none) > 0


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("truncated", zips.truncated(), "unreadable_archive"),
        ("encrypted", zips.encrypted(), "unreadable_archive"),
        ("damaged", zips.damaged(), "unreadable_archive"),
        ("nested", zips.zipped([("inner.zip", zips.zipped([("photo.png", PHOTO)]))]), "unreadable_archive"),
        ("lzma", zips.zipped([("photo.png", PHOTO)], zipfile.ZIP_LZMA), "unreadable_archive"),
        ("smaller than it is", zips.size_that_lies(100), "unreadable_archive"),
        ("larger than it is", zips.size_that_lies(len(PHOTO) + 1000), "unreadable_archive"),
        ("no zip at all", b"PK\x03\x04" + b"\xff" * 100, "unreadable_archive"),
        ("an empty image", zips.zipped([("photo.png", b"")]), "unreadable_image"),
    ],
)
def test_an_archive_that_cannot_be_unpacked_is_a_row_with_its_error(name, content, code):
    """The other files of the batch are answered."""
    rows = rows_of(content, PHOTO)
    assert [row.error and row.error.code for row in rows] == [code, None], name


def test_a_zip_bomb_is_refused_before_anything_is_unpacked():
    """Its size, its compression ratio and the total size are checked first, so it takes no memory."""
    bomb = zips.bomb_of_100_megabytes_of_zeros()
    rows_of(PHOTO)  # loads everything that is loaded once
    tracemalloc.start()
    assert code_of(bomb) == "too_large"
    assert code_of(bomb, max_body_bytes=200_000_000) == "unreadable_archive"
    with pytest.raises(BatchTooLarge, match="more than 99,999,999 bytes together"):
        rows_of(bomb, max_batch_bytes=99_999_999)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_an_archive_with_too_many_files_is_refused_as_a_whole():
    """Two examples: one file that is listed ten thousand times, and a table of contents that alone is huge."""
    with pytest.raises(BatchTooLarge, match="more than 1,000 files"):
        rows_of(zips.one_file_listed_ten_thousand_times())
    with pytest.raises(BatchTooLarge, match="more than 2 files"):
        rows_of(PHOTO, zips.zipped([("a.png", PHOTO), ("b.png", PHOTO)]), max_batch_files=2)
    large = zips.table_of_contents_of_40_megabytes()
    tracemalloc.start()
    with pytest.raises(BatchTooLarge, match="more than 1,000 files"):
        rows_of(large)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000, "it was not read"
    tracemalloc.stop()


def test_the_archives_of_a_call_together_take_little_memory_and_few_files():
    """Entries that are no images count for none, and a call of 9 kB can name one archive sixty times: it took half a gigabyte."""
    many = zips.archive_of_24000_folders()
    tracemalloc.start()
    with pytest.raises(BatchTooLarge, match="more than 1,000 files"):
        rows_of(*[many] * 16)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    with pytest.raises(BatchTooLarge, match="more than 16 archives"):
        rows_of(*[zips.zipped([("a.png", PHOTO)])] * 17)


def test_the_rows_of_bad_files_hold_nothing_of_them(tmp_path):
    """Each error held its traceback, and so the content of its file, as long as the table lived: 200 MB for one call."""
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8" + bytes(5_000_000))
    rows_of(PHOTO)  # loads everything that is loaded once
    tracemalloc.start()
    rows = rows_of(*[tmp_path / "bad.jpg"] * 20)
    assert tracemalloc.get_traced_memory()[0] < 10_000_000
    tracemalloc.stop()
    assert {row.error.code for row in rows} == {"unreadable_image"}


def test_a_photo_of_megabytes_in_an_archive_is_read():
    """The limit on the archive's table of contents held for the photos too."""
    photo = encoded(noise(1000, 1000))
    assert len(photo) > 2_000_000
    assert [row.error for row in rows_of(zips.zipped([("a.png", photo), ("b.png", PHOTO)]))] == [None, None]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_file_names_in_an_archive_are_shown_but_never_used_as_paths(tmp_path, monkeypatch):
    """Nothing is written, two files of one name are two rows, and control characters are replaced."""
    monkeypatch.chdir(tmp_path)
    names = ["../../evil.png", "/etc/evil.png", "C:\\evil.png", "same.png", "same.png", "a\nb\u202e.png", "x" * 300]
    rows = rows_of(zips.zipped([(name, PHOTO) for name in names]))
    assert [row.name for row in rows][:5] == names[:5]
    assert rows[5].name == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}.png"
    assert len(rows[6].name) == 200
    assert [row.error for row in rows] == [None] * 7
    assert list(tmp_path.iterdir()) == []


def test_files_that_operating_systems_add_to_archives_are_ignored():
    """They do not become rows. An archive with nothing else counts as empty."""
    rows = rows_of(zips.zipped([("__MACOSX/._a.png", b"x"), ("a.png", PHOTO), ("b/.DS_Store", b"x")]))
    assert [row.name for row in rows] == ["a.png"]
    with pytest.raises(MissingImage, match="No image came"):
        rows_of(zips.zipped([("__MACOSX/._a.png", b"x")]))
    with pytest.raises(MissingImage):
        rows_of()


def test_an_upload_that_has_expired_is_a_row_with_its_error(tmp_path):
    """Uploaded files are deleted after a while, and a page may stay open for longer."""
    rows = rows_of(tmp_path / "gone.png", PHOTO)
    assert [row.error and str(row.error) for row in rows] == ["The upload has expired. Choose the file again.", None]


@pytest.mark.parametrize(
    ("parameters", "error"), [({"top_k": 0}, BadParameter), ({"top_k": 99}, BadParameter), ({"version": 99}, VersionNotFound)]
)  # fmt: skip
def test_a_wrong_parameter_is_an_error_of_the_call_and_not_of_each_row(parameters, error):
    """Otherwise a thousand rows would have the same error."""

    async def ask() -> None:
        async with service().batches.open([Upload("a", PHOTO)] * 3) as batch:
            async for _ in batch.rows(**parameters):
                pass

    with pytest.raises(error):
        asyncio.run(ask())


def test_a_batch_that_is_cancelled_reads_no_more_files():
    """At most the few files that were being read are finished."""
    read = []

    async def ask() -> None:
        batches = service().batches
        async with batches.open([Upload("a", PHOTO)] * 500) as batch:
            batch.entries = [
                entry._replace(read=lambda entry=entry: (read.append(1), entry.read())[1]) for entry in batch.entries
            ]
            rows = batch.rows()
            async for _ in rows:
                break
            await rows.aclose()
            seen = len(read)
            await asyncio.sleep(0.1)
            assert len(read) == seen
        assert batches.open_batches == 0

    asyncio.run(ask())
    assert len(read) <= 8


def test_more_batches_than_the_limit_are_refused_at_once():
    """A batch over the limit gets a 503. After another batch has ended, the next one is accepted."""

    async def ask() -> None:
        batches = Batches(service().classifier, Settings(), max_batches=1)
        async with batches.open([Upload("a", PHOTO)]):
            with pytest.raises(Overloaded, match="1 batches are in progress"):
                async with batches.open([Upload("b", PHOTO)]):
                    pass
        async with batches.open([Upload("b", PHOTO)]) as batch:
            assert [row.name async for row in batch.rows()] == ["b"]

    asyncio.run(ask())


@pytest.mark.slow
def test_a_batch_waits_for_a_queue_slot_where_a_single_image_would_be_refused():
    """With three slots for eight images at a time, no row is an error."""
    rows = rows_of(*[encoded(noise(600, 600, seed=place)) for place in range(9)], max_waiting_images=3)
    assert [row.error for row in rows] == [None] * 9


@pytest.mark.slow
def test_a_thousand_images_need_the_memory_of_a_few(tmp_path):
    """Files are unpacked one at a time: here 1,000 pictures, 300 MB in all, from an archive on disk."""
    photo = encoded(noise(320, 320))
    (tmp_path / "photos.zip").write_bytes(zips.zipped([(f"{n}.png", photo) for n in range(1000)], zipfile.ZIP_STORED))
    assert (tmp_path / "photos.zip").stat().st_size > 250_000_000
    tracemalloc.start()
    rows = rows_of(tmp_path / "photos.zip", max_batch_bytes=10**9)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.error for row in rows] == [None] * 1000
    assert peak_bytes < 50_000_000


def test_batches_share_the_queue_slots_of_all_channels():
    """All channels have one limit together: a batch waits while another channel holds the only slot."""

    async def ask() -> None:
        whole = service(max_waiting_images=1)
        async with whole.batches.open([Upload("a", PHOTO)]) as batch:
            async with whole.classifier.queue.slot("rest"):
                first = asyncio.create_task(anext(batch.rows()))
                await asyncio.sleep(0.2)
                assert not first.done()
            assert (await first).error is None

    asyncio.run(ask())
