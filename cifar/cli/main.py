"""`python -m cifar COMMAND`. Data goes to stdout, messages to stderr.

Exit status: 0 success, 1 failure (stderr has the reason), 2 wrong arguments. Commands import what they need when they run,
so that `--help` needs no TensorFlow.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
from collections.abc import Sequence

import typer
from typer.main import get_command

from cifar import __version__
from cifar.cli import models, operate, training
from cifar.cli.arguments import expand
from cifar.cli.packages import missing
from cifar.console import say, with_notes
from cifar.errors import CifarError
from cifar.files import TEMPORARY_PREFIX

app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
for commands in (training, models, operate):
    app.add_typer(commands.app)

_LIBRARY_ADVICE = (
    "Please consider providing the trackable_obj",
    "You are saving your model as an HDF5 file",
    "triggered tf.function retracing",
)
"""Parts of log messages in which TensorFlow and Keras advise programmers. Commands do not print them."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Train, export and serve image classifiers."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not any(advice in record.getMessage() for advice in _LIBRARY_ADVICE))
    logging.basicConfig(format="cifar: %(message)s", handlers=[handler])
    command = get_command(app)
    try:
        with command.make_context("cifar", expand(sys.argv[1:] if argv is None else argv)) as root:
            command.invoke(root)
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        message = error.format_message().replace("Value error, ", "").rstrip(".")  # pydantic's prefix
        if context := getattr(error, "ctx", None):
            print(context.get_usage(), file=sys.stderr)
            message += f". See python -m {context.command_path} --help"
        say(f"{message}.")
        return error.exit_code
    except (CifarError, OSError) as error:
        say(_message(error) if isinstance(error, OSError) else with_notes(error))
        return 1
    except ModuleNotFoundError as error:
        if not (advice := missing(error)):
            raise
        say(advice)
        return 1
    except KeyboardInterrupt:
        say("stopped.")
        return 1
    return 0


_HIDDEN = re.compile(rf"(^|/)({re.escape(TEMPORARY_PREFIX)}.*|\.[^/]*$)")
"""Matches the end of a path that users do not know: a temporary file or folder with its content, or a hidden file."""


def _message(error: OSError) -> str:
    """Return a message with the path, the reason and what to do. For a hidden file, the message names its folder."""
    if error.strerror is None:  # raised by a library, with a message instead of an error number
        return str(error)
    path = isinstance(error.filename, str) and (_HIDDEN.sub("", error.filename) or ".")
    reason = f"{path} cannot be used: {error.strerror}." if path else f"{error.strerror}."
    if error.errno == errno.ENOSPC:
        return f"{reason} Free some space, then run the command again."
    permission = ", or give this user permission" if isinstance(error, PermissionError) else ""
    return f"{reason} Choose another path{permission}." if path else reason
