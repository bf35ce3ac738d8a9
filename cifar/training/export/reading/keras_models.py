"""Loads models of Keras 3, and with `tf_keras` those of Keras 2."""

from __future__ import annotations

import importlib
import io
import json
import logging
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from cifar.errors import ExportError
from cifar.training.export.reading.definition import (
    custom_classes,
    functions_by_name,
    holds_code,
    read_definition,
    read_loss,
)
from cifar.training.export.reading.failures import first_sentence, lambda_refused, loading_error
from cifar.training.export.reading.files import HDF5
from cifar.training.export.reading.imports import (
    custom_objects,
    imported_names,
    known_objects,
    names_in_lambdas,
)
from cifar.training.export.reading.network import SEVERAL_INPUTS, Network, ReadOptions, choose_output, is_keras_own

log = logging.getLogger(__name__)

TF_KERAS = "tf-keras==2.21.0"
"""The package that reads Keras 2. It is installed without its requirements, because these include `tensorflow`, and `tensorflow-cpu` is enough."""


def load_keras(path: Path, options: ReadOptions, *, keras2: bool) -> Network:
    """Load a Keras file, or a folder that Keras wrote.

    Raises:
        ExportError: Keras cannot load it, or `tf_keras` is needed and not installed.
    """
    library = _keras2(path) if keras2 else keras
    try:
        architecture, training = read_definition(path)
    except (ValueError, KeyError, AttributeError) as error:
        raise ExportError(
            f"{path} is damaged: its configuration cannot be read ({first_sentence(error)}). Download or save it again."
        ) from error
    if holds_code(architecture) and not options.allow_lambda:
        raise lambda_refused(path)
    names = imported_names(options.imports, keras2=keras2)
    own = custom_objects(names)
    try:
        with names_in_lambdas(library, names):
            model = _load(library, path, architecture, own, options)
    except Exception as error:  # a layer or a reader of the file format may raise anything
        custom = {name: module for name, module in custom_classes(architecture).items() if name not in own}
        raise loading_error(path, error, custom=custom, imports=options.imports) from error
    _compute_in_float32(model)
    return _network(library, model, options, training)


def _keras2(path: Path) -> Any:
    try:
        return importlib.import_module("tf_keras")
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{path} was written by Keras 2. Install the package that reads it: pip install --no-deps {TF_KERAS}"
        ) from error


def _load(library: Any, path: Path, architecture: Any, own: dict[str, Any], options: ReadOptions) -> Any:
    objects = known_objects(library) | own
    readable = functions_by_name(architecture)

    def load(file: Path) -> Any:
        if library is not keras and file.suffix == ".h5" and readable != architecture:
            with library.utils.custom_object_scope(objects):
                model = library.models.model_from_json(json.dumps(readable))
            model.load_weights(str(file))
            return model
        return library.models.load_model(
            str(file), custom_objects=objects, compile=False, safe_mode=not options.allow_lambda
        )

    if path.is_dir() or path.suffix == (suffix := _suffix(path)):
        return load(path)
    with tempfile.TemporaryDirectory() as folder:  # Keras chooses the reader by the ending of the name
        link = Path(folder) / f"model{suffix}"
        link.symlink_to(path.resolve())
        return load(link)


def _suffix(path: Path) -> str:
    with path.open("rb") as file:
        return ".h5" if file.read(len(HDF5)) == HDF5 else ".keras"


def _compute_in_float32(model: Any) -> None:
    """Make a model that was trained in mixed precision compute in float32, the type of its weights: LiteRT needs it."""
    # Neither version of Keras has a public way to visit nested layers, and Keras 2 has none to set a policy.
    mixed = [layer for layer in model._flatten_layers() if layer.dtype_policy.name.startswith("mixed_")]  # noqa: SLF001
    if mixed:
        log.warning("The model was trained in mixed precision. It is exported in float32, the type of its weights.")
    for layer in mixed:
        if isinstance(layer, keras.Layer):
            layer.dtype_policy = "float32"
        else:
            layer._set_dtype_policy("float32")  # noqa: SLF001


def _network(library: Any, model: Any, options: ReadOptions, training: Any) -> Network:
    """Return one input and one output of a model."""
    if not getattr(model, "inputs", None) or not is_keras_own(model, "call"):
        return _subclassed(model, options, training)
    if len(model.inputs) != 1:
        inputs = ", ".join(each.name.partition(":")[0] for each in model.inputs)
        raise ExportError(
            f"Expected a model with one input; this model has {len(model.inputs)}: {inputs}. {SEVERAL_INPUTS}"
        )
    names = _output_names(model)
    output = choose_output(names, options.output, [tuple(each.shape) for each in model.outputs])
    loss = read_loss(training, output, names)

    def pick(answer: Any) -> Any:
        several = isinstance(answer, list | tuple)
        return answer[output] if isinstance(answer, dict) else answer[names.index(output)] if several else answer

    predict = _own_predict(model, pick)
    # The model may take and return lists or dictionaries; the new one takes and returns one tensor.
    model = library.Model(model.inputs[0], model.outputs[names.index(output)])
    return Network(
        call=lambda images: model(images, training=False),
        input_shape=tuple(model.inputs[0].shape),
        input_dtype=tf.as_dtype(model.inputs[0].dtype).name,
        variables=_variables(model),
        layers=model,
        loss=loss,
        predict=predict,
    )


def _own_predict(model: Any, pick: Callable[[Any], Any]) -> Callable[[Any], Any] | None:
    """Return the `predict` of a model, of which `pick` takes the one output, or None if it is that of Keras."""
    if is_keras_own(model, "predict", "predict_step", "make_predict_function"):
        return None

    def predict(images: Any) -> Any:
        with redirect_stdout(io.StringIO()):  # a progress bar
            return pick(model.predict(images))

    return predict


def _output_names(model: Any) -> list[str]:
    if not hasattr(model, "output_names"):  # a Sequential of Keras 3
        return ["output"]
    if isinstance(model.output, dict):
        return sorted(model.output)  # the order of `model.outputs`
    names = list(model.output_names)  # the outputs of one layer have the same name
    return [name if names.count(name) == 1 else f"{name}_{position}" for position, name in enumerate(names)]


def _subclassed(model: Any, options: ReadOptions, training: Any) -> Network:
    """Return the network of a model without a graph of layers: its outputs are known only after a call."""
    if not model.variables:
        raise ExportError(
            "The model was saved before it was built, so the file has no weights. Train it, or call it on one image, and save it again."
        )
    config: dict[str, Any] = getattr(model, "get_build_config", dict)() or {}
    shape = config.get("input_shape")
    if getattr(model, "inputs", None):
        shape = list(model.inputs[0].shape)

    def pick(answer: Any) -> Any:
        if not isinstance(answer, dict | list | tuple):
            return answer
        outputs = answer if isinstance(answer, dict) else {f"output_{i}": each for i, each in enumerate(answer)}
        return outputs[choose_output(list(outputs), options.output, [tuple(each.shape) for each in outputs.values()])]

    return Network(
        call=lambda images: pick(model(images, training=False)),
        input_shape=tuple(shape) if isinstance(shape, list | tuple) else None,
        input_dtype="float32",
        variables=_variables(model),
        loss=read_loss(training, options.output),
        predict=_own_predict(model, pick),
    )


def _variables(model: Any) -> tuple[tf.Variable, ...]:
    return tuple(variable.value if isinstance(variable, keras.Variable) else variable for variable in model.variables)
