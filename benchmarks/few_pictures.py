"""Accuracy of `train --arch photo` against the number of pictures a class, on folders of class folders.

Run `PYTHONPATH=. python benchmarks/few_pictures.py FOLDER --each 5 10 20`. The features are computed once. Each row is the mean of ten
random divisions: so many pictures of each class to fit on, all others to test. The strength of the regularization is the middle one,
not chosen by cross-validation.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from cifar.settings import Settings
from cifar.training.data.dataset import load_dataset
from cifar.training.run.calibration import with_features
from cifar.training.run.photo.network import load_backbone, photo_network
from cifar.training.run.photo.train import STRENGTHS, Pictures, read_features
from cifar.training.run.photo.weights import pretrained_weights

_DIVISIONS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--each", type=int, nargs="+", default=[5, 10, 20, 50], help="pictures of each class")
    parser.add_argument("--image-size", type=int, default=128)
    arguments = parser.parse_args()
    size = arguments.image_size
    dataset = load_dataset(arguments.folder, Settings(), image_shape=(size, size, 3))
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    started = time.process_time()
    network = photo_network((size, size, 3), len(dataset.class_names))
    load_backbone(network, pretrained_weights())
    pictures = read_features(with_features(network), images, labels, np.ones(len(labels)))
    print(f"{len(images)} pictures, features in {time.process_time() - started:.1f} s of processor time\n")
    print("| pictures a class | test pictures | accuracy, mean and standard deviation | balanced |\n|---|---|---|---|")
    for each in arguments.each:
        rows = [_divide(pictures, each, seed) for seed in range(_DIVISIONS)]
        accuracy, balanced = np.array(rows).T
        tested = len(labels) - each * len(dataset.class_names)
        print(f"| {each} | {tested} | {accuracy.mean():.1%}, {accuracy.std(ddof=1):.1%} | {balanced.mean():.1%} |")


def _divide(pictures: Pictures, each: int, seed: int) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    classes = [random.permutation(np.flatnonzero(pictures.labels == label)) for label in np.unique(pictures.labels)]
    head = pictures.head(np.concatenate([positions[:each] for positions in classes]), STRENGTHS[len(STRENGTHS) // 2])
    right = [
        head.probabilities(pictures.plain[positions[each:]]).argmax(axis=1) == label
        for label, positions in enumerate(classes)
    ]
    return float(np.concatenate(right).mean()), float(np.mean([part.mean() for part in right]))


if __name__ == "__main__":
    main()
