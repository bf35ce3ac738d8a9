"""`export --also keras`: the network as a `.keras` file, which Keras loads for further training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cifar.errors import ExportError
from cifar.training.export.reading.classifier import Classifier, adapt
from cifar.training.export.reading.failures import first_sentence
from cifar.training.export.reading.load import load
from cifar.training.export.reading.network import ReadOptions

KERAS_FILE = "assets.extra/model.keras"


def check_layers(model: Classifier) -> None:
    """Raise an `ExportError` for a model that Keras cannot write: it is neither a Sequential nor a Functional model."""
    if model.layers is None:
        raise ExportError(
            "--also keras needs a Sequential or Functional model; this one is a SavedModel or a subclass of Model. Leave out keras."
        )


def write_keras(model: Classifier, file: Path, options: ReadOptions) -> Classifier:
    """Write the network of a classifier, which was read with these options, and load the file again as a classifier.

    The file takes the network's own input, without the scaling that the other files of a version contain, and returns its own
    outputs, without calibration.

    Raises:
        ExportError: Keras cannot write the model, or cannot load the file again.
    """
    check_layers(model)
    try:
        model.layers.save(file)
    except Exception as error:  # a layer may raise anything, and Keras 2 cannot write every model that it reads
        raise ExportError(
            f"This network cannot be written as a .keras file: {first_sentence(error).rstrip('.')}. Leave out keras."
        ) from error
    own = replace(options, output=None, signature=None, allow_lambda=True)  # the code in this file has run already
    return replace(adapt(load(file, own), own), logits=model.logits, alpha=model.alpha)
