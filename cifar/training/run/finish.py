"""The end of a run: calibrate the trained model, measure it, and write all results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from cifar.console import say
from cifar.files import replacing
from cifar.format import percent
from cifar.training.data.dataset import Dataset
from cifar.training.data.split import evenly_spaced
from cifar.training.measures import balanced_accuracy, measure
from cifar.training.network.architectures import build_model
from cifar.training.run.calibration import FEWEST_HELD_OUT, Confidence, calibrated, without_score, write_confidence
from cifar.training.run.config import TrainingPlan
from cifar.training.run.curves import save_curves
from cifar.training.run.reference import write_reference
from cifar.training.run.run_folder import H5_MODEL, METRICS, MODEL, SAMPLES, Row, save_model, write_json

_SAMPLES = 64
_HELD_OUT_BYTES = 100_000_000
"""Limit for the held-out images that the run keeps, before compression: 665 of 224x224 pixels."""


def finish(
    plan: TrainingPlan, run: Path, trained: keras.Model, history: list[Row], *, h5: bool, waited_seconds: float
) -> None:
    """Measure the model after the last complete epoch, and write every result into the folder `run`, `metrics.json` last."""
    dataset = plan.dataset
    # Keras's own layers in float32: the format that is served, and a file that can be loaded without this package.
    model = build_model(plan.config.arch, plan.classes, image_shape=dataset.image_shape)
    model.set_weights(trained.get_weights())
    fitted, held_out = ((dataset.train_images[part], dataset.train_labels[part]) for part in (plan.fit, plan.held_out))
    confidence = write_confidence(run, model, fitted=fitted, held_out=held_out, photo_views=plan.config.photo_views)
    predicted = write_reference(run, model, confidence, held_out=held_out[0], class_names=dataset.class_names)
    training_seconds = sum(row["seconds"] for row in history)
    metrics: dict[str, Any] = {
        "validation_balanced_accuracy": round(balanced_accuracy(predicted, held_out[1]), 4),
        "fitted_images": len(plan.fit),
        "data_wait_share": round(waited_seconds / max(1e-9, training_seconds), 4),
        "precision": plan.precision,
    }
    write_results(run, model, dataset, history, metrics, confidence=confidence, held_out=plan.held_out, h5=h5)


def write_results(
    run: Path,
    model: keras.Model,
    dataset: Dataset,
    history: list[Row],
    metrics: dict[str, Any],
    *,
    confidence: Confidence | None,
    held_out: np.ndarray,
    h5: bool,
) -> None:
    """Measure the final model on the test part, and write samples, plots, model and, last, `metrics.json`.

    The model is of Keras's own layers, from pixels in [0, 255] to probabilities. The history has at least one row, `metrics` what
    is known of the training, and `held_out` the positions of the images that the validation figures are from.
    """
    metrics = {
        "validation_accuracy": round(history[-1]["val_accuracy"], 4),
        "validation_images": len(held_out),
        "parameters": model.count_params(),
        "training_seconds": round(sum(row["seconds"] for row in history), 1),
        **metrics,
        "history": history,
    }
    if len(dataset.test_labels):
        probabilities = model.predict(dataset.test_images, batch_size=500, verbose=0)
        if confidence:
            probabilities = keras.ops.convert_to_numpy(calibrated(probabilities, confidence.temperature))
        test = measure(probabilities, dataset.test_labels, dataset.class_names)
        metrics |= {f"test_{name}": round(test[name], 4) for name in ("accuracy", "balanced_accuracy", "loss")}
        metrics |= {"test_images": test["images"], "test": test}
    samples = held_out[evenly_spaced(len(held_out), _SAMPLES)]
    limit = max(_SAMPLES, _HELD_OUT_BYTES // dataset.train_images[0].nbytes)
    judged = held_out[evenly_spaced(len(held_out), limit)]
    with replacing(run / SAMPLES) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            images=dataset.train_images[samples],
            held_out_images=dataset.train_images[judged],
            held_out_labels=dataset.train_labels[judged],
        )
    with replacing(run / "curves.png") as temporary:
        save_curves(history, temporary)
    save_model(model, run / MODEL)
    if h5:  # after model.keras: Keras 3.15 writes a broken .keras file after an .h5 file of the same model
        save_model(model, run / H5_MODEL)
    write_json(run / METRICS, metrics)
    say(_figures(metrics))
    if len(held_out) < FEWEST_HELD_OUT:
        say(without_score(len(held_out)))


def _figures(metrics: dict[str, Any]) -> str:
    """Return the accuracies of a run in a sentence."""
    parts = [
        f"{part} {percent(metrics[f'{part}_accuracy'])}, balanced {percent(metrics[f'{part}_balanced_accuracy'])}, "
        f"{metrics[f'{part}_images']:,} images"
        for part in ("validation", "test")
        if f"{part}_accuracy" in metrics
    ]
    return f"Accuracy: {'; '.join(parts)}. The balanced accuracy is the mean over the classes."
