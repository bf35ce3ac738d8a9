"""Recognises a model's format by its content. Names prove little: people rename files, and Git LFS leaves pointers in their place."""

from __future__ import annotations

import json
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

import h5py

from cifar.errors import ExportError


class Format(Enum):
    """The formats that can be exported."""

    RUN = "a finished run"
    VERSION = "a version of the registry"
    SAVED_MODEL = "a SavedModel"
    KERAS2_SAVED_MODEL = "a SavedModel of Keras 2"
    KERAS3 = "Keras 3"
    KERAS2 = "Keras 2"


HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"
_AGAIN = "Download or save it again."
_EXPECTED = "Expected a Keras model: a .keras file, an .h5 file or a SavedModel folder."

_NO_ARCHITECTURE = "holds weights without the architecture. Build the model in Python, call load_weights on it, and save it whole: model.save('model.keras')"
_PYTORCH = f"is a PyTorch file. {_EXPECTED} PyTorch models cannot be exported here."
_PICKLE = f"is a Python pickle, which runs code when it is loaded and is therefore never read. {_EXPECTED}"
_JSON_ALONE = (
    "is JSON: at most the architecture without the weights. In Python: model_from_json(text), load_weights(FILE), "
    "model.save('model.keras'). TensorFlow.js models cannot be exported here."
)
_PAGE = (
    "is a web page, not a model: the download answered with a page, such as a sign-in. Download the file in a browser."
)
_CODE = "is Python code, not a model. Run it, and save the model in it: model.save('model.keras')"
_WEIGHTS_INDEX = ".weights.json"
"""The end of the name of the list of files over which Keras 3 spreads large weights."""
_WEIGHTS = ".weights.h5"
"""Ending of the files in which Keras 3 stores weights alone."""
_LFS_START = b"version https://git-lfs"
_LFS = "is a Git LFS pointer of a few lines; the model itself was not downloaded. Fetch it: git lfs pull"


def _archive(kind: str) -> str:
    return f"is a {kind} archive. Unpack it, and name the model inside."


# Other files that users name instead of a model: the position and value of their first bytes, and the end of the sentence about them.
_OTHERS = (
    (0, _LFS_START, _LFS),
    (0, b"\x1f\x8b", _archive("gzip")),
    (0, b"Rar!", _archive("RAR")),
    (0, b"7z\xbc\xaf", _archive("7z")),
    (0, b"BZh", _archive("bzip2")),
    (257, b"ustar", _archive("tar")),
    (0, b"\x93NUMPY", f"is a NumPy array. {_EXPECTED}"),
    (0, b"GGUF", f"is a GGUF file, of a language model. {_EXPECTED}"),
    (4, b"TFL3", f"is a LiteRT (TFLite) file, which cannot be turned back into a network. {_EXPECTED}"),
    (8, b'{"', f"is a safetensors file, that is, weights without the architecture. {_EXPECTED}"),
    *((0, b"\x80" + bytes([protocol]), _PICKLE) for protocol in (2, 3, 4, 5)),
)
_BY_SUFFIX = {
    ".onnx": f"is an ONNX file. {_EXPECTED}",
    ".pb": "is a TensorFlow graph. Name the folder of a SavedModel, which holds saved_model.pb and variables/.",
    ".ipynb": _CODE,
    ".py": _CODE,
    ".index": _NO_ARCHITECTURE,
    ".data-00000-of-00001": _NO_ARCHITECTURE,
    ".pt": _PYTORCH,
    ".pth": _PYTORCH,
}
"""Formats whose first bytes are not unique, by the ending of the name."""


def recognise(path: Path) -> Format:
    """Return the format of a file or folder, judged by its content.

    Raises:
        ExportError: it does not exist, is damaged, or is no model. The message says what it is and what to do.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        checkpoint = path.with_name(f"{path.name}.index").is_file()
        raise ExportError(f"{path} {_NO_ARCHITECTURE if checkpoint else f'does not exist. {_EXPECTED}'}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}.") from error
    if head.startswith(HDF5):
        return _hdf5(path)
    if head.startswith(ZIP):
        return _zip(path)
    raise ExportError(f"{path} {_what_else(path, head)}")


def _folder(path: Path) -> Format:
    if (path / "saved_model.pb").is_file():
        _check_saved_model(path)
        if (path / "manifest.json").is_file():
            return Format.VERSION
        by_keras2 = b"_tf_keras_" in (path / "saved_model.pb").read_bytes()  # the class of an object in it
        return Format.KERAS2_SAVED_MODEL if by_keras2 else Format.SAVED_MODEL
    if (path / "config.json").is_file() and (path / "metadata.json").is_file():
        return _keras_version(path, _json((path / "metadata.json").read_bytes(), path))
    if (path / "config.json").is_file() and "config" in _json((path / "config.json").read_bytes(), path):
        return Format.RUN
    inside = [
        entry
        for entry in sorted(path.iterdir())
        if (entry.suffix in {".keras", ".h5", ".hdf5"} and not entry.name.endswith(_WEIGHTS))
        or (entry / "saved_model.pb").is_file()
    ]
    if inside:
        raise ExportError(
            f"{path} is a folder of models. Name one: {', '.join(str(entry) for entry in inside[:3])}{', ...' if len(inside) > 3 else ''}"
        )
    if (path / "checkpoint").is_file() or any(path.glob("*.index")) or any(path.glob(f"*{_WEIGHTS}")):
        raise ExportError(f"{path} {_NO_ARCHITECTURE}")
    raise ExportError(
        f"{path} is neither a run (it has no config.json of one) nor a SavedModel (it has no saved_model.pb). {_EXPECTED}"
    )


def _check_saved_model(path: Path) -> None:
    """Refuse a SavedModel whose files were not copied or downloaded whole."""
    files = [path / "saved_model.pb", *sorted((path / "variables").glob("*"))]
    for file in files:
        with file.open("rb") as opened:
            head = opened.read(len(_LFS_START))
        if head == _LFS_START:
            raise ExportError(f"{file} {_LFS}")
        if not head:
            raise ExportError(f"{file} is empty. {_AGAIN}")


def _hdf5(path: Path) -> Format:
    try:
        with h5py.File(path, "r") as file:
            if "model_config" in file.attrs:
                return _keras_version(path, {"keras_version": file.attrs.get("keras_version", b"1")})
            names = set(file)
            weights = "layer_names" in file.attrs or names & {"layers", "_layer_checkpoint_dependencies", "vars"}
    except OSError as error:
        raise ExportError(
            f"{path} is an HDF5 file that is cut off or damaged ({path.stat().st_size:,} bytes). {_AGAIN}"
        ) from error
    if weights:
        raise ExportError(f"{path} {_NO_ARCHITECTURE}")
    raise ExportError(f"{path} is an HDF5 file without a Keras model in it. {_EXPECTED}")


def _zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            metadata = archive.read("metadata.json") if "metadata.json" in names else b""
            damaged = archive.testzip() if "config.json" in names else None
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise ExportError(
            f"{path} is a zip file (as .keras files are) that is cut off or damaged ({path.stat().st_size:,} bytes). {_AGAIN}"
        ) from error
    if damaged:
        raise ExportError(f"{path} is damaged: {damaged} in it has another checksum. {_AGAIN}")
    if "config.json" in names and metadata:
        return _keras_version(path, _json(metadata, path))
    if any(name.endswith("data.pkl") for name in names):
        raise ExportError(f"{path} {_PYTORCH}")
    if names and all(name.endswith(".npy") for name in names):
        raise ExportError(f"{path} {_NO_ARCHITECTURE}")
    models = [name for name in names if name.endswith((".keras", ".h5", ".hdf5", "saved_model.pb"))]
    if models:
        raise ExportError(f"{path} is an archive. Unpack it, and name the model inside: {models[0]}")
    raise ExportError(
        f"{path} is a zip file without a Keras model in it: it has no config.json and metadata.json. {_EXPECTED}"
    )


def _keras_version(path: Path, metadata: dict[str, Any]) -> Format:
    version = metadata.get("keras_version", "")
    text = version.decode(errors="replace") if isinstance(version, bytes) else str(version)
    number = text.partition(".")[0]
    if number == "3":
        return Format.KERAS3
    if number in {"1", "2", ""}:
        return Format.KERAS2
    raise ExportError(f"{path} was written by Keras {text[:20]}, which is newer than Keras 3, which is used here.")


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ExportError(
            f"{path} is damaged: its metadata.json or config.json is not JSON ({error}). {_AGAIN}"
        ) from error
    return found if isinstance(found, dict) else {}


def _what_else(path: Path, head: bytes) -> str:
    """Describe a file that is neither HDF5 nor zip, as the end of a sentence."""
    if not head.strip(b"\0"):
        return f"is empty. {_AGAIN}" if not head else f"holds zeros only. {_AGAIN}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return _PAGE
    if path.name.endswith(_WEIGHTS_INDEX):
        return _NO_ARCHITECTURE
    known = _BY_SUFFIX.get(path.suffix.lower()) or (_JSON_ALONE if text.startswith((b"{", b"[")) else None)
    found = (sentence for start, magic, sentence in _OTHERS if head[start:].startswith(magic))
    return known or next(found, f"is not a Keras model, judged by its first bytes ({head[:8].hex(' ')}). {_EXPECTED}")
