"""Stands in for docker where there is none: a container is `python app.py` of this checkout, an image is a name that says how it behaves.

`.../good@...` serves; `.../slow@...` takes its time; `.../never@...` runs and is never ready; `.../once@...` serves once, beside the old one, and
never in its place; `.../absent@...` cannot be pulled. State is files under $ENGINE_STATE.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

STATE = Path(os.environ["ENGINE_STATE"])
ROOT = Path(__file__).resolve().parent.parent


def kind(image: str) -> str:
    return image.split("@", maxsplit=1)[0].rsplit("/", 1)[-1]


def pull(image: str) -> None:
    sys.stdin.read()  # as a program may that asks for a password: no part of the script must be there
    if kind(image) == "absent":
        sys.exit("manifest unknown")


def run(words: list[str]) -> None:
    name, image = words[words.index("--name") + 1], words[-1]
    port = words[words.index("--publish") + 1].split(":")[-2]
    assert "--read-only" in words, words
    assert ("--tmpfs /app/var" if name.endswith("-try") else "--volume cifar-records:/app/var") in " ".join(words), (
        words
    )
    assert not Path("/proc/self/fd/9").exists(), "the lock would live as long as the container"
    if (STATE / name).exists():
        sys.exit(f"the name {name} is taken")
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    behaves = kind(image)
    if behaves in {"good", "slow"} or (behaves == "once" and name.endswith("-try")):
        command = [sys.executable, "app.py"]
    if behaves == "slow":
        time.sleep(4)
    environment = {
        **os.environ,
        "CIFAR_PORT": port,
        "CIFAR_RECORDS": "false",
        "CIFAR_UPLOADS": str(STATE / f"{name}-uploads"),
    }
    with (STATE / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (STATE / name).write_text(f"{process.pid} {image}")
    with (STATE / "history").open("a") as history:
        history.write(f"run {name} {kind(image)}\n")


def end(name: str) -> None:
    """Stop a container, if it is there."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int((STATE / name).read_text().split()[0])
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].startswith("Z"):
                return  # ended; whether somebody has asked about it is another matter
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Do what one command of docker's does."""
    command, *words = sys.argv[1:]
    if command == "pull":
        pull(words[-1])
    elif command == "run":
        run(words)
    elif command == "stop":
        end(words[-1])
    elif command == "rm":
        end(words[-1])
        (STATE / words[-1]).unlink(missing_ok=True)
    elif command == "logs":
        print((STATE / f"{words[-1]}.log").read_text())
    else:
        sys.exit(f"engine: what is {command}?")


if __name__ == "__main__":
    main()
