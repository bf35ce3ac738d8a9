"""Chooses the layers that compute in int8: those that save time and hardly change the answers.

Dynamic-range quantization: weights are stored as int8, and the inputs of a layer are rounded to int8 for each image, so no
calibration images are needed. The change of the answers is measured (docs/decisions.md).
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer import qtyping, quantizer
from tqdm import tqdm

from cifar.cpus import available_cpus
from cifar.errors import ExportError
from cifar.models.engines import litert_from
from cifar.models.manifest import Figure, Quantization
from cifar.training.export.litert.held_out import HeldOut
from cifar.training.export.litert.judge import MIN_IMAGES, Judge

Precision = Literal["auto", "float32", "int8"]

MIN_SPEEDUP = 1.2

_MIN_SHARE = 0.005
"""Layers with a smaller share of the multiplications are not tried, because they save no time."""
_SECONDS = 30
"""Approximate time, with all processors, of all sensitivities together, and of all comparisons of the search together."""
_SENSITIVITY_IMAGES = (16, 256)
"""The fewest and the most images that the sensitivity of one layer is measured on."""
_TIMING_ROUNDS = 15
_TIMING_SECONDS = 0.01
_OPERATIONS = {
    schema.BuiltinOperator.CONV_2D: qtyping.TFLOperationName.CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED: qtyping.TFLOperationName.FULLY_CONNECTED,
}
"""Operations with a fast int8 kernel in LiteRT. A depthwise convolution is slower in int8 than in float32."""


@dataclass(frozen=True)
class Layer:
    """A layer that can compute in int8."""

    name: str
    """The names of its output tensor in the file, joined with semicolons where the converter fused several."""
    operation: qtyping.TFLOperationName
    multiplications: int
    """For one image."""

    @property
    def short_name(self) -> str:
        """The path of the layer in the network, without the parts that the converter added."""
        parts = self.name.split(";")
        own = next((part for part in parts if part.rpartition("/")[2].startswith(("convolution", "MatMul"))), parts[0])
        return own.removeprefix("StatefulPartitionedCall/").rpartition("/")[0] or own


def choose_precision(
    content: bytes,
    precision: Precision,
    held_out: HeldOut,
    *,
    classes: int,
    multi_label: bool = False,
    has_score: bool = False,
) -> tuple[bytes, Quantization]:
    """Return the LiteRT file to export, and the reason for its precision.

    `content` is the float32 file, with one input of one image; `float32` leaves it as it is. With `auto` and `int8`, layers compute
    in int8 if the file then stays within `judge.BOUNDS` and is at least `MIN_SPEEDUP` times as fast, on at least `MIN_IMAGES`
    images. A progress bar shows the search, which takes seconds to about two minutes.

    Raises:
        ExportError: `precision` is `int8`, and no int8 file was accepted. The message says why.
    """
    if precision == "float32":
        return content, _float32("float32 was requested.")
    result, quantization = _search(Judge(content, held_out, classes, multi_label, has_score))
    if precision == "int8" and quantization.precision != "int8":
        raise ExportError(
            f"The LiteRT file stays in {quantization.reason} No version was written. --precision auto exports it in float32."
        )
    return result, quantization


def _search(judge: Judge) -> tuple[bytes, Quantization]:
    content, held_out = judge.float_file, judge.held_out
    if len(held_out.images) < MIN_IMAGES:
        return content, _float32(
            f"float32, because int8 must be compared on at least {MIN_IMAGES} images, and there are {len(held_out.images)} "
            f"({held_out.source})."
        )
    layers = quantizable(content)
    if not layers:
        return content, _float32("float32, because no layer has an int8 form.")
    try:
        return _try(judge, layers)
    except Exception as error:  # the quantizer and LiteRT raise several types for a network that they cannot handle
        return content, _float32(f"float32, because this network cannot be quantized ({type(error).__name__}).")


def _try(judge: Judge, layers: Sequence[Layer]) -> tuple[bytes, Quantization]:
    content, held_out = judge.float_file, judge.held_out
    everything = quantized(content, layers)
    seconds, fastest = seconds_per_image([content, everything], held_out.images[:1])
    if (speedup := seconds / fastest) < MIN_SPEEDUP:
        return content, _too_slow(speedup)
    steps = 1 + math.ceil(math.log2(len(layers)))
    affordable = _affordable(seconds, 2 * (steps + 1), MIN_IMAGES, len(held_out.images))
    judge = replace(judge, held_out=held_out.some(affordable))
    with tqdm(total=len(layers) + steps, desc="trying int8", unit=" files", disable=None, leave=False) as bar:
        chosen, figures = layers, judge.figures(everything)
        bar.update()
        if not _hold(figures):
            ordered = _by_sensitivity(judge, layers, seconds, bar)
            chosen, accepted = _longest(judge, ordered, bar)
            figures = accepted or figures
    about = {"images": len(judge.held_out.images), "source": held_out.source, "figures": figures}
    if not chosen:
        return content, _float32(f"float32, because int8 changes the answers too much: {_excess(figures)}.", **about)
    result = quantized(content, chosen)
    seconds, faster = seconds_per_image([content, result], held_out.images[:1])
    if (speedup := seconds / faster) < MIN_SPEEDUP:
        return content, _too_slow(speedup, **about)
    return result, Quantization(
        precision="int8",
        reason=f"int8 in {len(chosen)} of {len(layers)} large layers: {speedup:.1f} times as fast, and the answers stay "
        "within the bounds.",
        int8_layers=[layer.short_name for layer in layers if layer in chosen],
        float32_layers=[layer.short_name for layer in layers if layer not in chosen],
        speedup=round(speedup, 2),
        milliseconds=round(faster * 1000, 3),
        **about,
    )


def _float32(reason: str, **about: Any) -> Quantization:
    return Quantization(precision="float32", reason=reason, **about)


def _too_slow(speedup: float, **about: Any) -> Quantization:
    reason = f"float32, because int8 is {speedup:.2f} times as fast here; at least {MIN_SPEEDUP:g} is required."
    return _float32(reason, speedup=round(speedup, 2), **about)


def _hold(figures: dict[str, Figure]) -> bool:
    return all(figure.holds for figure in figures.values())


def _excess(figures: dict[str, Figure]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {figure.difference:+.4f} (at most {figure.bound:g})"
        for name, figure in figures.items()
        if not figure.holds
    )


def _affordable(seconds: float, runs: int, low: int, high: int) -> int:
    """Return how many images can be classified `runs` times in `_SECONDS`, from `low` to `high`."""
    return max(low, min(high, int(_SECONDS * available_cpus() / runs / seconds)))


def _by_sensitivity(judge: Judge, layers: Sequence[Layer], seconds: float, bar: tqdm[NoReturn]) -> list[Layer]:
    """Sort the layers by how much each alone changes the probabilities, relative to its multiplications."""
    low, high = _SENSITIVITY_IMAGES
    some = judge.held_out.some(_affordable(seconds, len(layers) + 1, low, high))
    alone = replace(judge, held_out=replace(some, labels=None), has_score=False)  # only the probabilities are compared
    costs = []
    for layer in layers:
        change = alone.figures(quantized(judge.float_file, [layer]))["mean_probability_difference"].difference
        costs.append(change / layer.multiplications)
        bar.update()
    return [layers[at] for at in np.argsort(costs, kind="stable")]


def _longest(
    judge: Judge, layers: Sequence[Layer], bar: tqdm[NoReturn]
) -> tuple[list[Layer], dict[str, Figure] | None]:
    """Find by bisection how many of the first layers, but not all, can be int8 together. Return these and their figures."""
    low, high, accepted = 0, len(layers), None
    while high - low > 1:
        middle = (low + high) // 2
        figures = judge.figures(quantized(judge.float_file, layers[:middle]))
        if _hold(figures):
            low, accepted = middle, figures
        else:
            high = middle
        bar.update()
    return list(layers[:low]), accepted


def quantizable(content: bytes) -> list[Layer]:
    """Return the layers of a LiteRT file that are worth trying, in the order of computation."""
    model = flatbuffer_utils.read_model_from_bytearray(content)
    graph = model.subgraphs[0]
    layers = []
    for operator in graph.operators:
        operation = _OPERATIONS.get(
            flatbuffer_utils.get_builtin_code_from_operator_code(model.operatorCodes[operator.opcodeIndex])
        )
        if operation is None:
            continue
        weights, output = graph.tensors[operator.inputs[1]], graph.tensors[operator.outputs[0]]
        if model.buffers[weights.buffer].data is None:
            continue  # the weights are computed, not constant
        multiplications = math.prod(output.shape) * math.prod(weights.shape) // weights.shape[0]
        layers.append(Layer(output.name.decode(), operation, multiplications))
    total = sum(layer.multiplications for layer in layers)
    return [layer for layer in layers if layer.multiplications >= _MIN_SHARE * total]


def quantized(content: bytes, layers: Sequence[Layer]) -> bytes:
    """Return the LiteRT file with int8 in these layers; unchanged for none."""
    if not layers:
        return content
    changed = quantizer.Quantizer(bytearray(content))
    for layer in layers:
        changed.add_dynamic_config(regex=f"^{re.escape(layer.name)};", operation_name=layer.operation, num_bits=8)
    with redirect_stderr(io.StringIO()):  # the quantizer draws a progress bar of its own for each large file
        return bytes(changed.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


def seconds_per_image(files: Sequence[bytes], image: np.ndarray) -> list[float]:
    """Return the processor time that each LiteRT file takes for one image on one thread: the median of alternating rounds."""
    functions = [litert_from(content) for content in files]
    calls = [max(1, int(_TIMING_SECONDS / _seconds(function, image, calls=1))) for function in functions]
    rounds = [
        [_seconds(function, image, calls=count) for function, count in zip(functions, calls, strict=True)]
        for _ in range(_TIMING_ROUNDS)
    ]
    medians: list[float] = np.median(rounds, axis=0).tolist()
    return medians


def _seconds(function: Callable[[np.ndarray], np.ndarray], image: np.ndarray, *, calls: int) -> float:
    function(image)  # the first call prepares the network
    started = time.thread_time()
    for _ in range(calls):
        function(image)
    return (time.thread_time() - started) / calls
