"""The corpus: small models of the kinds that people have, each with the answers that its author would see.

`cd tests && python -m support.corpus` writes the table of docs/models.md from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from support import small_models as models

Array = np.ndarray
ALL = (
    KERAS3 := "keras 3 .keras",
    H5 := "keras 3 .h5",
    FOLDER := "keras 3 folder",
    KERAS2 := "keras 2 .keras",
    H5_OF_KERAS2 := "keras 2 .h5",
    FOLDER_OF_KERAS2 := "keras 2 folder",
)
"""The forms in which a model can be saved."""


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def two_classes(probability: Array) -> Array:
    probability = probability.reshape(-1, 1)
    return np.concatenate([1 - probability, probability], axis=1)


def sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


@dataclass(frozen=True)
class Kind:
    """A kind of model."""

    says: str
    """The first cell of its row in the table."""
    build: Callable[[Any], Any]
    """From Keras (2 or 3) to a model."""
    shape: tuple[int, int, int] = models.SHAPE
    """Of the images that are served."""
    prepare: Callable[[Array], Any] = models.unchanged
    """The author's preparation of images from 0 to 1 before `predict`."""
    finish: Callable[[Any], Array] = models.unchanged
    """The author's conversion of the answer of `predict` to probabilities."""
    options: dict[str, Any] = field(default_factory=dict)
    """The options that an export of the model needs: fields of `ReadOptions`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `read_source`."""
    asks: str = ""
    """The option that the export needs, for the table."""
    refused: str = ""
    """Words of the message, for a kind that is refused."""
    forms: tuple[str, ...] = (KERAS3, H5_OF_KERAS2, FOLDER_OF_KERAS2)
    tolerance: float = 1e-5
    """Largest difference of a probability. Models that compute in 16 bits on their author's machine need a larger one."""


BINARY: Any = {"class_names": ("a", "b")}
LOGITS: Any = {"arguments": {"logits": True}, "asks": "--logits"}
LABEL: Any = {"options": {"output": "label"}, "asks": "--output NAME"}
SIZE: Any = {"options": {"image_size": (12, 12)}, "asks": "--image-size HEIGHT,WIDTH"}
OWN: Any = {"options": {"imports": ("own.py",)}, "asks": "--import FILE.py"}
FROM_LAYERS: Any = {"prepare": lambda images: images * 255, "arguments": {"input_range": None}}
"""The layers show that pixels are from 0 to 255."""

KINDS = {
    "sequential": Kind("Sequential, trained on values from 0 to 1", models.sequential, forms=ALL),
    "teachable_machine": Kind("Teachable Machine: a Sequential of Sequentials", models.teachable_machine, forms=ALL),
    "transfer": Kind(
        "Transfer learning: a base called with `training=False` inside a Functional model",
        models.transfer,
        forms=ALL[:-1],
    ),
    "augmentation": Kind(
        "Augmentation and other layers that act in training only, then Rescaling", models.augmentation, **FROM_LAYERS
    ),
    "one_sigmoid": Kind(
        "One sigmoid", lambda k: models.functional(k, "sigmoid", 1), finish=two_classes, arguments=BINARY, forms=ALL
    ),
    "one_logit": Kind(
        "One logit, compiled with `from_logits=True`",
        lambda k: models.compiled(models.functional(k, None, 1), k.losses.BinaryCrossentropy(from_logits=True)),
        finish=lambda z: two_classes(sigmoid(z)),
        arguments=BINARY,
    ),
    "one_logit_uncompiled": Kind(
        "One logit, not compiled",
        lambda k: models.functional(k, None, 1),
        finish=lambda z: two_classes(sigmoid(z)),
        arguments=BINARY | {"logits": True},
        asks="--logits",
    ),
    "logits": Kind(
        "Logits, compiled with `from_logits=True`",
        lambda k: models.compiled(models.functional(k, None), models.cross_entropy(k)),
        finish=softmax,
        forms=(KERAS3, H5, KERAS2, H5_OF_KERAS2, FOLDER_OF_KERAS2),
    ),
    "logits_uncompiled": Kind(
        "Logits, not compiled", lambda k: models.functional(k, None), finish=softmax, **LOGITS, forms=ALL
    ),
    "softmax_with_from_logits": Kind(
        "A softmax, compiled with `from_logits=True` by mistake",
        lambda k: models.compiled(models.functional(k), models.cross_entropy(k)),
    ),
    "ensemble": Kind(
        "The mean of several softmaxes, compiled with `from_logits=True` by mistake", models.ensemble, forms=(KERAS3,)
    ),
    "largest_of_sigmoids": Kind(
        "The largest of the sigmoids of all places in an image",
        models.largest_of_sigmoids,
        finish=two_classes,
        arguments=BINARY,
        forms=(KERAS3,),
    ),
    "log_softmax": Kind("log_softmax", lambda k: models.functional(k, "log_softmax"), finish=np.exp, forms=(KERAS3,)),
    "no_channel": Kind(
        "Input without a channel axis, `(28, 28)`",
        lambda k: k.Sequential([k.Input((28, 28)), *models.last_layers(k)]),
        shape=(28, 28, 1),
        prepare=lambda images: images[..., 0],
    ),
    "vector": Kind(
        "Input of a vector, `(784,)`",
        lambda k: k.Sequential([k.Input((784,)), k.layers.Dense(3, "softmax")]),
        shape=(28, 28, 1),
        prepare=lambda images: images.reshape(len(images), -1),
        options={"image_size": (28, 28)},
        asks="--image-size 28,28",
    ),
    "vector_of_colours": Kind(
        "Input of a vector of colours, `(3072,)`",
        lambda k: k.Sequential([k.Input((432,)), k.layers.Dense(3, "softmax")]),
        prepare=lambda images: images.transpose(0, 3, 1, 2).reshape(len(images), -1),
        options={"image_size": (3, 12, 12)},
        asks="--image-size HEIGHT,WIDTH,3` or `3,HEIGHT,WIDTH",
    ),
    "pixels_in_sequence": Kind(
        "Input of a sequence of pixels, `(784, 1)` or `(1024, 3)`",
        models.pixels_in_sequence,
        prepare=lambda images: images.reshape(len(images), -1, 3),
        **SIZE,
        forms=(KERAS3, H5_OF_KERAS2),
    ),
    "planes": Kind(
        "Input of a sequence for each colour, `(3, 1024)`",
        lambda k: k.Sequential([k.Input((3, 144)), k.layers.Conv1D(4, 1), *models.last_layers(k)]),
        prepare=lambda images: images.transpose(0, 3, 1, 2).reshape(len(images), 3, -1),
        **SIZE,
        forms=(KERAS3,),
    ),
    "rows": Kind(
        "Input of a sequence of rows, `(None, 28)`",
        models.rows,
        shape=(12, 12, 1),
        prepare=lambda images: images[..., 0],
        **SIZE,
        forms=(KERAS3, H5_OF_KERAS2),
    ),
    "any_size": Kind(
        "Input of any size, `(None, None, 3)`",
        lambda k: models.functional(k, shape=(None, None, 3)),
        **SIZE,
        forms=ALL,
    ),
    "resizing": Kind(
        "Input of any size that a Resizing layer makes one size",
        lambda k: models.functional(k, shape=(None, None, 3), before=k.layers.Resizing(9, 10)),
        shape=(9, 10, 3),
    ),
    "channels_first": Kind(
        "Channels first, `(3, 12, 12)`",
        lambda k: models.functional(k, shape=(3, 12, 12), before=k.layers.Permute((2, 3, 1))),
        prepare=lambda images: images.transpose(0, 3, 1, 2),
    ),
    "rgba": Kind(
        "RGBA",
        lambda k: models.functional(k, shape=(12, 12, 4)),
        prepare=lambda images: np.concatenate([images, np.ones_like(images[..., :1])], axis=-1),
    ),
    "fully_convolutional": Kind(
        "Fully convolutional, output `(1, 1, classes)`",
        lambda k: k.Sequential(
            [k.Input(models.SHAPE), k.layers.Conv2D(4, 3), k.layers.Conv2D(3, 10, activation="softmax")]
        ),
        finish=lambda answer: answer[:, 0, 0],
    ),
    "several_outputs": Kind("Several outputs", models.several_outputs, finish=lambda answer: answer[1], **LABEL),
    "dictionary_of_outputs": Kind(
        "A dictionary of outputs", models.dictionary_of_outputs, finish=lambda answer: answer["label"], **LABEL
    ),
    "outputs_of_one_layer": Kind(
        "Several outputs of one layer, which have the same name",
        models.outputs_of_one_layer,
        finish=lambda answer: answer[1][:, 0],
        options={"output": "split_1"},
        asks="--output NAME",
        forms=(KERAS3,),
    ),
    "losses_in_a_list": Kind(
        "Losses in a list, of which another output's takes logits",
        models.losses_in_a_list,
        finish=lambda answer: answer[1],
        **LABEL,
        forms=(KERAS3, H5_OF_KERAS2),
    ),
    "lambda_as_loss": Kind(
        "A loss that is a Python lambda",
        lambda k: models.compiled(models.functional(k), lambda _, answer: k.ops.mean(answer)),
        forms=(KERAS3,),
    ),
    "dictionary_of_inputs": Kind(
        "A dictionary with one input", models.dictionary_of_inputs, prepare=lambda images: {"image": images}
    ),
    "fixed_batch": Kind(
        "A fixed batch of one image",
        lambda k: models.functional(k, batch_size=1),
        forms=(KERAS3, H5, FOLDER, H5_OF_KERAS2),
    ),
    "uint8_input": Kind(
        "An input of `uint8`",
        models.uint8_input,
        prepare=lambda images: np.round(images * 255).astype(np.uint8),
        arguments={"input_range": (0.0, 255.0)},
    ),
    "mixed_precision": Kind(
        "Mixed precision", models.mixed_precision, finish=lambda answer: answer.astype(np.float32), tolerance=2e-3
    ),
    "bfloat16_logits": Kind(
        "Logits in bfloat16",
        lambda k: models.functional(k, None, dtype="bfloat16"),
        finish=lambda answer: softmax(answer.astype(np.float32)),
        **LOGITS,
        forms=(KERAS3,),
    ),
    "bfloat16_probabilities": Kind(
        "Probabilities in bfloat16",
        lambda k: models.functional(k, dtype="bfloat16"),
        finish=lambda answer: answer.astype(np.float32),
        tolerance=1e-2,
        forms=(KERAS3,),
    ),
    "own_layers": Kind("Layers and functions of the author's own", models.own_layers, **OWN),
    "subclass": Kind("A subclass of Model", models.subclass, **OWN, forms=(KERAS3, KERAS2)),
    "lambda_layer": Kind(
        "A Lambda layer",
        models.lambda_layer,
        options={"allow_lambda": True},
        asks="--allow-lambda",
        forms=(KERAS3, H5, KERAS2, H5_OF_KERAS2),
    ),
    "lambda_of_keras": Kind(
        "A Lambda layer of a `preprocess_input`",
        models.lambda_of_keras,
        **FROM_LAYERS,
        options={"allow_lambda": True, "imports": ("keras.applications.mobilenet_v2",)},
        asks="--import keras.applications.mobilenet_v2",
        forms=(KERAS3,),
    ),
    "unreadable_by_keras": Kind(
        "Activations and layers that Keras writes and cannot read by itself: `tf.nn.softmax`, those of ConvNeXt",
        models.unreadable_by_keras,
        forms=(KERAS3, H5),
    ),
    "operations": Kind(
        "Operations between layers, as `preprocess_input` makes them",
        lambda k: models.functional(k, before=lambda pixels: pixels[..., ::-1] * 2.0 - 1.0),
        forms=(KERAS3, FOLDER, H5_OF_KERAS2, FOLDER_OF_KERAS2),
    ),
    "several_inputs": Kind(
        "Several inputs", models.several_inputs, refused="one input", forms=(KERAS3, KERAS2, H5_OF_KERAS2)
    ),
    "segmentation": Kind(
        "An answer for each pixel (segmentation)",
        lambda k: k.Sequential([k.Input(models.SHAPE), k.layers.Conv2D(3, 1, activation="softmax")]),
        refused="with one number for each class",
    ),
    "video": Kind(
        "Video or volumes",
        lambda k: k.Sequential([k.Input((4, *models.SHAPE)), *models.last_layers(k)]),
        refused="input of images",
    ),
    "many_channels": Kind(
        "More than four channels", lambda k: models.functional(k, shape=(12, 12, 5)), refused="1 channel"
    ),
    "one_tanh": Kind(
        "One number from -1 to 1 (tanh)",
        lambda k: models.functional(k, "tanh", 1),
        arguments=BINARY,
        refused="neither a probability",
    ),
    "random_answers": Kind(
        "Dropout that is called with `training=True`, of Keras 2",
        lambda k: models.functional(k, before=lambda pixels: k.layers.Dropout(0.5)(pixels, training=True)),
        refused="differently each time",
        forms=(H5_OF_KERAS2,),
    ),
    "augmentation_in_a_folder": Kind(
        "Random augmentation in a folder of Keras 3, in which it stays active",
        models.augmentation,
        **FROM_LAYERS,
        refused="augmentation is active",
        forms=(FOLDER,),
    ),
    "batch": Kind(
        "BatchNormalization that is called with `training=True`, of Keras 2",
        lambda k: models.functional(k, before=lambda pixels: k.layers.BatchNormalization()(pixels, training=True)),
        refused="answers depend on the pictures before",
        forms=(H5_OF_KERAS2,),
    ),
    "own_predict": Kind(
        "A subclass of Model whose `predict` prepares images",
        models.own_predict,
        options={"imports": ("own.py",)},
        refused="has its own predict",
        forms=(KERAS3,),
    ),
    "signed_bytes": Kind(
        "An input of `int8`",
        models.signed_bytes,
        refused="cannot be pixels",
        forms=(KERAS3,),
    ),
    "python_code": Kind(
        "A layer that calls Python (`tf.numpy_function`, `tf.py_function`)",
        lambda k: models.functional(k, before=models.own_module(k)["OfNumPy"]()),
        **OWN,
        refused="Python code outside TensorFlow",
        forms=(KERAS3,),
    ),
    "not_built": Kind(
        "A model that was saved before it was built",
        lambda k: k.Sequential(models.last_layers(k)),
        refused="before it was built",
        forms=(KERAS3,),
    ),
}


def saved(name: str, form: str, folder: Path) -> tuple[Path, Any, str]:
    """Build a model of a kind and save it in a form. Return the path, the model, and the Python code of its own layers."""
    import keras
    import tf_keras

    library = keras if form.startswith("keras 3") else tf_keras
    library.utils.set_random_seed(3)
    model = KINDS[name].build(library)
    folder.mkdir()
    path = folder / f"model{form.split()[2].replace('folder', '')}"
    if form == "keras 3 folder":
        model.export(path, verbose=False)
    else:
        model.save(path, **({"save_format": "tf"} if form == "keras 2 folder" else {}))
    return path, model, models.OWN_LAYERS.format(library=library.__name__)


def cases() -> Iterator[tuple[str, str]]:
    """Yield each kind with each of its forms."""
    for name, each in KINDS.items():
        for form in each.forms:
            yield name, form


def table() -> str:
    """Return the table of docs/models.md."""
    lines = ["| model | export | tried as |", "|---|---|---|"]
    for each in KINDS.values():
        outcome = "is refused" if each.refused else f"needs `{each.asks}`" if each.asks else "serves it"
        forms = [
            f"{version}: {', '.join(form.split()[2] for form in each.forms if form.startswith(version.lower()))}"
            for version in ("Keras 3", "Keras 2")
            if any(form.startswith(version.lower()) for form in each.forms)
        ]
        lines.append(f"| {each.says} | {outcome} | {'; '.join(forms)} |")
    return "\n".join(lines)


DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
START, END = "<!-- the table, by tests/support/corpus.py -->\n", "\n<!-- end of the table -->"


def document() -> str:
    """Return docs/models.md with the table of now."""
    text = DOCUMENT.read_text()
    return text[: text.index(START) + len(START)] + table() + text[text.index(END) :]


if __name__ == "__main__":
    DOCUMENT.write_text(document())
