"""`cifar.files`: a crash, a second process or an exception never leaves half-written content."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cifar.files import (
    TEMPORARY_PREFIX,
    create_once,
    new_folder,
    remove_leftovers,
    replacing,
    sha256,
    temporary_folder,
)
from cifar.settings import ROOT

OLD, NEW = b"old " * 10_000, b"new " * 20_000


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process that runs `code`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


KILLED_AT_STEP = """
import os, signal, sys
from pathlib import Path
from cifar.files import create_once, new_folder, replacing

folder, step, function = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
NEW = b"new " * 20_000

def kill_at_step(event, arguments):
    global step
    if str(folder) in repr(arguments):
        step -= 1
        if step < 0:
            os.kill(os.getpid(), signal.SIGKILL)

fsync = os.fsync
def fsync_or_die(handle):
    kill_at_step("fsync", (str(folder),))
    fsync(handle)
os.fsync = fsync_or_die
sys.addaudithook(kill_at_step)

if function == "replacing":
    with replacing(folder / "file") as temporary:
        temporary.write_bytes(NEW)
elif function == "create_once":
    create_once(folder / "file", NEW)
else:
    with new_folder(folder / "new") as temporary:
        (temporary / "one").write_bytes(NEW)
        (temporary / "two").write_bytes(NEW)
"""


@pytest.mark.parametrize("function", ["replacing", "create_once", "new_folder"])
def test_a_process_killed_at_any_step_leaves_the_old_content_or_the_new(tmp_path, function):
    """The process is killed before its first system call on the folder, then before its second, and so on to the last."""
    before = [OLD] if function == "replacing" else []
    after = [NEW, NEW] if function == "new_folder" else [NEW]
    found, status, step = [], -signal.SIGKILL, 0
    while status == -signal.SIGKILL:
        folder = tmp_path / str(step)
        folder.mkdir()
        if before:
            (folder / "file").write_bytes(OLD)
        status = run(KILLED_AT_STEP, folder, step, function).wait()
        remove_leftovers(folder)
        found.append([path.read_bytes() for path in folder.rglob("*") if path.is_file()])
        assert found[-1] in (before, after), f"step {step}"
        step += 1
    assert status == 0
    assert step > 5, "the process was killed at several steps"
    assert (found[0], found[-1]) == (before, after)


def test_an_exception_leaves_the_old_content_and_no_temporary_file(tmp_path):
    """For example when the disk is full, or somebody presses Ctrl-C."""
    file = tmp_path / "table.csv"
    file.write_bytes(OLD)

    def fail(temporary: Path) -> None:
        temporary.write_bytes(NEW[:100])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), replacing(file) as temporary:
        fail(temporary)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "folder") as temporary:
        fail(temporary / "one")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert file.read_bytes() == OLD


def test_a_reader_never_sees_a_part_of_the_content(tmp_path):
    """One thread reads all the time while the file is replaced 200 times."""
    file = tmp_path / "file"
    file.write_bytes(OLD)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in [NEW, OLD] * 100:
        with replacing(file, durable=False) as temporary:
            temporary.write_bytes(content)
    done.set()
    reader.join()
    assert seen <= {OLD, NEW}


def test_a_replaced_file_keeps_its_permissions_unless_others_are_requested(tmp_path):
    """An operator's `chmod` lasts; a file with secrets is private from the first byte on."""
    file = tmp_path / "file"
    file.write_bytes(OLD)
    file.chmod(0o640)
    with replacing(file) as temporary:
        temporary.write_bytes(NEW)
    assert file.read_bytes() == NEW
    assert file.stat().st_mode & 0o777 == 0o640
    with replacing(file, mode=0o600) as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
        temporary.write_bytes(NEW)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files to another user")
def test_a_file_that_root_replaces_keeps_its_owner(tmp_path):
    """Otherwise the server, which does not run as root, could no longer read it."""
    file = tmp_path / "file"
    file.write_bytes(OLD)
    os.chown(file, 1234, 5678)
    with replacing(file, mode=0o600) as temporary:
        temporary.write_bytes(NEW)
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 5678)


def test_create_once_lets_exactly_one_of_several_processes_win(tmp_path):
    """Twenty rounds of four processes; the file has the whole content of the one that reports success."""
    code = (
        "import sys; from pathlib import Path; from cifar.files import create_once\n"
        "folder, me = Path(sys.argv[1]), sys.argv[2]\n"
        "print('ready', flush=True)\n"
        "while not (folder / 'start').exists(): pass\n"
        "for number in range(20):\n"
        "    try: create_once(folder / str(number), me.encode() * 1000); print(number)\n"
        "    except FileExistsError: pass\n"
    )
    processes = [run(code, tmp_path, me) for me in "abcd"]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "start").touch()
    won = [process.communicate()[0].split() for process in processes]
    assert sorted(int(number) for numbers in won for number in numbers) == list(range(20))
    for me, numbers in zip("abcd", won, strict=True):
        assert all((tmp_path / number).read_bytes() == me.encode() * 1000 for number in numbers)
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


def test_create_once_leaves_an_existing_file_untouched(tmp_path):
    """The caller decides what to do."""
    file = tmp_path / "file"
    create_once(file, OLD, mode=0o600)
    with pytest.raises(FileExistsError):
        create_once(file, NEW)
    assert file.read_bytes() == OLD
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_new_folder_does_not_replace_one_with_content(tmp_path):
    """The temporary folder is removed, too."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(OLD)
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_bytes(NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "file").read_bytes() == OLD


def test_a_temporary_folder_is_removed_unless_it_was_renamed(tmp_path):
    """The caller may choose the final name at the end."""
    with temporary_folder(tmp_path) as folder:
        (folder / "file").write_bytes(NEW)
    assert not list(tmp_path.iterdir())
    with temporary_folder(tmp_path) as folder:
        (folder / "file").write_bytes(NEW)
        folder.rename(tmp_path / "3")
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_the_temporary_file_is_hidden_and_has_the_suffix_of_the_file(tmp_path):
    """Matplotlib and NumPy choose the format by the suffix."""
    with replacing(tmp_path / "plot.png") as temporary:
        assert temporary.name.startswith(TEMPORARY_PREFIX)
        assert temporary.suffix == ".png"
        temporary.touch()


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    """Other hidden files are not the temporary files of this module."""
    for name in (f"{TEMPORARY_PREFIX}1.json", ".hidden", "file"):
        (tmp_path / name).touch()
    (tmp_path / f"{TEMPORARY_PREFIX}2" / "below").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "file"]


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path):
    """Four processes count to 50 each in one file; without the lock, they would overwrite each other's numbers."""
    (tmp_path / "count").write_text("0")
    code = (
        "import sys; from pathlib import Path; from cifar.files import locked\n"
        "count = Path(sys.argv[1]) / 'count'\n"
        "for _ in range(50):\n"
        "    with locked(Path(sys.argv[1]) / 'lock'): count.write_text(str(int(count.read_text()) + 1))\n"
    )
    processes = [run(code, tmp_path) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "200"


def test_sha256_is_that_of_the_content(tmp_path):
    """The same digits as `sha256sum` prints."""
    (tmp_path / "file").write_bytes(NEW)
    assert sha256(tmp_path / "file") == hashlib.sha256(NEW).hexdigest()
