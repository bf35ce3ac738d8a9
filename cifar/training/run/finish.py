"""The end of a run: measure what was trained, and write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from cifar.training.measures import measure
from cifar.training.network.architectures import build_model
from cifar.training.run.calibration import calibrated, read_confidence, write_confidence
from cifar.training.run.context import TrainingContext
from cifar.training.run.curves import save_curves
from cifar.training.run.reference import write_reference
from cifar.training.run.run_folder import METRICS, MODEL, Row, replacing, save_model, write_json

_SAMPLES = 64


def finish(work: TrainingContext, trained: keras.Model, history: list[Row], *, h5: bool) -> Path:
    """Measure the result and write it; `metrics.json` last."""
    dataset, run = work.dataset, work.run
    # Plain layers in float32: what served models compute in, and a file for anybody to load.
    model = build_model(work.config.arch, work.classes, image_shape=dataset.image_shape)
    model.set_weights(trained.get_weights())
    fitted, held_out = ((dataset.train_images[part], dataset.train_labels[part]) for part in (work.fit, work.held_out))
    write_confidence(run, model, fitted=fitted, held_out=held_out)
    confidence = read_confidence(run)
    write_reference(run, model, confidence, held_out=held_out[0], class_names=dataset.class_names)
    metrics: dict[str, Any] = {
        "validation_accuracy": round(history[-1]["val_accuracy"], 4),
        "fitted_images": len(work.fit),
        "validation_images": len(work.held_out),
        "parameters": model.count_params(),
        "training_seconds": round(sum(row["seconds"] for row in history), 1),
        "data_wait_share": round(sum(work.waited) / max(1e-9, sum(row["seconds"] for row in history)), 4),
        "precision": work.precision,
        "history": history,
    }
    if len(dataset.test_labels):
        probabilities = model.predict(dataset.test_images, batch_size=500, verbose=0)
        if confidence:
            probabilities = keras.ops.convert_to_numpy(calibrated(probabilities, confidence.temperature))
        test = measure(probabilities, dataset.test_labels, dataset.class_names)
        metrics |= {f"test_{name}": round(test[name], 4) for name in ("accuracy", "loss")}
        metrics |= {"test_images": test["images"], "test": test}
    samples = work.held_out[_spread(len(work.held_out))]
    with replacing(run / "samples.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=dataset.train_images[samples])
    with replacing(run / "curves.png") as temporary:
        save_curves(history, temporary)
    save_model(model, run / MODEL)
    if h5:  # last: Keras 3.15 writes a broken .keras file after an .h5 file of the same model
        save_model(model, run / "model.h5")
    write_json(run / METRICS, metrics)
    return run / MODEL


def _spread(count: int) -> np.ndarray:
    """Up to `_SAMPLES` positions, evenly spread, so that every class is likely among them."""
    return np.linspace(0, count - 1, min(_SAMPLES, count)).astype(int)
