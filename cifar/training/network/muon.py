"""The optimizer of the fast recipe: Muon for convolutions, Nesterov momentum for all other variables.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the update of a matrix by the nearest
orthogonal matrix, approximated by a few Newton-Schulz steps. Keras 3.15 has a Muon that handles only dense kernels this way
and updates convolutions by AdamW. This one follows cifar10-airbench: it treats the kernel of a convolution as a matrix and
keeps its norm fixed.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_STEPS = 5


@keras.saving.register_keras_serializable("cifar")
class Muon(keras.optimizers.Optimizer):  # type: ignore[misc] # Keras is untyped
    """Updates kernels of four dimensions by Muon, everything else by stochastic gradient descent with momentum.

    Args:
        learning_rate: of the convolutions' kernels.
        momentum: of the convolutions' kernels.
        dense_ratio: the learning rate of dense kernels, as a multiple of `learning_rate`.
        vector_ratio: the same for biases and offsets.
        dtype: the number format of the Newton-Schulz steps, `float32` or `bfloat16`.
    """

    def __init__(
        self,
        learning_rate: float = 0.24,
        *,
        momentum: float = 0.6,
        dense_ratio: float = 1.7,
        vector_ratio: float = 110.0,
        dtype: str = "float32",
        name: str = "muon",
        **options: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name, **options)
        self.momentum, self.dense_ratio, self.vector_ratio, self.dtype = momentum, dense_ratio, vector_ratio, dtype

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self._momenta = [self.add_variable_from_reference(variable, name="momentum") for variable in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        velocity = self._momenta[self._get_variable_index(variable)]
        is_kernel = len(variable.shape) == 4
        momentum = self.momentum if is_kernel else 0.85
        self.assign(velocity, momentum * velocity + gradient)
        ahead = gradient + momentum * velocity
        if is_kernel:
            norm = ops.sqrt(float(variable.shape[-1])) / (ops.norm(ops.reshape(variable, (-1,))) + 1e-7)
            self.assign(variable, variable * norm - learning_rate * orthogonalize(ahead, self.dtype))
        else:
            ratio = self.dense_ratio if len(variable.shape) == 2 else self.vector_ratio
            self.assign_sub(variable, learning_rate * ratio * ahead)

    def get_config(self) -> dict[str, Any]:
        names = ("momentum", "dense_ratio", "vector_ratio", "dtype")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def orthogonalize(kernel: Any, dtype: str) -> Any:
    """Approximate the nearest semi-orthogonal matrix to a kernel `(height, width, in, out)`; returns the same shape."""
    a, b, c = _NEWTON_SCHULZ
    matrix = ops.transpose(ops.reshape(kernel, (-1, kernel.shape[-1])))
    matrix = ops.cast(matrix / (ops.norm(ops.reshape(matrix, (-1,))) + 1e-7), dtype)
    for _ in range(_STEPS):
        square = ops.matmul(matrix, ops.transpose(matrix))
        matrix = a * matrix + ops.matmul(b * square + c * ops.matmul(square, square), matrix)
    return ops.reshape(ops.cast(ops.transpose(matrix), kernel.dtype), kernel.shape)
