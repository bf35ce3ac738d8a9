"""Stands in for docker where there is none: a container is `python app.py` of this checkout, an image is a name that says how it behaves.

`.../good@...` serves; `.../slow@...` takes its time; `.../never@...` runs and is never ready; `.../once@...` serves once, beside the old one, and
never in its place; `.../cut@...` too, and its start there is the death of the script; `.../absent@...` cannot be pulled. State is files under $ENGINE_STATE;
its file `images` has lines of a name and a digest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import chain, pairwise
from pathlib import Path

STATE = Path(os.environ["ENGINE_STATE"])
ROOT = Path(__file__).resolve().parent.parent.parent


def kind(image: str) -> str:
    return image.split("@", maxsplit=1)[0].rsplit("/", 1)[-1]


def images() -> list[str]:
    file = STATE / "images"
    return file.read_text().splitlines(keepends=True) if file.exists() else []


def of_images(command: str, name: str) -> None:
    if command == "pull":
        sys.stdin.read()  # as a program may that asks for a password: no part of the script must be there
        if kind(name) == "absent":
            sys.exit("manifest unknown")
    elif command == "images":
        print("".join(line for line in images() if line.startswith(f"{name} ")), end="")
    else:
        (STATE / "images").write_text("".join(line for line in images() if line.split() != name.split("@")))


def run(words: list[str]) -> None:
    name, image = words[words.index("--name") + 1], words[-1]
    port = words[words.index("--publish") + 1].split(":")[-2]
    trial = name.endswith("-try")
    assert "--read-only" in words, words
    assert ("--volume cifar-records:/app/var" in " ".join(words)) != trial, words
    assert words[words.index("--restart") + 1] == ("no" if trial else "always"), "a host that boots serves something"
    if (STATE / name).exists():
        sys.exit(f"the name {name} is taken")
    if kind(image) == "cut" and not trial:
        os.kill(os.getppid(), signal.SIGKILL)
        sys.exit("nobody is there any more")
    if kind(image) == "slow":
        time.sleep(4)
    launch(name, image, port, *variables(words))
    with (STATE / "history").open("a") as history:
        history.write(f"run {name} {kind(image)}\n")


def variables(words: list[str]) -> list[str]:
    """NAME=VALUE of the file, then those of the command, which win."""
    given = list(pairwise(words))
    files = [Path(value).read_text().split() for flag, value in given if flag == "--env-file"]
    return [*chain(*files), *(value for flag, value in given if flag == "--env")]


def launch(name: str, image: str, port: str, *given: str) -> None:
    assert not Path("/proc/self/fd/9").exists(), "the lock would live as long as the container"
    serves = kind(image) in {"good", "slow"} or (kind(image) in {"once", "cut"} and name.endswith("-try"))
    command = ["app.py"] if serves else ["-c", "import time; time.sleep(600)"]
    folders = {f"CIFAR_{each.upper()}": str(STATE / f"{name}-{each}") for each in ("uploads", "records_folder")}
    environment = {**os.environ, **folders, "CIFAR_PORT": port, **dict(each.split("=", 1) for each in given)}
    with (STATE / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (STATE / name).write_text(" ".join([str(process.pid), image, port, *given]))


def alive(name: str) -> bool:
    """Whether a container runs; one that is not there ends this process, as docker's does."""
    if not (STATE / name).exists():
        sys.exit(f"no such container: {name}")
    stat = Path(f"/proc/{(STATE / name).read_text().split()[0]}/stat")
    return stat.exists() and not stat.read_text().rsplit(") ", 1)[1].startswith("Z")


def end(name: str) -> None:
    """Stop a container, if it is there."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int((STATE / name).read_text().split()[0])
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            if not alive(name):
                return  # ended; whether somebody has asked about it is another matter
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Do what one command of docker's does."""
    command, *words = sys.argv[1:]
    name = words[-1]
    if command in {"pull", "images", "rmi"}:
        of_images(command, name)
    elif command == "run":
        run(words)
    elif command == "container":  # inspect
        print(str(alive(name)).lower())
    elif command == "rename":
        alive(words[0])
        (STATE / words[0]).rename(STATE / name)
    elif command == "start":
        if not alive(name):
            launch(name, *(STATE / name).read_text().split()[1:])
    elif command == "stop":
        end(name)
    elif command == "rm":
        end(name)
        (STATE / name).unlink(missing_ok=True)
    elif command == "logs":
        print((STATE / f"{name}.log").read_text())
    else:
        sys.exit(f"engine: what is {command}?")


if __name__ == "__main__":
    main()
