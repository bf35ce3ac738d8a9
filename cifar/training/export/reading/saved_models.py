"""Loads SavedModel folders by their signatures, without Keras."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tensorflow as tf
from pydantic import ValidationError

from cifar.errors import ExportError
from cifar.models.manifest import Manifest
from cifar.models.registry import MANIFEST, Version
from cifar.training.export.reading.failures import first_sentence
from cifar.training.export.reading.network import SEVERAL_INPUTS, Network, ReadOptions, choose_output

_DEFAULT_SIGNATURE = "serving_default"


def load_version(path: Path, options: ReadOptions) -> Network:
    """Load a version of the registry by its signature for float images, after a check of its files.

    Raises:
        VersionUnusable: a file was changed.
    """
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except ValidationError as error:
        raise ExportError(f"{path / MANIFEST} is no manifest of a version ({first_sentence(error)}).") from error
    Version(path, manifest).verify()
    if options.signature not in {None, _DEFAULT_SIGNATURE}:
        raise ExportError(f"A version of this project is exported by its {_DEFAULT_SIGNATURE}. Leave --signature out.")
    ours = ReadOptions(signature=_DEFAULT_SIGNATURE, output=options.output or "probabilities")
    network = load_saved_model(path, ours)
    return dataclasses.replace(network, input_range=(0.0, 1.0), class_names=tuple(manifest.class_names))


def load_saved_model(path: Path, options: ReadOptions) -> Network:
    """Load one signature of a SavedModel.

    Raises:
        ExportError: the folder cannot be loaded, or its signature must be named.
    """
    try:
        try:
            loaded = tf.saved_model.load(str(path))
        except ValueError:  # the folder has several graphs, for training and for serving
            loaded = tf.saved_model.load(str(path), tags=["serve"])
    except Exception as error:  # damaged files can make TensorFlow raise anything
        if "variables/variables" in str(error):
            raise ExportError(
                f"{path} is a SavedModel without its weights: variables/ is missing or cut off. Copy the whole folder."
            ) from error
        raise ExportError(f"TensorFlow cannot load {path}: {first_sentence(error)}") from error
    signatures = dict(loaded.signatures)
    name = _signature(path, signatures, options.signature)
    signature = signatures[name]
    ((argument, spec),) = _inputs(signature).items()
    outputs = {key: tuple(each.shape) for key, each in signature.structured_outputs.items()}
    output = choose_output(list(outputs), options.output, list(outputs.values()))

    # The default argument keeps the weights alive; a signature alone does not.
    def call(images: tf.Tensor, _weights: object = loaded) -> tf.Tensor:
        return signature(**{argument: images})[output]

    return Network(
        call=call,
        input_shape=tuple(spec.shape) if spec.shape.rank is not None else None,
        input_dtype=spec.dtype.name,
        variables=(*signature.variables, *_tables(loaded)),
    )


def _tables(loaded: Any) -> list[Any]:
    """Return the tables of a SavedModel, which often hold the names of classes: a signature needs them even for its other outputs."""
    found = tf.train.TrackableView(loaded).descendants()
    return [each for each in found if isinstance(each, tf.saved_model.experimental.TrackableResource)]


def _inputs(signature: Any) -> dict[str, tf.TensorSpec]:
    inputs: dict[str, tf.TensorSpec] = signature.structured_input_signature[1]
    return inputs


def _signature(path: Path, signatures: dict[str, Any], wanted: str | None) -> str:
    """Return the name of the signature that takes images: the wanted one, `serving_default`, or the only one."""
    described = "; ".join(
        f"{name}({', '.join(f'{key} {spec.dtype.name} {spec.shape}' for key, spec in _inputs(signature).items())})"
        for name, signature in list(signatures.items())[:5]
    )
    if not signatures:
        raise ExportError(
            f"{path} has no signature, so it cannot be called without its Python code. Save it with model.export(FOLDER)."
        )
    if wanted is not None and wanted not in signatures:
        raise ExportError(f"{path} has no signature {wanted!r}; it has {described}.")
    able = [name for name, signature in signatures.items() if _takes_an_image(signature)]
    if wanted is not None:
        able = [name for name in able if name == wanted]
    if not able:
        raise ExportError(f"{wanted or path} takes no single image of numbers: {described}. {SEVERAL_INPUTS}")
    if _DEFAULT_SIGNATURE in able:
        return _DEFAULT_SIGNATURE
    if len(able) > 1:
        raise ExportError(f"{path} has several signatures: {described}. Name one: --signature NAME")
    return able[0]


def _takes_an_image(signature: Any) -> bool:
    inputs = list(_inputs(signature).values())
    return len(inputs) == 1 and (inputs[0].dtype.is_floating or inputs[0].dtype.is_integer)
