"""Measure a version on folders of photographs, which are decoded as the server decodes uploads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from cifar.console import say
from cifar.cpus import available_cpus
from cifar.errors import CifarError, DataError
from cifar.images.decode import preprocess_views
from cifar.images.spec import Views
from cifar.images.views import MAX_VIEWS
from cifar.models.grades import Grade
from cifar.models.manifest import OOD_THRESHOLD
from cifar.models.predictor import Prediction, Predictor
from cifar.settings import Settings
from cifar.statistics import wilson_interval
from cifar.training.measures import auroc, auroc_interval, mean_interval, measure

NONE = "none"
_NONE_FOLDERS = (NONE, "ood")
_CLASSES_FOLDER = "in"
_SHOWN_CLASSES = 20
"""Class names in an error message."""
_MEASURED = ("images", "accuracy", "accuracy_interval", "balanced_accuracy", "loss", "ece", "per_class")


@dataclass(frozen=True)
class Photographs:
    name: str
    """The name in reports, which do not show the path."""
    files: list[Path]
    labels: list[int | None]
    """Position of each file's class; None for a photograph of none of the classes."""


def find_photographs(argument: str, class_names: Sequence[str]) -> Photographs:
    """List a folder of photographs: `DIR/CLASS/*`, and optionally `DIR/none/*` for photographs of none of the classes.

    Folders may hold further folders, `CLASS` may be written in upper or lower case, the classes may be within `DIR/in`, and
    `none` may be called `ood`. Files beside the folders, and hidden files, are left out.

    Args:
        argument: `DIR`, or `NAME=DIR` with a name for reports. Default: the name of the folder.
        class_names: of the version. A class that is called `none` is a class.

    Raises:
        DataError: there is no such folder, it has a folder of another name, or no photograph of a class.
    """
    name, separator, path = argument.partition("=")
    root = Path(argument) if Path(argument).is_dir() or not separator else Path(path)
    if not root.is_dir():
        raise DataError(
            f"{root} is not a folder. --photos takes a folder with one folder of photographs for each class."
        )
    positions = {each.casefold(): position for position, each in enumerate(class_names)}
    exact = {each: position for position, each in enumerate(class_names)}  # `a` and `A` may be two classes
    folders = _folders(root)
    if _CLASSES_FOLDER not in positions:
        within = [each for each in folders if each.name.casefold() == _CLASSES_FOLDER]
        folders = [each for one in within for each in _folders(one)] + [each for each in folders if each not in within]
    known = positions.keys() | set(_NONE_FOLDERS)
    if unknown := [each.name for each in folders if each.name.casefold() not in known]:
        some = ", ".join([*class_names[:_SHOWN_CLASSES], *(["..."] if len(class_names) > _SHOWN_CLASSES else [])])
        raise DataError(
            f"{root} has the folder {unknown[0]}, which is no class of the version ({some}). "
            f"Rename it to one of them, or to {NONE} for photographs of none of them."
        )
    found = [
        (file, exact.get(folder.name, positions.get(folder.name.casefold())))
        for folder in folders
        for file in _files(folder)
    ]
    if all(label is None for _, label in found):
        raise DataError(f"{root} has no photograph of a class. Expected {root}/{class_names[0]}/*.jpg and so on.")
    shown = name if root != Path(argument) else ""
    return Photographs(shown or root.resolve().name, [file for file, _ in found], [label for _, label in found])


def _folders(root: Path) -> list[Path]:
    return sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    within = (each for each in folder.rglob("*") if each.is_file())
    return sorted(each for each in within if not any(part.startswith(".") for part in each.relative_to(folder).parts))


def measure_photographs(predictor: Predictor, photographs: Photographs, settings: Settings) -> dict[str, Any]:
    """Classify the photographs as the server would, with one view and with six, and measure the answers.

    The version has one label for each image. Files that cannot be decoded are named and left out.

    Returns:
        A dictionary that can be written as JSON. `source`, `images` and `others` (of none of the classes) count the photographs,
        and `unreadable` the files that were left out. `views` has these figures for 1 and for 6 views, by their number as text:

        - of photographs of the classes, from `measure`: `images`, `accuracy`, `accuracy_interval`, `balanced_accuracy`, `loss`, `ece`,
          `per_class`; and `balanced_interval`
        - `in_distribution`, `grades`: shares of the photographs of the classes; `others_grades`: of the others. Each has `count`, `of`,
          `share` and `interval`
        - `auroc`, `auroc_interval`: how well the out-of-distribution score separates the two kinds; `caught`: the share of the others
          that are not in distribution. None without others, and for a version without this score
        - `milliseconds`: processor time for each photograph, decoding included

    Raises:
        DataError: no photograph of a class can be decoded.
    """
    figures: dict[str, Any] = {}
    for views in (1, MAX_VIEWS):
        before = time.process_time()
        answers = _classify(predictor, photographs, settings, views, quiet=bool(figures))
        milliseconds = (time.process_time() - before) * 1000 / len(photographs.files)
        inside = [(prediction, label) for prediction, label in answers if label is not None]
        others = [prediction for prediction, label in answers if label is None]
        if not inside:
            raise DataError(f"No photograph of a class in {photographs.name} can be decoded.")
        figures[str(views)] = _figures(predictor.class_names, inside, others) | {"milliseconds": round(milliseconds, 2)}
    return {
        "source": photographs.name,
        "images": len(inside),
        "others": len(others),
        "unreadable": len(photographs.files) - len(answers),
        "views": figures,
    }


def _classify(
    predictor: Predictor, photographs: Photographs, settings: Settings, views: Views, *, quiet: bool
) -> list[tuple[Prediction, int | None]]:
    """Answer the photographs that can be decoded, each with its label; name the others unless `quiet`."""

    def answer(file: Path) -> Prediction | Exception:
        try:
            inputs = preprocess_views(file.read_bytes(), predictor.image, views, max_pixels=settings.max_image_pixels)
        except (CifarError, OSError) as error:
            return error
        return predictor.rank(predictor.answers_of([inputs])[0], 1)

    with ThreadPoolExecutor(available_cpus()) as pool:
        answers = list(
            tqdm(
                pool.map(answer, photographs.files),
                f"{photographs.name}, views={views}",
                total=len(photographs.files),
                unit=" photographs",
                disable=None,
                leave=False,
            )
        )
    for file, found in zip(photographs.files, answers, strict=True):
        if isinstance(found, Exception) and not quiet:
            say(f"{file} is left out: {found}")
    labelled = zip(answers, photographs.labels, strict=True)
    return [(found, label) for found, label in labelled if not isinstance(found, Exception)]


def _figures(
    class_names: Sequence[str], inside: Sequence[tuple[Prediction, int]], others: Sequence[Prediction]
) -> dict[str, Any]:
    of_classes = [prediction for prediction, _ in inside]
    probabilities = np.array([list(prediction.class_scores.values()) for prediction in of_classes])
    measured = measure(probabilities, np.array([label for _, label in inside]), class_names)
    scored = of_classes[0].ood_score is not None
    scores = tuple(np.array([each.ood_score for each in kind]) for kind in (of_classes, others))
    separable = scored and bool(others)
    return {
        **{name: measured[name] for name in _MEASURED},
        "balanced_interval": mean_interval([entry for entry in measured["per_class"].values() if entry["images"]]),
        "in_distribution": _share(scores[0] <= OOD_THRESHOLD) if scored else None,
        "grades": _grades(of_classes),
        "others_grades": _grades(others) if others else None,
        "auroc": auroc(*scores) if separable else None,
        "auroc_interval": auroc_interval(*scores) if separable else None,
        "caught": _share(scores[1] > OOD_THRESHOLD) if separable else None,
    }


def _grades(predictions: Sequence[Prediction]) -> dict[str, Any]:
    return {grade: _share([prediction.grade == grade for prediction in predictions]) for grade in get_args(Grade)}


def _share(marked: Iterable[bool]) -> dict[str, Any]:
    values = list(marked)
    count = int(sum(values))
    return {
        "count": count,
        "of": len(values),
        "share": count / len(values),
        "interval": wilson_interval(count, len(values)),
    }


def figures_of_the_page(measured: dict[str, Any], gains_from_views: bool) -> dict[str, Any]:
    """Return the entry of one folder, from `measure_photographs`, in a manifest's `metrics.photographs`: with the page's number of views."""
    views = MAX_VIEWS if gains_from_views else 1
    figures: dict[str, Any] = measured["views"][str(views)]
    return {"source": measured["source"], "others": measured["others"], "number_of_views": views} | figures
