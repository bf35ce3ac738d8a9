"""The content of `manifest.json`, which describes one exported version: names, sizes, figures and checksums."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cifar.images.spec import ImageSpec

OOD_THRESHOLD = 1.0
"""An image with a higher `ood_score` counts as out of distribution. Training scales the score of every version to it."""


class TensorInfo(BaseModel):
    """One input or output of a signature. `None` in `shape` is a dimension of any size."""

    dtype: str
    shape: list[int | None]


class SignatureInfo(BaseModel):
    """The inputs and outputs of one signature of the SavedModel, by tensor name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


class FileInfo(BaseModel):
    """Size and checksum of one file of the version."""

    bytes: int
    sha256: str


class ConfidenceInfo(BaseModel):
    """The calibration of the version's probabilities, and its out-of-distribution (OOD) score."""

    model_config = ConfigDict(frozen=True, extra="allow")

    temperature: float = Field(gt=0, description="The exported graph divides the logits by it.")
    method: str
    threshold: float = Field(ge=OOD_THRESHOLD, le=OOD_THRESHOLD, description="Always `OOD_THRESHOLD`.")
    held_out_images: int = Field(0, description="Number of images that the temperature was fitted on.")


class Bins(BaseModel):
    """A histogram. A value that equals an edge is counted in the bin above it."""

    model_config = ConfigDict(frozen=True)

    edges: list[float] = Field(description="The inner edges, ascending. The first and the last bin are open-ended.")
    counts: list[int] = Field(description="One more than there are edges.")

    @model_validator(mode="after")
    def _check_lengths_and_order(self) -> Self:
        if len(self.counts) != len(self.edges) + 1 or sorted(self.edges) != self.edges:
            raise ValueError("counts must be one more than edges, and edges ascend")
        return self


class Reference(BaseModel):
    """The reference distribution for drift: the version's answers to images that it was not trained on."""

    model_config = ConfigDict(frozen=True)

    images: int = Field(ge=1)
    source: str = Field(description="Where the images came from.")
    labels: dict[str, int] = Field(description="Number of images by predicted label, in class order.")
    confidence: Bins
    brightness: Bins = Field(description="Mean of the model's input, in [0, 1].")
    contrast: Bins = Field(description="Standard deviation of the model's input, in [0, 1].")
    in_distribution: int | None = Field(
        description="Number of images with an OOD score within the threshold. None for a version without OOD score."
    )


class Manifest(BaseModel):
    """Everything that serving needs to know about a version, and its origin."""

    model_config = ConfigDict(frozen=True)

    format: int = Field(1, ge=1, le=1, description="Raised when an old reader would misread a new manifest.")
    name: str
    version: int = Field(ge=1)
    created: str = Field(description="UTC, ISO 8601.")
    class_names: list[str] = Field(min_length=2)
    image: ImageSpec
    input_range: tuple[float, float] = Field(description="The Keras model's input values for black and white.")
    preprocessing: str
    metrics: dict[str, Any]
    training: dict[str, Any]
    parity: dict[str, Any]
    confidence: ConfidenceInfo | None = Field(None, description="None: not calibrated, and without OOD score.")
    images_by_class: dict[str, int] | None = Field(None, description="Number of training images. None: unknown.")
    reference: Reference | None = Field(None, description="None: drift cannot be measured.")
    libraries: dict[str, str]
    signatures: dict[str, SignatureInfo]
    files: dict[str, FileInfo]

    @property
    def has_ood_score(self) -> bool:
        """True if each answer of the version ends with an out-of-distribution score."""
        return self.confidence is not None
