"""The content of `manifest.json`, which describes one exported version: names, sizes, figures and checksums."""

from __future__ import annotations

from typing import Any, Literal, Self

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


class PixelsInfo(BaseModel):
    """The way in which the exported graph prepares pixels for the Keras model, and how it was found."""

    model_config = ConfigDict(frozen=True)

    preparation: str = Field(description="As `--preprocessing` takes it, such as `0,255` or `caffe`.")
    found_by: str = Field(
        description="`run`, `version`, `option`, `layers`, `check` (labelled pictures) or `answer` (a person)."
    )
    evidence: str = Field(description="The layer that shows it, or the counts of the labelled pictures.")


class Figure(BaseModel):
    """A measured difference of the LiteRT file with int8 layers from the same file in float32."""

    model_config = ConfigDict(frozen=True)

    float32: float | None = Field(None, description="None for a figure that compares the two files.")
    int8: float | None = None
    difference: float
    bound: float = Field(description="The largest accepted difference, in either direction.")

    @classmethod
    def of(cls, difference: float, bound: float) -> Self:
        return cls(difference=round(difference, 6), bound=bound)

    @classmethod
    def between(cls, float32: float, int8: float, bound: float) -> Self:
        return cls(float32=round(float32, 6), int8=round(int8, 6), difference=round(int8 - float32, 6), bound=bound)

    @property
    def holds(self) -> bool:
        return abs(self.difference) <= self.bound


class Quantization(BaseModel):
    """The precision of the LiteRT file, and the measurements that decided it. The SavedModel is always float32."""

    model_config = ConfigDict(frozen=True)

    precision: Literal["float32", "int8"]
    reason: str = Field(description="One sentence.")
    int8_layers: list[str] = Field([], description="Names in the LiteRT file. The other layers compute in float32.")
    float32_layers: list[str] = Field([], description="Convolutions and dense layers that stay in float32.")
    images: int = Field(0, description="Number of images that were compared.")
    source: str | None = Field(None, description="Where these images came from.")
    figures: dict[str, Figure] = Field({}, description="By name; also those of int8 layers that were not accepted.")
    speedup: float | None = Field(None, description="Time of one image in float32, divided by that in int8.")
    milliseconds: float | None = Field(
        None, description="Of one image on one thread in int8, on the exporting machine."
    )


class ViewsInfo(BaseModel):
    """The number of views of photographs for `views=auto`, and the measurement that decided it.

    It is made with mirror images, on pictures that the network was not trained on: of letters or traffic signs, for example,
    the mirror image is another class.
    """

    model_config = ConfigDict(frozen=True)

    automatic: Literal[1, 6] = Field(description="Views that `auto` gives a photograph.")
    images: int = Field(description="Number of images that were compared.")
    source: str = Field(description="Where these images came from.")
    accuracy: float = Field(description="Of the images.")
    accuracy_with_mirror: float = Field(description="Of the mean of each image and its mirror image.")


class Manifest(BaseModel):
    """Everything that serving needs to know about a version, and its origin."""

    model_config = ConfigDict(frozen=True)

    format: int = Field(1, ge=1, le=2, description="2 for a multi-label version, which a reader of 1 would misread.")
    name: str
    version: int = Field(ge=1)
    created: str = Field(description="UTC, ISO 8601.")
    class_names: list[str] = Field(min_length=2)
    task: Literal["single_label", "multi_label"] = Field(
        "single_label",
        description="`single_label`: the probabilities of an image add up to 1. `multi_label`: each class has its own.",
    )
    image: ImageSpec
    input_range: tuple[float, float] | None = Field(
        description="The Keras model's input values for black and white. None: they differ between channels; see `pixels`."
    )
    pixels: PixelsInfo | None = Field(None, description="None: exported before 2026-11-26.")
    preprocessing: str
    metrics: dict[str, Any]
    training: dict[str, Any]
    parity: dict[str, Any]
    confidence: ConfidenceInfo | None = Field(None, description="None: not calibrated, and without OOD score.")
    images_by_class: dict[str, int] | None = Field(None, description="Number of training images. None: unknown.")
    reference: Reference | None = Field(None, description="None: drift cannot be measured.")
    quantization: Quantization | None = Field(
        None, description="None: without a LiteRT file, or exported before 2026-11-26; then the file is float32."
    )
    views: ViewsInfo | None = Field(None, description="None: not measured; `auto` is then one view.")
    libraries: dict[str, str]
    signatures: dict[str, SignatureInfo]
    files: dict[str, FileInfo]

    @property
    def is_multi_label(self) -> bool:
        return self.task == "multi_label"

    @property
    def gains_from_views(self) -> bool:
        """True if photographs get several views for `views=auto`."""
        return self.views is not None and self.views.automatic > 1

    @property
    def has_ood_score(self) -> bool:
        """True if each answer of the version ends with an out-of-distribution score."""
        return self.confidence is not None
