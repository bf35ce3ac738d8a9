"""What runs a version's network: TensorFlow its SavedModel, or LiteRT the file that was exported beside it.

An engine is a function from `uint8` images `(n, height, width, channels)` to `float32` probabilities `(n, classes)`, for
a version with a confidence followed by one column of `ood_score`. It is safe to call from several threads. The libraries are imported when an engine is loaded, not before.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import util
from typing import Literal

import numpy as np

from cifar.errors import VersionUnusable
from cifar.models.registry import Version
from cifar.models.tfserving_client import ModelServer
from cifar.settings import Settings

Infer = Callable[[np.ndarray], np.ndarray]
Engine = Literal["auto", "tensorflow", "litert"] | ModelServer

GAIN_FROM_BATCHES = frozenset({"tensorflow", "tfserving"})
"""The engines that answer a batch in less time than its images one by one. On one thread LiteRT does not."""

REMOTE = frozenset({"tfserving"})
"""The engines that compute elsewhere: several batches may be under way."""

LITERT_FILE = "assets.extra/model.tflite"
"""Where a version keeps its LiteRT file; TensorFlow Serving passes over this folder."""


def engine_of(settings: Settings) -> Engine:
    """Return the engine that the settings choose."""
    if settings.engine != "tfserving":
        return settings.engine
    return ModelServer(settings.tfserving_url or "", timeout_seconds=settings.tfserving_timeout_seconds)


def load_engine(version: Version, wanted: Engine, *, threads: int) -> tuple[str, Infer]:
    """Load a version's network.

    Args:
        version: verified files.
        threads: how many TensorFlow computes with; LiteRT computes in its callers' threads.
        wanted: `auto` takes LiteRT where the version has its file and the library is installed, since it starts in a
            tenth of a second, and TensorFlow otherwise.

    Returns:
        The engine's name, and the function.

    Raises:
        VersionUnusable: the engine cannot run this version, or is not installed; says what to do.
    """
    if isinstance(wanted, ModelServer):
        return "tfserving", wanted.infer_for(version)
    name = _choose(version) if wanted == "auto" else wanted
    try:
        return name, _load_tensorflow(version, threads) if name == "tensorflow" else _load_litert(version)
    except ModuleNotFoundError as error:
        raise VersionUnusable(
            f"The engine {name} is not installed ({error.name} is missing). Install it, or set CIFAR_ENGINE=auto."
        ) from error
    except Exception as error:  # the libraries raise whatever their file formats raise
        raise VersionUnusable(cannot_run(version, name, error)) from error


def cannot_run(version: Version, engine: str, error: Exception) -> str:
    """The sentence for a version whose files are right and that fails all the same."""
    return (
        f"{version.name} version {version.number} is as it was exported, but {engine} cannot run it "
        f"({type(error).__name__}). Export it again."
    )


def _choose(version: Version) -> str:
    has_file = LITERT_FILE in version.manifest.files
    return "litert" if has_file and util.find_spec("ai_edge_litert") else "tensorflow"


def _load_tensorflow(version: Version, threads: int) -> Infer:
    with _without_keras():
        import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)  # a chain of layers has nothing to run beside
    except RuntimeError:  # TensorFlow computes already, for a version loaded before
        pass
    loaded = tf.saved_model.load(str(version.path))
    signature = loaded.signatures["serving_uint8"]

    def infer(images: np.ndarray, _owner_of_the_weights: object = loaded) -> np.ndarray:
        outputs = signature(image=tf.constant(images))
        probabilities: np.ndarray = outputs["probabilities"].numpy()
        if "ood_score" not in outputs:
            return probabilities
        return np.column_stack((probabilities, outputs["ood_score"].numpy()))

    return infer


@contextmanager
def _without_keras() -> Iterator[None]:
    """Keep TensorFlow from importing Keras, which a SavedModel does not need: 65 MB and 0.7 s in each process."""
    if "keras" in sys.modules:
        yield
        return
    sys.modules["keras"] = None  # type: ignore[assignment]  # TensorFlow goes on when the import fails
    try:
        yield
    finally:
        del sys.modules["keras"]


def _load_litert(version: Version) -> Infer:
    if LITERT_FILE not in version.manifest.files:
        raise FileNotFoundError(LITERT_FILE)
    return litert_from((version.path / LITERT_FILE).read_bytes())


def litert_from(content: bytes) -> Infer:
    """Run a LiteRT file, one image at a time: on one thread a batch is no faster.

    An interpreter serves one call at a time; there are as many as there were calls at once.
    """
    from ai_edge_litert.interpreter import Interpreter

    idle: queue.SimpleQueue[tuple[Interpreter, int, int, int | None]] = queue.SimpleQueue()

    def make() -> tuple[Interpreter, int, int, int | None]:
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        (source,) = interpreter.get_input_details()
        # By rank: the converter gives outputs names of its own. Probabilities are `(1, classes)`, scores `(1,)`.
        outputs = {len(output["shape"]): output["index"] for output in interpreter.get_output_details()}
        return interpreter, source["index"], outputs[2], outputs.get(1)

    def infer(images: np.ndarray) -> np.ndarray:
        try:
            held = idle.get_nowait()
        except queue.Empty:
            held = make()
        interpreter, source, target, score = held
        rows = []
        for image in images:
            interpreter.set_tensor(source, image[None])
            interpreter.invoke()
            row = interpreter.get_tensor(target)
            rows.append(row if score is None else np.append(row, interpreter.get_tensor(score)[None], axis=1))
        idle.put(held)
        return np.concatenate(rows)

    return infer
