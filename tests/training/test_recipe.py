"""The parts of the fast recipe: augmentation, Muon, fused batch normalization, learning rate schedule, transfer learning."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar.errors import BadParameter, TrainingError, VersionUnusable
from cifar.settings import ROOT
from cifar.training.data.augmentation import augment
from cifar.training.network.architectures import ARCHITECTURES, build_model, initialize
from cifar.training.network.batchnorm import FusedBatchNormalization, batch_normalization
from cifar.training.network.muon import Muon, orthogonalize
from cifar.training.network.recipes import RECIPES
from cifar.training.run.schedule import LearningRateSchedule
from cifar.training.run.transfer import copy_weights

RANDOM = np.random.default_rng(0)


# --- augmentation -----------------------------------------------------------------------------------------------------


def numbered(count: int = 40, size: int = 12) -> np.ndarray:
    """Images in which every pixel has a different value, so that each can be found again after a shift."""
    pixels = np.arange(size * size, dtype=np.uint8).reshape(size, size)
    return np.stack([np.stack([pixels, np.full_like(pixels, i % 256), pixels], axis=-1) for i in range(count)])


def augmented(images: np.ndarray, epoch: int, seed: int = 3, max_shift: int = 2, positions: np.ndarray | None = None):
    positions = np.arange(len(images)) if positions is None else positions
    return augment(images, positions=positions, epoch=epoch, seed=seed, max_shift=max_shift)


def mirrored(view: np.ndarray) -> bool:
    """Return whether the numbers fall from left to right, away from the reflected border."""
    middle = view[6, 3:9, 0].astype(int)
    return bool((np.diff(middle) < 0).all())


def test_the_same_seed_and_epoch_give_the_same_augmented_images():
    """A run can be repeated. Another epoch or seed gives other images, and the originals do not change."""
    images = numbered()
    before = images.copy()
    np.testing.assert_array_equal(augmented(images, 0), augmented(images, 0))
    for other in (augmented(images, 1), augmented(images, 0, seed=4)):
        assert (other != augmented(images, 0)).any()
    np.testing.assert_array_equal(images, before)


def test_every_image_is_mirrored_in_one_of_two_epochs():
    """Two epochs show both sides of each image, in any order. Half of the images are mirrored at a time."""
    images = numbered(200)
    first, second = (np.array([mirrored(view) for view in augmented(images, epoch)]) for epoch in (4, 5))
    assert (first ^ second).all()
    assert 70 < first.sum() < 130
    order = RANDOM.permutation(200)
    third = np.array([mirrored(view) for view in augmented(images[order], 6, positions=order)])
    np.testing.assert_array_equal(third, first[order])


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_an_image_is_shifted_by_at_most_max_shift_and_keeps_its_pixels(shift):
    """All shifts up to the limit occur in all directions, and the border is filled by reflection, not with black."""
    size = 12
    images = numbered(600, size)
    moves = set()
    for i, view in enumerate(augmented(images, 2, max_shift=shift)):
        upright = view[:, ::-1] if mirrored(view) else view
        down, right = divmod(int(upright[6, 6, 0]), size)
        moves.add((down - 6, right - 6))
        rows, columns = (np.pad(np.arange(size), shift, "reflect") for _ in range(2))
        rows, columns = rows[down - 6 + shift :][:size], columns[right - 6 + shift :][:size]
        np.testing.assert_array_equal(upright, images[i][rows][:, columns])
    each = range(-shift, shift + 1)
    assert moves == {(down, right) for down in each for right in each}


# --- Muon -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 3, 16, 32), "float32"), ((3, 3, 64, 8), "float32"), ((2, 2, 4, 64), "bfloat16")]
)
def test_the_update_of_a_kernel_is_nearly_orthogonal(shape, dtype):
    """Its singular values lie around 1, as Muon's author states for five steps."""
    matrix = RANDOM.normal(size=(np.prod(shape[:3]), shape[3]))
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    spread = np.geomspace(1, 0.03, min(matrix.shape))
    kernel = ((left * spread) @ right).reshape(shape).astype(np.float32)
    made = np.asarray(orthogonalize(tf.constant(kernel), dtype)).reshape(-1, shape[3])
    values = np.linalg.svd(made, compute_uv=False)
    assert values.min() > 0.3
    assert values.max() < 1.4
    ours, _, theirs = np.linalg.svd(made, full_matrices=False)
    turned = ours @ theirs
    assert np.abs(turned - left @ right).max() < 0.1, "it must be the nearest orthogonal matrix, not any"


def test_the_norm_of_a_kernel_stays_fixed_while_its_direction_changes():
    """Before each update it is set to the square root of the number of outputs, so all steps change the angle equally."""
    optimizer = Muon(0.05)
    kernel = keras.Variable(50 * RANDOM.normal(size=(3, 3, 3, 6)).astype(np.float32))
    optimizer.build([kernel])
    for _ in range(3):
        before = kernel.numpy()
        optimizer.apply([RANDOM.normal(size=(3, 3, 3, 6)).astype(np.float32)])
        step = np.linalg.norm(kernel.numpy() - before * np.sqrt(6) / np.linalg.norm(before))
        assert 0.5 < step / (0.05 * np.sqrt(6)) < 1.3, "the learning rate times an orthogonal matrix of 6 columns"
    assert np.linalg.norm(kernel) == pytest.approx(np.sqrt(6), rel=0.1)


def test_vectors_and_dense_kernels_are_updated_by_nesterov_momentum():
    """The result equals the textbook formula with the two learning rate ratios."""
    optimizer = Muon(0.1, dense_ratio=6, vector_ratio=2)
    dense, vector = (keras.Variable(np.ones(shape, np.float32)) for shape in ((2, 3), (3,)))
    optimizer.build([dense, vector])
    for _ in range(2):
        optimizer.apply([np.full((2, 3), 0.5, np.float32), np.full(3, 0.5, np.float32)])
    moved = 0.5 + 0.85 * 0.5 + 0.5 + 0.85 * (0.85 * 0.5 + 0.5)
    np.testing.assert_allclose(dense, 1 - 0.1 * 6 * moved, rtol=1e-5)
    np.testing.assert_allclose(vector, 1 - 0.1 * 2 * moved, rtol=1e-5)


def test_a_saved_and_loaded_muon_continues_exactly(tmp_path):
    """Settings and momenta are saved, so the next step is equal to the last bit."""
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 3)),
            keras.layers.Conv2D(6, 3),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(Muon(0.05, vector_ratio=2.0, momentum=0.7), loss="categorical_crossentropy")
    images, labels = RANDOM.random((12, 8, 8, 3)), np.eye(3)[np.arange(12) % 3]
    model.train_on_batch(images, labels)
    model.save(tmp_path / "saved.keras")
    again = keras.saving.load_model(tmp_path / "saved.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert (again.optimizer.momentum, again.optimizer.vector_ratio) == (0.7, 2.0)
    for network in (model, again):
        network.train_on_batch(images, labels)
    for ours, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- fused batch normalization ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-4), ("bfloat16", 3e-2)])
def test_the_fused_layer_computes_the_same_as_the_layer_of_keras(dtype, tolerance):
    """Outputs, moving averages and gradients agree, in training and in inference."""
    fused, plain = (batch_normalization(fused=fused) for fused in (True, False))
    assert isinstance(fused, FusedBatchNormalization)
    assert not isinstance(plain, FusedBatchNormalization)
    images = tf.constant(RANDOM.normal(3, 2, (16, 6, 6, 5)), dtype)
    weight = tf.constant(RANDOM.normal(size=(16, 6, 6, 5)), tf.float32)
    for layer in (fused, plain):
        layer.build(images.shape)
        layer.beta.assign([0.1, -0.2, 0.3, 0.0, 1.0])
    answers = {}
    for name, layer in (("fused", fused), ("plain", plain)):
        with tf.GradientTape() as tape:
            tape.watch(images)
            trained = layer(images, training=True)
            loss = tf.reduce_sum(tf.cast(trained, tf.float32) * weight)
        gradients = tape.gradient(loss, [images, layer.beta.value])
        after = layer(images, training=False)
        averages = [layer.moving_mean.value, layer.moving_variance.value]
        answers[name] = [np.asarray(tf.cast(x, tf.float32)) for x in (trained, after, *averages, *gradients)]
    for name, ours, theirs in zip(
        ("trained", "after", "mean", "variance", "gradient", "of beta"), answers["fused"], answers["plain"], strict=True
    ):
        scale = max(1.0, float(np.abs(theirs).max()))
        # TensorFlow's kernel divides the variance by n - 1, Keras by n; for 576 values the difference is 0.2 %.
        accepted = 3e-3 if name in {"variance", "after"} else tolerance
        np.testing.assert_allclose(ours, theirs, atol=max(accepted, tolerance) * scale, err_msg=name)
    assert fused(images, training=True).dtype == dtype, "the output type must equal the input type"
    assert fused.moving_mean.dtype == "float32"


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_networks_have_the_documented_parameters_and_scale_pixels_themselves(arch):
    """Serving cannot scale pixels differently: black and white become 0 and 1, or -2 and 2, inside the graph."""
    model = build_model(arch, 10)
    assert f"{model.count_params():,} parameters for CIFAR" in ARCHITECTURES[arch].__doc__
    scaled, ends = ("to_unit_range", [0, 1]) if arch == "tutorial" else ("to_unit_spread", [-2, 2])
    inside = keras.Model(model.inputs[0], model.get_layer(scaled).output)
    black_and_white = np.stack([np.zeros((32, 32, 3)), np.full((32, 32, 3), 255.0)]).astype(np.float32)
    np.testing.assert_allclose(np.unique(inside(black_and_white)), ends, atol=1e-5)


def test_the_first_layer_initially_whitens_patches():
    """The covariance of its outputs is nearly the unit matrix, and its kernel is not trained."""
    smooth = np.cumsum(np.cumsum(RANDOM.normal(size=(64, 32, 32, 3)), axis=1), axis=2)
    images = np.clip(128 + 8 * smooth, 0, 255).astype(np.uint8)
    model = build_model("fast", 3, precision="float32")
    initialize(model, images)
    layer = model.get_layer("whiten")
    values = np.asarray(keras.Model(model.inputs[0], layer.output)(images.astype(np.float32)))
    flat = values.reshape(-1, 24)[:, :12]
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(12), atol=0.15)
    np.testing.assert_allclose(values[..., 12:], -values[..., :12], atol=1e-4)
    assert [variable.path for variable in layer.trainable_variables] == ["whiten/bias"]


def test_small_data_sets_get_smaller_batches_and_more_epochs_and_large_images_smaller_batches():
    """A folder of 150 images is trained for hundreds of steps, not for a handful."""
    recipe = RECIPES["fast"]
    few = recipe.batch_size_for(150, (32, 32, 3))
    assert few < recipe.batch_size_for(50_000, (32, 32, 3)) == recipe.batch_size
    assert recipe.batch_size_for(50_000, (96, 96, 3)) < recipe.batch_size
    steps = -(-150 // few) * recipe.epochs_for(150, few)
    assert steps >= recipe.min_steps
    assert recipe.epochs_for(50_000, recipe.batch_size) == recipe.epochs


# --- the learning rate schedule ---------------------------------------------------------------------------------------


def run_through(schedule: LearningRateSchedule, clock, *, step: float, validation: float, steps_an_epoch: int):
    """Return the learning rates of a run whose steps and validations take this long. Compiling adds 5 s to the first step."""
    optimizer = SimpleNamespace(iterations=0, learning_rate=None)
    model = SimpleNamespace(optimizer=optimizer, stop_training=False)
    schedule.set_model(model)
    rates = []
    while not schedule.over:
        schedule.on_epoch_begin(0)
        for batch in range(steps_an_epoch):
            schedule.on_train_batch_begin(batch)
            rates.append(optimizer.learning_rate)
            clock.now += step + (5 if optimizer.iterations == 0 else 0)
            optimizer.iterations += 1
            schedule.on_train_batch_end(batch)
            if model.stop_training:
                break
        for batch in range(4):
            schedule.on_test_batch_begin(batch)
            clock.now += validation / 4
            schedule.on_test_batch_end(batch)
        schedule.on_test_end()
        schedule.on_epoch_end(0)
    return rates


@pytest.mark.parametrize(("step", "validation", "budget"), [(0.1, 1.0, 60), (0.5, 3.0, 45), (0.01, 0.0, 7)])
def test_a_time_budget_is_kept_and_ends_with_a_learning_rate_near_zero(clock, step, validation, budget):
    """This holds for fast and for slow machines."""
    schedule = LearningRateSchedule(steps=10**9, seconds=budget, learning_rate=0.2, anneal=True)
    rates = run_through(schedule, clock, step=step, validation=validation, steps_an_epoch=20)
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.2
    assert rates[-1] <= 0.2 * (3 * step + validation) / budget
    assert budget - 2 * step - validation <= schedule.spent_seconds <= budget + 1e-6


def test_a_time_budget_leaves_time_for_measuring_after_the_last_epoch(clock):
    """A budget of ten minutes takes ten minutes. Measuring 20 batches takes 5 s here, and compiling as long as one batch."""
    schedule = LearningRateSchedule(steps=10**9, seconds=60, learning_rate=0.2, anneal=True, finish_batches=20)
    rates = run_through(schedule, clock, step=0.1, validation=1.0, steps_an_epoch=20)
    assert 60 - 5.25 - 2 * 0.1 - 1 <= schedule.spent_seconds <= 60 - 5.25 + 1e-6
    assert rates[-1] <= 0.2 * 0.3 / 60


def test_a_budget_shorter_than_one_step_still_allows_one_step(clock):
    """Even the shortest run ends with a trained model."""
    schedule = LearningRateSchedule(steps=10**9, seconds=0.5, learning_rate=0.2, anneal=True)
    assert len(run_through(schedule, clock, step=0.1, validation=0.1, steps_an_epoch=20)) == 1


def test_a_run_of_epochs_depends_on_steps_and_never_on_the_clock(clock):
    """Slow and fast machines use the same learning rates, so the run can be repeated to the last bit."""
    runs = []
    for step in (0.01, 3.0):
        schedule = LearningRateSchedule(steps=50, seconds=None, learning_rate=0.2, anneal=True)
        runs.append(run_through(schedule, clock, step=step, validation=0.3, steps_an_epoch=20))
    assert runs[0] == runs[1]
    np.testing.assert_allclose(runs[0], 0.2 * (1 - np.arange(50) / 50))


def test_a_resumed_run_counts_the_time_spent_before_the_interruption(clock):
    """The time budget is the total, no matter how often the run was interrupted."""
    schedule = LearningRateSchedule(steps=1, seconds=60, learning_rate=0.2, anneal=True, spent_seconds=45)
    rates = run_through(schedule, clock, step=0.1, validation=0.5, steps_an_epoch=20)
    assert rates[0] == pytest.approx(0.05)
    assert clock.now - 1000 < 15.6
    assert schedule.seconds_left(0) < 1


# --- transfer learning ------------------------------------------------------------------------------------------------


def test_a_network_gets_the_weights_of_another_one_where_the_shapes_agree(tmp_path):
    """All convolutions are copied. The last layer keeps its initial weights, because the classes differ."""
    source = build_model("fast", 7)
    initialize(source, RANDOM.integers(0, 256, (8, 32, 32, 3), np.uint8))
    source.save(tmp_path / "source.keras")
    model = build_model("fast", 3, image_shape=(48, 48, 3), precision="float32")
    initial = model.get_weights()[-1]
    copy_weights(str(tmp_path / "source.keras"), model)
    np.testing.assert_array_equal(model.get_weights()[-1], initial)
    for ours, theirs in zip(model.get_weights()[:-1], source.get_weights()[:-1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not model.get_layer("whiten").kernel.trainable


def test_a_version_with_a_changed_file_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    """A SavedModel can run any code, so `--init-from` first compares every file with the checksums in the manifest."""
    folder = tmp_path / "cifar_classifier" / "1"
    shutil.copytree(ROOT / "saved_model" / "cifar_classifier" / "1", folder)
    model = build_model("tutorial", 10)
    copy_weights(str(folder), model)  # the unchanged version can be used
    with (folder / "saved_model.pb").open("ab") as file:
        file.write(b"changed")
    monkeypatch.setattr(tf.saved_model, "load", lambda *_: pytest.fail("the changed version was loaded"))
    with pytest.raises(VersionUnusable, match=r"cifar_classifier/1/saved_model\.pb is not the file that was exported"):
        copy_weights(str(folder), model)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "No model could be loaded from nowhere"),
        ("saved_model/cifar_classifier/1", "is not a model of --arch fast: no convolution has the same shape"),
        ("README.md", r"No model could be loaded from README\.md"),
    ],
)
def test_a_source_without_usable_weights_is_refused(source, words):
    """The message says what can be named instead."""
    with pytest.raises(TrainingError, match=words):
        copy_weights(str(ROOT / source) if "/" in source else source, build_model("fast", 3))


@pytest.mark.parametrize(
    ("arch", "classes", "shape", "words"),
    [
        ("resnet", 10, (32, 32, 3), "no architecture 'resnet'; there are: fast, deep, large, tutorial"),
        ("tutorial", 1, (32, 32, 3), "at least 2 classes"),
        ("tutorial", 10, (8, 8, 3), "cannot take images"),
        ("fast", 10, (4, 4, 3), "cannot take images"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(arch, classes, shape, words):
    """The message says which argument is wrong."""
    with pytest.raises(BadParameter, match=words):
        build_model(arch, classes, image_shape=shape)
