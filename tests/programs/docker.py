"""A replacement for docker in tests: a container is a small web server, and an image's name says how it behaves.

- `.../good@...` and `.../better@...` serve.
- `.../slow@...` takes four seconds to start.
- `.../never@...` runs, but never becomes ready.
- `.../once@...` becomes ready in the trial, but not after the switch.
- `.../cut@...` does too, and its start after the switch kills the deployment script.
- `.../absent@...` cannot be pulled.
- `.../app-good@...` and `.../app-cut@...` behave like these two, but serve with `python app.py` of this checkout.

The state is stored in files under $ENGINE_STATE; its file `images` has lines of a name and a digest.
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


def behaviour(image: str) -> str:
    return kind(image).removeprefix("app-")


def images() -> list[str]:
    file = STATE / "images"
    return file.read_text().splitlines(keepends=True) if file.exists() else []


def of_images(command: str, name: str) -> None:
    if command == "pull":
        sys.stdin.read()  # like a program that asks for a password: it must not read the script
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
    assert words[words.index("--restart") + 1] == ("no" if trial else "always"), "after a reboot a container is started"
    if (STATE / name).exists():
        sys.exit(f"the name {name} is taken")
    if behaviour(image) == "cut" and not trial:
        os.kill(os.getppid(), signal.SIGKILL)
        sys.exit("the script was killed")
    if kind(image) == "slow":
        time.sleep(4)
    launch(name, image, port, *variables(words))
    with (STATE / "history").open("a") as history:
        history.write(f"run {name} {kind(image)}\n")


def variables(words: list[str]) -> list[str]:
    """Return the variables NAME=VALUE of the file, then those of the command, which take precedence."""
    given = list(pairwise(words))
    files = [Path(value).read_text().split() for flag, value in given if flag == "--env-file"]
    return [*chain(*files), *(value for flag, value in given if flag == "--env")]


def launch(name: str, image: str, port: str, *given: str) -> None:
    assert not Path("/proc/self/fd/9").exists(), "the container would keep the lock"
    command = ["-c", "import time; time.sleep(600)"]
    if behaviour(image) in {"good", "better", "slow"} or (
        behaviour(image) in {"once", "cut"} and name.endswith("-try")
    ):
        (STATE / "site").mkdir(exist_ok=True)
        (STATE / "site" / "readyz").touch()
        command = ["-m", "http.server", port, "--bind", "127.0.0.1", "--directory", str(STATE / "site")]
        if behaviour(image) != kind(image):
            command = ["app.py"]
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
    """Return whether a container runs. If it does not exist, exit with an error as docker does."""
    if not (STATE / name).exists():
        sys.exit(f"no such container: {name}")
    stat = Path(f"/proc/{(STATE / name).read_text().split()[0]}/stat")
    return stat.exists() and not stat.read_text().rsplit(") ", 1)[1].startswith("Z")


def end(name: str) -> None:
    """Stop a container, if it exists."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int((STATE / name).read_text().split()[0])
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            if not alive(name):
                return  # ended, although its parent may not have waited for it yet
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Run one command of docker."""
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
