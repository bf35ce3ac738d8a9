"""A linear classifier on fixed features: multinomial logistic regression, and its cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

_ITERATIONS = 300


@dataclass(frozen=True)
class Head:
    """The weights of the last layer."""

    kernel: np.ndarray
    """`(width, classes)`."""
    bias: np.ndarray
    """`(classes,)`."""

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return `(n, classes)` for features `(n, width)`."""
        answers: np.ndarray = softmax(features @ self.kernel + self.bias, axis=1)
        return answers


def fit_head(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, strength: float) -> Head:
    """Minimize the weighted cross-entropy plus `strength / 2` times the squared norm of the kernel.

    The features `(n, width)` are centred and divided by their root mean square distance from the centre, so that one strength suits
    networks and data of any scale. The solution lies in the span of the pictures' features, and is sought there if there are
    fewer pictures than features. Labels and weights of the pictures are `(n,)`; each class from 0 to the highest has a picture.
    """
    centre = features.mean(axis=0, dtype=np.float64)
    centred = features - centre
    scale = np.sqrt(np.square(centred).sum(axis=1).mean())
    inputs, directions = centred / scale, np.eye(features.shape[1])
    if len(inputs) < len(directions):
        left, values, directions = np.linalg.svd(inputs, full_matrices=False)
        inputs = left * values
    classes = int(labels.max()) + 1
    truth, shares = np.eye(classes)[labels], (weights / weights.sum())[:, None]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = flat[classes:].reshape(-1, classes), flat[:classes]
        logs = log_softmax(inputs @ kernel + bias, axis=1)
        error = (np.exp(logs) - truth) * shares
        gradient = np.concatenate([error.sum(axis=0), (inputs.T @ error + strength * kernel).ravel()])
        return float(strength / 2 * np.square(kernel).sum() - (shares * truth * logs).sum()), gradient

    start = np.zeros(classes * (1 + inputs.shape[1]))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}).x
    kernel = directions.T @ found[classes:].reshape(-1, classes) / scale
    return Head(kernel.astype(np.float32), (found[:classes] - centre @ kernel).astype(np.float32))


def stratified_parts(labels: np.ndarray, parts: int, seed: int) -> list[np.ndarray]:
    """Return positions: the pictures of each class, divided evenly between `parts` parts, or as many as the smallest class has pictures."""
    random = np.random.default_rng(seed)
    parts = min(parts, int(np.bincount(labels).min()))
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, in random order within each
    dealt = np.empty(len(labels), int)
    dealt[order] = np.arange(len(labels)) % parts
    return [np.flatnonzero(dealt == part) for part in range(parts)]
