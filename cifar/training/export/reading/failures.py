"""Turns exceptions of Keras and TensorFlow, whose messages can contain a whole model, into one sentence."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from cifar.errors import ExportError

log = logging.getLogger(__name__)

_MAX_CHARACTERS = 200

_UNKNOWN = re.compile(
    r"Could not locate (?:class|function) '([^']+)'|Unknown [a-z ]+:? ?'([^']+)'|Unknown [a-z ]+: ?([A-Za-z_>]\w*)"
    r"|parent module ([\w.]+) cannot be imported|Could not deserialize class '([^']+)' because its parent module"
    r"|name '(\w+)' is not defined"
)
"""Messages of both versions of Keras about a class or function that they do not know, and of Lambda layers about a name."""

_AS_SAVED_MODEL = (
    "In the Python that wrote the file, save a SavedModel instead: model.export(FOLDER), or with Keras 2 "
    "model.save(FOLDER, save_format='tf')."
)
_COMPILED_CODE = f"has a Lambda layer whose code another version of Python compiled. {_AS_SAVED_MODEL}"
_KNOWN = {
    "bad marshal data": _COMPILED_CODE,
    "unknown opcode": _COMPILED_CODE,
    "`TFSMLayer`": "only wraps a SavedModel folder (TFSMLayer). Export that folder in its place.",
}
"""The end of the sentence about a file, by words in the exception."""


_HOMES = {
    "preprocess_input": "keras.applications.mobilenet_v2",
    "KerasLayer": "tensorflow_hub",
    "FixedDropout": "efficientnet.tfkeras",
    "CastToFloat32": "autokeras",
}
"""Modules that define classes and functions of many published models."""


def first_sentence(error: BaseException) -> str:
    """Return the first meaningful sentence of an exception. The whole text goes to the debug log."""
    log.debug("The whole message:", exc_info=error)
    innermost = re.split("Exception encountered: |Example error message for object .*", str(error))[-1]
    lines = [line.strip() for line in innermost.splitlines()]
    lines = [
        line for line in lines if line and not line.startswith(("Exception encountered", "Arguments received", "•"))
    ]
    first = re.sub(r"\x1b\[[0-9;]*m|\{\{.*?\}\} ?", "", lines[0] if lines else type(error).__name__)
    first = re.split(r"(?<=[.!?]) (?=[A-Z{\[])", first)[0]
    return first if len(first) <= _MAX_CHARACTERS else first[: _MAX_CHARACTERS - 4].rstrip() + " ..."


def loading_error(
    source: object, error: Exception, *, custom: Mapping[str, str], imports: tuple[str, ...]
) -> ExportError:
    """Return the error for a model that Keras cannot load, with the option that helps if there is one.

    `custom` are the classes that the file uses and that neither Keras nor the imported modules define, with their modules.
    """
    text = str(error)
    if "Lambda" in text and ("safe_mode" in text or "unsafe" in text):
        return lambda_refused(source)
    if known := next((sentence for words, sentence in _KNOWN.items() if words in text), None):
        return ExportError(f"{source} {known}")
    unknown = _UNKNOWN.search(text)
    name = next(iter(custom), None) or (
        unknown and next(group for group in unknown.groups() if group).rpartition(">")[2]
    )
    if not name or name.startswith(("keras.", "tf_keras.")):
        return ExportError(f"Keras cannot load {source}: {first_sentence(error)}\n{_AS_SAVED_MODEL}")
    log.debug("The whole message:", exc_info=error)
    if imports:
        return ExportError(
            f"{source} uses {name}, which {', '.join(imports)} does not define. Name the file that does: --import FILE.py"
        )
    module = f" (the file calls it {custom[name]})" if name in custom else ""
    home = f" or, if it is that of {_HOMES[name]}, --import {_HOMES[name]}" if name in _HOMES else ""
    return ExportError(
        f"{source} uses {name}, whose code is not in the file. Name the Python file or module that defines it{module}, whose code "
        f"is then run: --import FILE.py{home}"
    )


def calling_error(shape: str, error: Exception) -> ExportError:
    """Return the error for a model that cannot be called with images of a shape."""
    if missing := re.search(r"name '(\w+)' is not defined", str(error)):
        return ExportError(
            f"The model has a Lambda layer that uses {missing[1]}, which is not in the file. Name the Python file or module that defines "
            "it, whose code is then run: --import FILE.py"
        )
    return ExportError(f"The model cannot take images of {shape}: {first_sentence(error)}")


def lambda_refused(source: object) -> ExportError:
    """Return the error for a model that holds code."""
    return ExportError(
        f"{source} has a Lambda layer, that is, Python code in the file, which could do anything on this machine. "
        "If you trust its author, run that code: --allow-lambda"
    )
