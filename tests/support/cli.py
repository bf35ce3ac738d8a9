"""Run `python -m cifar`, in this process or in one of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from unittest.mock import patch

from typer.core import TyperCommand

from cifar.cli.main import main
from cifar.settings import ROOT


def cifar(*arguments: object, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which saves the start of an interpreter."""
    words = [str(argument) for argument in arguments]
    with (
        patch.dict(os.environ, {name: str(value) for name, value in environment.items()}),
        chdir(ROOT),
        redirect_stdout(io.StringIO()) as stdout,
        redirect_stderr(io.StringIO()) as stderr,
    ):
        status = main(words)
    return subprocess.CompletedProcess(words, status, stdout.getvalue(), stderr.getvalue())


def cifar_process(*arguments: object, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a command in an interpreter of its own: for what libraries print, and for `serve`, which replaces its process."""
    return python("-m", "cifar", *arguments, **environment)


def python(*arguments: object, **environment: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def parsed(*arguments: str) -> dict[str, object]:
    """Return the options that a command line gives its command, without running the command."""
    options: dict[str, object] = {}
    with patch.object(TyperCommand, "invoke", lambda _, context: options.update(context.params)):
        assert main(arguments) == 0
    return options
