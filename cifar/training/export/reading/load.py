"""Loads a model of any format as a network."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cifar.errors import ExportError
from cifar.training.export.reading.definition import read_definition, read_loss
from cifar.training.export.reading.files import Format, recognise
from cifar.training.export.reading.keras_models import load_keras
from cifar.training.export.reading.network import Network, ReadOptions
from cifar.training.export.reading.saved_models import load_saved_model, load_version
from cifar.training.export.silence import quiet_libraries
from cifar.training.run.run_folder import MODEL

log = logging.getLogger(__name__)


def load(path: Path, options: ReadOptions) -> Network:
    """Load a run's model, a Keras file of any version, a SavedModel or a version of the registry.

    Raises:
        ExportError: `path` is something else, is damaged, or needs an option. The message names it.
    """
    with quiet_libraries():
        return _load(path, recognise(path), options)


def _load(path: Path, kind: Format, options: ReadOptions) -> Network:
    if kind is Format.RUN:
        return load_keras(path / MODEL, options, keras2=False)
    if options.signature and kind in {Format.KERAS2, Format.KERAS3}:
        raise ExportError(f"{path} is a Keras file, which has no signatures. Leave --signature out.")
    if kind is Format.VERSION:
        return load_version(path, options)
    if kind is Format.SAVED_MODEL or options.signature:
        return load_saved_model(path, options)
    if kind is Format.KERAS2_SAVED_MODEL:
        return _keras2_saved_model(path, options)
    return load_keras(path, options, keras2=kind is Format.KERAS2)


def _keras2_saved_model(path: Path, options: ReadOptions) -> Network:
    """Load a SavedModel of Keras 2 with its layers or, if they need Python code, by its signature."""
    try:
        network = load_keras(path, options, keras2=True)
        if network.layers is not None:
            return network
    except ExportError as error:
        log.debug("Loading %s by its signature: %s", path, error)
        if options.imports:
            raise
    training: Any = {}
    with suppress(ModuleNotFoundError, ValueError):
        _, training = read_definition(path)
    return replace(load_saved_model(path, options), loss=read_loss(training, options.output))
