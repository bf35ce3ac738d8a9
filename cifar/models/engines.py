"""Engines: the libraries that run a version's network.

TensorFlow runs the SavedModel, LiteRT the LiteRT file that was exported with it, and TensorFlow Serving runs the SavedModel on
another host. Each is loaded as a function from `uint8` images `(n, height, width, channels)` to `float32` rows
`(n, classes)` of probabilities; for a version with OOD score, a last column holds that score. The function may be called
from several threads. The libraries are imported when an engine is loaded, not before.
"""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Callable
from importlib import util
from typing import Any, Literal

import numpy as np

from cifar.errors import VersionUnusable
from cifar.models.registry import Version
from cifar.models.tfserving_client import ModelServer
from cifar.settings import Settings

Infer = Callable[[np.ndarray], np.ndarray]
Engine = Literal["auto", "tensorflow", "litert"] | ModelServer

GAIN_FROM_BATCHES = frozenset({"tensorflow", "tfserving"})
"""The engines that answer a batch faster than its images one by one. LiteRT on one thread does not."""

REMOTE = frozenset({"tfserving"})
"""The engines that compute on another host, where several batches can be computed at the same time."""

LITERT_FILE = "assets.extra/model.tflite"
"""Path of the LiteRT file in a version's folder. TensorFlow Serving ignores `assets.extra`."""


def engine_of(settings: Settings) -> Engine:
    """Return the engine that the settings choose."""
    if settings.engine != "tfserving":
        return settings.engine
    return ModelServer(settings.tfserving_url or "")


def load_engine(version: Version, wanted: Engine, *, threads: int) -> tuple[str, Infer]:
    """Load a version's network, and return the engine's name and the function.

    Args:
        version: a version that was verified.
        wanted: `auto` is LiteRT if the version has a LiteRT file and the library is installed, since it starts in a tenth
            of a second; otherwise it is TensorFlow.
        threads: number of threads for TensorFlow. LiteRT computes in the threads that call it.

    Raises:
        VersionUnusable: the engine cannot run this version, or is not installed. The message says what to do.
    """
    if isinstance(wanted, ModelServer):
        return "tfserving", wanted.infer_for(version)
    name = wanted
    if wanted == "auto":
        has_litert = LITERT_FILE in version.manifest.files and util.find_spec("ai_edge_litert")
        name = "litert" if has_litert else "tensorflow"
    try:
        if name == "tensorflow":
            return name, _load_tensorflow(version, threads)
        return name, litert_from((version.path / LITERT_FILE).read_bytes())
    except ModuleNotFoundError as error:
        raise VersionUnusable(
            f"The engine {name} is not installed ({error.name} is missing). "
            f"{'Run: make training.' if name == 'tensorflow' else 'Install it, or set CIFAR_ENGINE=auto.'}"
        ) from error
    except Exception as error:  # the libraries raise whatever their file formats raise
        raise VersionUnusable(cannot_run(version, name, error)) from error


def cannot_run(version: Version, engine: str, error: Exception) -> str:
    """Return the message for a version whose files are unchanged and that fails nevertheless."""
    return (
        f"{version.name} version {version.number} is as it was exported, but {engine} cannot run it "
        f"({type(error).__name__}). Export it again."
    )


def _load_tensorflow(version: Version, threads: int) -> Infer:
    tf = _import_tensorflow()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)  # the layers form a chain, so no two can run at once
    except RuntimeError:  # TensorFlow has started already, for an earlier version
        pass
    loaded = tf.saved_model.load(str(version.path))
    signature = loaded.signatures["serving_uint8"]

    # The default argument keeps the weights alive; a signature alone does not.
    def infer(images: np.ndarray, _weights: object = loaded) -> np.ndarray:
        outputs = signature(image=tf.constant(images))
        probabilities: np.ndarray = outputs["probabilities"].numpy()
        if "ood_score" not in outputs:
            return probabilities
        return np.column_stack((probabilities, outputs["ood_score"].numpy()))

    return infer


def _import_tensorflow() -> Any:
    """Import TensorFlow without Keras, which a SavedModel does not need.

    TensorFlow imports Keras too, unless TF_USE_LEGACY_KERAS is set: then it imports the package `tf_keras`, or continues without
    it. Here it does not find it. Loading version 2 in a fresh process then takes 533 MB and 1.8 s of processor time
    instead of 646 MB and 2.6 to 2.9 s (TensorFlow 2.21, 2 cores, three runs each, 2026-11-26).
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    hidden = "tf_keras" not in sys.modules
    if hidden:
        sys.modules["tf_keras"] = None  # type: ignore[assignment] # the documented way to make an import fail
    try:
        import tensorflow as tf
    finally:
        # Both versions of Keras may be imported later, for an export.
        del os.environ["TF_USE_LEGACY_KERAS"]
        if hidden:
            sys.modules.pop("tf_keras", None)
    return tf


def litert_from(content: bytes) -> Infer:
    """Return the function that runs a LiteRT file, one image at a time: on one thread a batch is no faster.

    An interpreter cannot be shared by threads. Each call borrows an idle one, or makes one if all are busy.
    """
    from ai_edge_litert.interpreter import Interpreter

    idle: queue.SimpleQueue[Infer] = queue.SimpleQueue()

    def make() -> Infer:
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        (source,) = interpreter.get_input_details()
        # The converter invents names for the outputs. Their ranks differ: probabilities `(1, classes)`, OOD score `(1,)`.
        outputs = {len(output["shape"]): output["index"] for output in interpreter.get_output_details()}

        def run(image: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(source["index"], image[None])
            interpreter.invoke()
            row: np.ndarray = interpreter.get_tensor(outputs[2])
            return np.append(row, interpreter.get_tensor(outputs[1])[None], axis=1) if 1 in outputs else row

        return run

    def infer(images: np.ndarray) -> np.ndarray:
        try:
            run = idle.get_nowait()
        except queue.Empty:
            run = make()
        rows = [run(image) for image in images]
        idle.put(run)
        return np.concatenate(rows)

    return infer
