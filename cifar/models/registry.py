"""The folder of exported models: which versions there are, what each holds, and whether it is what was exported.

    saved_model/<name>/<n>/          a SavedModel; <name>/ is a TensorFlow Serving base path as it stands
    saved_model/<name>/<n>/manifest.json   written last: a version without it is not one

Reads files and needs no TensorFlow. A SavedModel is code, so a version is loaded only when every file has the
SHA-256 that its manifest states.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cifar.errors import BadParameter, VersionNotFound, VersionUnusable
from cifar.images.spec import ImageSpec

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
"""As long as callers may ask for one, and as the records' database can hold it."""


class TensorInfo(BaseModel):
    """One input or output of a signature; `None` in `shape` is a free dimension."""

    dtype: str
    shape: list[int | None]


class SignatureInfo(BaseModel):
    """What a signature of the SavedModel takes and gives, by tensor name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


class FileInfo(BaseModel):
    """What a file of the version must be."""

    bytes: int
    sha256: str


class ConfidenceInfo(BaseModel):
    """How the version's probabilities were calibrated, and its out-of-distribution score made."""

    model_config = ConfigDict(frozen=True, extra="allow")

    temperature: float = Field(gt=0, description="What the logits are divided by, within the graph.")
    method: str
    threshold: float = Field(description="A higher `ood_score` counts as out of distribution.")
    held_out_images: int = Field(0, description="How many images the temperature was fitted on.")


class Bins(BaseModel):
    """How often a number was in which range; values on an edge belong to the range above it."""

    model_config = ConfigDict(frozen=True)

    edges: list[float] = Field(description="Between the ranges, ascending.")
    counts: list[int] = Field(description="One more than edges.")

    @model_validator(mode="after")
    def _refuse_what_does_not_fit(self) -> Self:
        if len(self.counts) != len(self.edges) + 1 or sorted(self.edges) != self.edges:
            raise ValueError("counts must be one more than edges, and edges ascend")
        return self


class Reference(BaseModel):
    """What the version answered to images it was not fitted on, to compare photos in use with."""

    model_config = ConfigDict(frozen=True)

    images: int = Field(ge=1)
    source: str = Field(description="Which images.")
    labels: dict[str, int] = Field(description="Images by the label given, in class order.")
    confidence: Bins
    brightness: Bins = Field(description="Mean of the model's input, in [0, 1].")
    contrast: Bins = Field(description="Its standard deviation.")
    in_distribution: int | None = Field(description="Images like those of the training; None: it cannot tell.")


class Manifest(BaseModel):
    """`manifest.json`: all that serving needs to know of a version, and where it came from."""

    model_config = ConfigDict(frozen=True)

    format: int = Field(1, ge=1, le=1, description="Raised when an old reader would misread a new manifest.")
    name: str
    version: int = Field(ge=1)
    created: str = Field(description="UTC, ISO 8601.")
    class_names: list[str] = Field(min_length=2)
    image: ImageSpec
    input_range: tuple[float, float] = Field(description="What the Keras model takes for black and white.")
    preprocessing: str
    metrics: dict[str, Any]
    training: dict[str, Any]
    parity: dict[str, Any]
    confidence: ConfidenceInfo | None = Field(None, description="None: not calibrated, and without `ood_score`.")
    images_by_class: dict[str, int] | None = Field(None, description="Training images; None: not known.")
    reference: Reference | None = Field(None, description="None: drift cannot be told.")
    libraries: dict[str, str]
    signatures: dict[str, SignatureInfo]
    files: dict[str, FileInfo]


@dataclass(frozen=True)
class Version:
    """One complete version on disk."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The model's name, which is its folder's."""
        return self.manifest.name

    @property
    def number(self) -> int:
        """The version, which is its folder's name."""
        return self.manifest.version

    def verify(self) -> None:
        """Compare every file with the manifest.

        Raises:
            VersionUnusable: names the file that is missing, changed or not listed.
        """
        listed = self.manifest.files
        for relative, info in listed.items():
            file = self.path / relative
            if not file.is_file():
                raise VersionUnusable(f"{self._shown(relative)} is listed in {MANIFEST} but missing. {_EXPORT_AGAIN}")
            if sha256(file) != info.sha256:
                raise VersionUnusable(
                    f"{self._shown(relative)} is not the file that was exported: its SHA-256 differs. {_EXPORT_AGAIN}"
                )
        for file in model_files(self.path):
            relative = file.relative_to(self.path).as_posix()
            if relative not in listed:
                raise VersionUnusable(f"{self._shown(relative)} is not listed in {MANIFEST}. {_EXPORT_AGAIN}")

    def _shown(self, relative: str) -> str:
        """A file's path within the registry: callers over HTTP need not know where that is."""
        return f"{self.name}/{self.number}/{relative}"


_EXPORT_AGAIN = "Restore the version, or remove its folder and export again."


class Registry:
    """The versions of one model, read from disk at every call: what is there is what counts."""

    def __init__(self, root: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise BadParameter(f"A model's name has letters, digits, '.', '-' and '_', and is a folder; got {name!r}.")
        self.base = root / name
        self.name = name

    def numbers(self) -> list[int]:
        """The complete versions, ascending. A folder without a manifest is an export that did not finish."""
        return sorted(
            int(path.name) for path in self._folders() if is_version_number(path.name) and (path / MANIFEST).is_file()
        )

    def problems(self) -> dict[str, str]:
        """Folders that are no usable version, by their manifest: name to sentence. Hidden ones are exports under way."""
        return {path.name: sentence for path in self._folders() if (sentence := self._problem(path))}

    def get(self, number: int | None = None) -> Version:
        """One version by number, or the highest complete one. Checksums are the caller's to `verify()` before loading.

        Raises:
            VersionNotFound: no such version; says which there are.
            VersionUnusable: the folder is there but is not a complete version.
        """
        numbers = self.numbers()
        if number is None and numbers:
            number = numbers[-1]
        if number is None:
            raise VersionNotFound(
                f"No version of {self.name} in {self.base}. Export one: python -m cifar export runs/NAME --name {self.name}"
            )
        path = self.base / str(number)
        if number not in numbers:
            if path.is_dir():
                raise VersionUnusable(self._problem(path))
            there = ", ".join(map(str, numbers)) or "none"
            raise VersionNotFound(f"{self.name} has no version {number}; there are: {there}.")
        version = Version(path, _read_manifest(path / MANIFEST, shown=f"{self.name}/{number}/{MANIFEST}"))
        if (version.name, version.number) != (self.name, number):
            raise VersionUnusable(
                f"{self.name}/{number} holds {version.name} version {version.number}: a version must not be moved or renamed."
            )
        return version

    def get_folder(self, folder_name: str) -> Version:
        """One version by the name of its folder.

        Raises:
            VersionUnusable: the name is not a whole number, or see `get`.
        """
        if not is_version_number(folder_name):
            raise VersionUnusable(self._problem(self.base / folder_name))
        return self.get(int(folder_name))

    def _folders(self) -> list[Path]:
        if not self.base.is_dir():
            return []
        return sorted(path for path in self.base.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _problem(self, path: Path) -> str:
        if not is_version_number(path.name):
            return f"{self.name}/{path.name} is not a version: the folder's name must be a whole number like 1 or 12, of at most nine digits."
        if not (path / MANIFEST).is_file():
            return (
                f"{self.name}/{path.name} has no {MANIFEST}, so its export did not finish. Remove it and export again."
            )
        try:
            self.get(int(path.name))
        except VersionUnusable as error:
            return str(error)
        return ""


def model_files(folder: Path) -> list[Path]:
    """Every file of a version but its manifest, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def sha256(file: Path) -> str:
    """The hexadecimal SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_version_number(name: str) -> bool:
    """Whether a folder's name is that of a version: 1, 2, 3, ... in plain digits."""
    return bool(_NUMBER.fullmatch(name))


def _read_manifest(file: Path, *, shown: str) -> Manifest:
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise VersionUnusable(f"{shown} is not a usable manifest: {where}: {first['msg']}. {_EXPORT_AGAIN}") from error
    except OSError as error:
        raise VersionUnusable(f"{shown} cannot be read: {error.strerror}.") from error
