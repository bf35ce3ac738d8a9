"""Export a version again with another precision of its LiteRT file. Its network, and what is known of it, stay the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import tensorflow as tf

from cifar.files import temporary_folder
from cifar.models.engines import LITERT_FILE
from cifar.models.registry import MANIFEST, Registry, Version
from cifar.training.export.compare import Comparison
from cifar.training.export.litert.judge import HeldOut
from cifar.training.export.litert.quantize import Precision
from cifar.training.export.litert.write import write_litert
from cifar.training.export.publish import now, publish

_COMPARED = 64
"""Number of images on which the float32 file is compared with the SavedModel."""


def reexport(version: Version, images: HeldOut, registry: Path, name: str, *, precision: Precision = "auto") -> Version:
    """Write a copy of `version` as the next version of `name`, with a new LiteRT file made from its SavedModel.

    Args:
        version: the version to copy. The bytes of its SavedModel stay the same.
        images: to compare the new file on, with the SavedModel and, for int8, with the float32 file.
        registry: the folder of all models.
        name: of the model in it.
        precision: of the LiteRT file; see `choose_precision`.

    Raises:
        VersionUnusable: a file of `version` differs from its manifest.
        ExportError: the new file gives other answers, or int8 was requested and not accepted.
    """
    version.verify()  # before loading: a SavedModel can run any code
    base = Registry(registry, name).base
    base.mkdir(parents=True, exist_ok=True)
    with temporary_folder(base) as folder:
        shutil.copytree(version.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        (folder / LITERT_FILE).unlink(missing_ok=True)
        loaded = tf.saved_model.load(str(folder))
        some = images.some(_COMPARED).images
        expected = {
            name: value.numpy() for name, value in loaded.signatures["serving_uint8"](image=tf.constant(some)).items()
        }
        comparison = Comparison([f"image {number}" for number in range(len(some))], some, expected)
        manifest = version.manifest
        difference, quantization = write_litert(
            loaded.signatures,
            folder,
            comparison,
            name=name,
            image=manifest.image,
            class_names=manifest.class_names,
            multi_label=manifest.is_multi_label,
            precision=precision,
            held_out=images,
        )
        parity = manifest.parity | {"litert_max_abs_difference": difference}
        changed = {"name": name, "created": now(), "parity": parity, "quantization": quantization}
        return publish(folder, base, manifest.model_copy(update=changed))
