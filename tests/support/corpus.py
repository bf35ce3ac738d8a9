"""The corpus: small models of the kinds that people have, each with the answers that its author would see.

`python tests/support/corpus.py` writes the table of docs/models.md from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
SHAPE = (12, 12, 3)
OWN_LAYERS = (Path(__file__).parents[1] / "data" / "own_layers.txt").read_text()
"""Python code of layers, in which {library} stands for keras or tf_keras."""


def unchanged(values: Any) -> Any:
    return values


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
    """Its row in the table."""
    build: Callable[[Any], Any]
    """From Keras (2 or 3) to a model."""
    shape: tuple[int, int, int] = SHAPE
    """Of the images that are served."""
    prepare: Callable[[Array], Any] = unchanged
    """The author's preparation of images from 0 to 1 before `predict`."""
    finish: Callable[[Any], Array] = unchanged
    """The author's conversion of the answer of `predict` to probabilities."""
    options: dict[str, Any] = field(default_factory=dict)
    """The options that an export of the model needs: fields of `ReadOptions`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `read_source`."""
    asks: str = ""
    """The option that must be given, for the table."""
    refused: str = ""
    """Words of the message, for a kind that is refused."""
    forms: tuple[str, ...] = ("keras 3 .keras", "keras 2 .h5", "keras 2 folder")
    tolerance: float = 1e-5
    """Of a probability. Larger for models that compute in 16 bits where their author runs them."""


KINDS: dict[str, Kind] = {}


def kind(says: str, **options: Any) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    def register(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
        KINDS[build.__name__] = Kind(says, build, **options)
        return build

    return register


def head(k: Any, pixels: Any, activation: str | None = "softmax", units: int = 3, **options: Any) -> Any:
    features = k.layers.GlobalAveragePooling2D()(k.layers.Conv2D(4, 3, activation="relu")(pixels))
    return k.layers.Dense(units, activation=activation, **options)(features)


def functional(k: Any, activation: str | None = "softmax", units: int = 3, **options: Any) -> Any:
    pixels = k.Input(SHAPE, **options)
    return k.Model(pixels, head(k, pixels, activation, units))


def own_module(k: Any) -> dict[str, Any]:
    """Return the names in the module `own`, which is named with --import."""
    names: dict[str, Any] = {"__name__": "own"}
    exec(OWN_LAYERS.format(library=k.__name__), names)  # noqa: S102
    return names


def compiled(model: Any, loss: Any) -> Any:
    model.compile("adam", loss)
    return model


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
    return path, model, OWN_LAYERS.format(library=library.__name__)


ALL = ("keras 3 .keras", "keras 3 .h5", "keras 3 folder", "keras 2 .keras", "keras 2 .h5", "keras 2 folder")


@kind("Sequential, trained on values from 0 to 1", forms=ALL)
def sequential(k: Any) -> Any:
    layers = k.layers
    blocks = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.SeparableConv2D(4, 3), layers.DepthwiseConv2D(3)]
    return k.Sequential([k.Input(SHAPE), *blocks, layers.Flatten(), layers.Dropout(0.3), layers.Dense(3, "softmax")])


@kind("Teachable Machine: a Sequential of Sequentials", forms=ALL)
def teachable_machine(k: Any) -> Any:
    layers = k.layers
    features = k.Sequential([k.Input(SHAPE), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()])
    top = k.Sequential([k.Input((4,)), layers.Dense(5, activation="relu"), layers.Dense(3, "softmax", use_bias=False)])
    return k.Sequential([k.Input(SHAPE), features, top])


@kind("Transfer learning: a base called with `training=False` inside a Functional model", forms=ALL[:5])
def transfer(k: Any) -> Any:
    inner = k.Input(SHAPE)
    base = k.Model(inner, k.layers.BatchNormalization()(k.layers.Conv2D(4, 3)(inner)))
    pixels = k.Input(SHAPE)
    return k.Model(pixels, k.layers.Dense(3, "softmax")(k.layers.GlobalMaxPooling2D()(base(pixels, training=False))))


@kind(
    "Augmentation and other layers that act in training only, then Rescaling",
    prepare=lambda images: images * 255,
    arguments={"input_range": None},
)
def augmentation(k: Any) -> Any:
    layers = k.layers
    augment = k.Sequential([k.Input(SHAPE), layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1)])
    pixels = k.Input(SHAPE)
    return k.Model(pixels, head(k, layers.GaussianNoise(0.5)(layers.Rescaling(1 / 255)(augment(pixels)))))


@kind("One sigmoid", finish=two_classes, arguments={"class_names": ("a", "b")}, forms=ALL)
def one_sigmoid(k: Any) -> Any:
    return functional(k, "sigmoid", 1)


@kind(
    "One logit, compiled with `from_logits=True`",
    finish=lambda z: two_classes(sigmoid(z)),
    arguments={"class_names": ("a", "b")},
)
def one_logit(k: Any) -> Any:
    return compiled(functional(k, None, 1), k.losses.BinaryCrossentropy(from_logits=True))


@kind(
    "One logit, not compiled",
    finish=lambda z: two_classes(sigmoid(z)),
    arguments={"class_names": ("a", "b"), "logits": True},
    asks="--logits",
)
def one_logit_uncompiled(k: Any) -> Any:
    return functional(k, None, 1)


@kind("Logits, compiled with `from_logits=True`", finish=softmax, forms=(*ALL[:2], *ALL[3:]))
def logits(k: Any) -> Any:
    return compiled(functional(k, None), k.losses.SparseCategoricalCrossentropy(from_logits=True))


@kind("Logits, not compiled", finish=softmax, arguments={"logits": True}, asks="--logits", forms=ALL)
def logits_uncompiled(k: Any) -> Any:
    return functional(k, None)


@kind("A softmax, compiled with `from_logits=True` by mistake")
def softmax_with_from_logits(k: Any) -> Any:
    return compiled(functional(k), k.losses.SparseCategoricalCrossentropy(from_logits=True))


@kind("The mean of several softmaxes, compiled with `from_logits=True` by mistake", forms=ALL[:1])
def ensemble(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    mean = k.layers.Average()([head(k, pixels), head(k, pixels)])
    return compiled(k.Model(pixels, mean), k.losses.SparseCategoricalCrossentropy(from_logits=True))


@kind("log_softmax", finish=np.exp, forms=ALL[:1])
def log_softmax(k: Any) -> Any:
    return functional(k, "log_softmax")


@kind("Input without a channel axis, `(28, 28)`", shape=(28, 28, 1), prepare=lambda images: images[..., 0])
def no_channel(k: Any) -> Any:
    return k.Sequential([k.Input((28, 28)), k.layers.Flatten(), k.layers.Dense(3, "softmax")])


@kind(
    "Input of a vector, `(784,)`",
    shape=(28, 28, 1),
    prepare=lambda images: images.reshape(len(images), -1),
    options={"image_size": (28, 28)},
    asks="--image-size 28,28",
)
def vector(k: Any) -> Any:
    return k.Sequential([k.Input((784,)), k.layers.Dense(3, "softmax")])


@kind(
    "Input of any size, `(None, None, 3)`",
    options={"image_size": (12, 12)},
    asks="--image-size HEIGHT,WIDTH",
    forms=ALL,
)
def any_size(k: Any) -> Any:
    pixels = k.Input((None, None, 3))
    return k.Model(pixels, head(k, pixels))


@kind("Input of any size that a Resizing layer makes one size", shape=(9, 10, 3))
def resizing(k: Any) -> Any:
    pixels = k.Input((None, None, 3))
    return k.Model(pixels, head(k, k.layers.Resizing(9, 10)(pixels)))


@kind("Channels first, `(3, 12, 12)`", prepare=lambda images: images.transpose(0, 3, 1, 2))
def channels_first(k: Any) -> Any:
    pixels = k.Input((3, 12, 12))
    return k.Model(pixels, head(k, k.layers.Permute((2, 3, 1))(pixels)))


@kind("RGBA", prepare=lambda images: np.concatenate([images, np.ones_like(images[..., :1])], axis=-1))
def rgba(k: Any) -> Any:
    pixels = k.Input((12, 12, 4))
    return k.Model(pixels, head(k, pixels))


@kind("Fully convolutional, output `(1, 1, classes)`", finish=lambda answer: answer[:, 0, 0])
def fully_convolutional(k: Any) -> Any:
    return k.Sequential([k.Input(SHAPE), k.layers.Conv2D(4, 3), k.layers.Conv2D(3, 10, activation="softmax")])


@kind("Several outputs", finish=lambda answer: answer[1], options={"output": "label"}, asks="--output NAME")
def several_outputs(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    flat = k.layers.Flatten()(pixels)
    return k.Model(pixels, [k.layers.Dense(4, name="box")(flat), k.layers.Dense(3, "softmax", name="label")(flat)])


@kind(
    "A dictionary of outputs", finish=lambda answer: answer["label"], options={"output": "label"}, asks="--output NAME"
)
def dictionary_of_outputs(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    return k.Model(pixels, {"zeros": head(k, pixels, None, 4), "label": head(k, pixels)})


@kind(
    "Losses in a list, of which another output's takes logits",
    finish=lambda answer: answer[1],
    options={"output": "label"},
    asks="--output NAME",
    forms=(ALL[0], ALL[4]),
)
def losses_in_a_list(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    label = k.layers.Average(name="label")([head(k, pixels), head(k, pixels)])
    outputs = [k.layers.Dense(4, name="tags")(k.layers.Flatten()(pixels)), label]
    return compiled(
        k.Model(pixels, outputs), [k.losses.BinaryCrossentropy(from_logits=True), "categorical_crossentropy"]
    )


@kind("A loss that is a Python lambda", forms=ALL[:1])
def lambda_as_loss(k: Any) -> Any:
    return compiled(functional(k), lambda _, answer: k.ops.mean(answer))


@kind("A dictionary with one input", prepare=lambda images: {"image": images})
def dictionary_of_inputs(k: Any) -> Any:
    pixels = k.Input(SHAPE, name="image")
    return k.Model({"image": pixels}, head(k, pixels))


@kind("A fixed batch of one image", forms=(*ALL[:3], "keras 2 .h5"))
def fixed_batch(k: Any) -> Any:
    pixels = k.Input(batch_size=1, shape=SHAPE)
    return k.Model(pixels, head(k, pixels))


@kind(
    "An input of `uint8`",
    prepare=lambda images: np.round(images * 255).astype(np.uint8),
    arguments={"input_range": (0.0, 255.0)},
)
def uint8_input(k: Any) -> Any:
    pixels = k.Input(SHAPE, dtype="uint8")
    return k.Model(pixels, head(k, k.layers.Rescaling(1 / 255)(pixels)))


@kind("Mixed precision", finish=lambda answer: answer.astype(np.float32), tolerance=2e-3)
def mixed_precision(k: Any) -> Any:
    policy = "mixed_float16"
    layers, pixels = k.layers, k.Input(SHAPE)
    features = layers.BatchNormalization(dtype=policy)(layers.Conv2D(4, 3, dtype=policy)(pixels))
    return k.Model(pixels, layers.Dense(3, "softmax", dtype=policy)(layers.GlobalMaxPooling2D(dtype=policy)(features)))


@kind(
    "Logits in bfloat16",
    finish=lambda answer: softmax(answer.astype(np.float32)),
    arguments={"logits": True},
    asks="--logits",
    forms=ALL[:1],
)
def bfloat16_logits(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    return k.Model(pixels, head(k, pixels, None, dtype="bfloat16"))


@kind("Probabilities in bfloat16", finish=lambda answer: answer.astype(np.float32), tolerance=1e-2, forms=ALL[:1])
def bfloat16_probabilities(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    return k.Model(pixels, head(k, pixels, dtype="bfloat16"))


@kind("Layers of the author's own", options={"imports": ("own.py",)}, asks="--import FILE.py")
def own_layers(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    return k.Model(pixels, head(k, own_module(k)["Scale"]()(pixels)))


@kind("A subclass of Model", options={"imports": ("own.py",)}, asks="--import FILE.py", forms=(ALL[0], ALL[3]))
def subclass(k: Any) -> Any:
    model = own_module(k)["Subclassed"]()
    model(np.zeros((1, *SHAPE), np.float32))
    return model


@kind("A Lambda layer", options={"allow_lambda": True}, asks="--allow-lambda", forms=(*ALL[:2], *ALL[3:5]))
def lambda_layer(k: Any) -> Any:
    layers = k.layers
    shape = {} if k.__name__ == "tf_keras" else {"output_shape": SHAPE}
    return k.Sequential(
        [k.Input(SHAPE), layers.Lambda(lambda x: x * 2, **shape), layers.Flatten(), layers.Dense(3, "softmax")]
    )


@kind(
    "A Lambda layer of a `preprocess_input`",
    prepare=lambda images: images * 255,
    options={"allow_lambda": True, "imports": ("keras.applications.mobilenet_v2",)},
    arguments={"input_range": None},
    asks="--import keras.applications.mobilenet_v2",
    forms=ALL[:1],
)
def lambda_of_keras(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    prepared = k.layers.Lambda(k.applications.mobilenet_v2.preprocess_input, output_shape=SHAPE)(pixels)
    return k.Model(pixels, head(k, prepared))


@kind(
    "Activations and layers that Keras writes and cannot read by itself: `tf.nn.softmax`, those of ConvNeXt",
    forms=ALL[:2],
)
def unreadable_by_keras(k: Any) -> Any:
    import tensorflow as tf
    from keras.src.applications.convnext import LayerScale

    pixels = k.Input(SHAPE)
    return k.Model(pixels, head(k, LayerScale(0.5, 3)(pixels), tf.nn.softmax))


@kind("Operations between layers, as `preprocess_input` makes them", forms=(ALL[0], *ALL[2:3], *ALL[4:]))
def operations(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    return k.Model(pixels, head(k, pixels[..., ::-1] * 2.0 - 1.0))


@kind("Several inputs", refused="one input", forms=(ALL[0], *ALL[3:5]))
def several_inputs(k: Any) -> Any:
    pixels, numbers = k.Input(SHAPE), k.Input((3,))
    return k.Model([pixels, numbers], k.layers.Add()([head(k, pixels), numbers]))


@kind("An answer for each pixel (segmentation)", refused="with one number for each class")
def segmentation(k: Any) -> Any:
    return k.Sequential([k.Input(SHAPE), k.layers.Conv2D(3, 1, activation="softmax")])


@kind("Video or volumes", refused="input of images")
def video(k: Any) -> Any:
    return k.Sequential([k.Input((4, *SHAPE)), k.layers.Flatten(), k.layers.Dense(3, "softmax")])


@kind("More than four channels", refused="1 channel")
def many_channels(k: Any) -> Any:
    pixels = k.Input((12, 12, 5))
    return k.Model(pixels, head(k, pixels))


@kind("One number from -1 to 1 (tanh)", arguments={"class_names": ("a", "b")}, refused="neither a probability")
def one_tanh(k: Any) -> Any:
    return functional(k, "tanh", 1)


@kind("Dropout that is called with `training=True`, of Keras 2", refused="differently each time", forms=ALL[4:5])
def random_answers(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    return k.Model(pixels, head(k, k.layers.Dropout(0.5)(pixels, training=True)))


@kind(
    "A layer that calls Python (`tf.numpy_function`, `tf.py_function`)",
    options={"imports": ("own.py",)},
    refused="Python code outside TensorFlow",
    forms=ALL[:1],
)
def python_code(k: Any) -> Any:
    pixels = k.Input(SHAPE)
    return k.Model(pixels, head(k, own_module(k)["OfNumPy"]()(pixels)))


@kind("A model that was saved before it was built", refused="before it was built", forms=ALL[:1])
def not_built(k: Any) -> Any:
    return k.Sequential([k.layers.Flatten(), k.layers.Dense(3, "softmax")])


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
