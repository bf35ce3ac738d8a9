"""Commands about model versions: export, inspect, predict, and models, which changes labels and traffic.

Running servers notice a change at their next poll of the registry.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typer import Argument, Context, Option, Typer
from typer import BadParameter as WrongUse

from cifar.cli.arguments import (
    JSON,
    VERSION,
    LabelValue,
    class_names,
    formats,
    image_size,
    label_value,
    preparation,
)
from cifar.cli.ask import ask_preparation, can_ask
from cifar.console import json_text, print_table, say
from cifar.errors import BadParameter, BulkError, CifarError, ExportError, VersionNotFound, VersionUnusable
from cifar.images.spec import Views
from cifar.models.registry import Registry, Version
from cifar.models.rollout import STABLE, Rollout, RolloutLog
from cifar.settings import Settings, load_settings
from cifar.training.export.class_names import abridged, name_for
from cifar.training.export.pixels.preparation import Preparation

if TYPE_CHECKING:
    from cifar.models.predictor import Predictor

app = Typer()
models = Typer()
app.add_typer(models, name="models", epilog="example: python -m cifar models promote 3")

_CLASSES = "Class names in the order of the outputs, a file of them, or an image folder. Default: the run's; CIFAR's for 10 outputs at 32x32."
_INPUT_RANGE = (
    "The model's values of a black and a white pixel, such as 0,1 or 0,255 or -1,1 (bgr:0,255 for BGR); caffe, tf or torch, "
    "as preprocess_input of keras.applications prepares them; or MEANS/DEVIATIONS of the pixels."
)
_SOURCE = "A run folder, a .keras or .h5 file of Keras 2 or 3, a SavedModel folder, or the folder of a version."
_IMAGE_SIZE = "Height and width of the images, for a model that takes any size or a vector of pixels. For one of colours, H,W,3 or 3,H,W."
_IMPORT = "A Python file or module that defines the model's own layers. Its code is run. May be repeated."
_LAMBDA = "Run the Python code of Lambda layers, which is in the file. Only for files from people you trust."
_PRECISION = "Of the LiteRT file. auto: int8 in the layers where it saves time and changes the answers little; int8: the same, or fail."
_CHECK = "A folder with pictures of each class: a few decide the pixel range, and 300 or more also whether int8 holds."

_ALSO = "Files for other programs, in assets.extra/ of the version: onnx, keras. A LiteRT file is always written."
_MULTI_LABEL = (
    "Each class has a probability of its own; they do not add up to 1. Default: whether the model ends in sigmoids."
)


@app.command(epilog="example: python -m cifar export runs/first")
def export(
    source: Path = Argument(..., help=_SOURCE),
    name: str | None = Option(None, help="Name in the registry. Default: CIFAR_MODEL_NAME."),
    classes: Sequence[str] | None = Option(None, parser=class_names, metavar="A,B,...|FILE|DIR", help=_CLASSES),
    input_range: Preparation | None = Option(
        None, "--input-range", "--preprocessing", parser=preparation, metavar="LOW,HIGH|MODE", help=_INPUT_RANGE
    ),
    check: Path | None = Option(None, metavar="DIR", help=_CHECK),
    images: Path | None = Option(None, metavar="DIR", help="Images to compare the export on. Default: examples/."),
    logits: bool = Option(False, "--logits", help="The model ends in logits: append a softmax."),
    multi_label: bool = Option(False, "--multi-label", help=_MULTI_LABEL),
    size: Sequence[int] | None = Option(
        None, "--image-size", parser=image_size, metavar="HEIGHT,WIDTH", help=_IMAGE_SIZE
    ),
    output: str | None = Option(None, metavar="NAME", help="The output with the classes, if the model has several."),
    signature: str | None = Option(None, metavar="NAME", help="The signature of a SavedModel that takes the images."),
    imports: list[str] | None = Option(None, "--import", metavar="FILE.py|MODULE", help=_IMPORT),
    allow_lambda: bool = Option(False, "--allow-lambda", help=_LAMBDA),
    precision: Literal["auto", "float32", "int8"] = Option("auto", help=_PRECISION),
    also: Sequence[str] | None = Option(None, parser=formats, metavar="onnx,keras", help=_ALSO),
) -> None:
    """Export a run or a Keras model as the next version, and print its path."""
    settings = load_settings()
    Registry(settings.registry, name or settings.model_name)  # refuses a wrong name before the model is read
    from cifar.training.export.silence import import_tensorflow

    import_tensorflow()
    from cifar.training.export.formats.write import check_formats
    from cifar.training.export.litert.held_out import read_held_out
    from cifar.training.export.reading.files import Format, recognise
    from cifar.training.export.reading.network import ReadOptions
    from cifar.training.export.reexport import reexport
    from cifar.training.export.source import read_source
    from cifar.training.export.write import export

    check_formats(also or ())
    source = source.parent if source.name == "saved_model.pb" else source
    read = read_source(
        source,
        settings,
        class_names=None if classes is None else tuple(classes),
        input_range=input_range,
        check=check,
        ask=ask_preparation if can_ask() else None,
        images=images,
        logits=logits,
        multi_label=multi_label,
        options=ReadOptions(
            image_size=None if size is None else tuple(size),
            output=output,
            signature=signature,
            imports=tuple(imports or ()),
            allow_lambda=allow_lambda,
        ),
    )
    if not name:
        _check_same_classes(read.class_names, settings)
    same_network = recognise(source) is Format.VERSION and not (classes or input_range)
    write = partial(reexport, source) if same_network else export
    held_out = read_held_out(source, read, settings, labelled=check)
    log = RolloutLog(Registry(settings.registry, name or settings.model_name), pinned=settings.model_version)
    before = None
    with suppress(VersionNotFound, VersionUnusable):
        before = log.stable_version()
    version = write(
        read, settings.registry, name or settings.model_name, precision=precision, held_out=held_out, also=also or ()
    )
    print(version.path)
    found = version.manifest.quantization
    if found and (found.speedup or found.images or precision != "auto"):  # too few images are no news
        say(f"Precision of the LiteRT file: {found.reason}")
    _say_what_is_served(version, log.current(), settings)
    if before and (sentence := _if_less_accurate(version, before)):
        say(sentence)


def _say_what_is_served(version: Version, rollout: Rollout, settings: Settings) -> None:
    """Say whether the exported version is served now, and how to serve another one."""
    other = f"CIFAR_MODEL_NAME={version.name} " if version.name != settings.model_name else ""
    if version.number != rollout.stable:
        command = f"{other}{'python -m cifar ' if other else ''}models promote {version.number}"
        say(f"Version {rollout.stable} stays in service. To serve this one, run `{command}`.")
    elif other:
        say(f"Serve it: {other}make run")
    else:
        say("It is the stable version and serves all users. To serve another one, run `models promote N`.")


def _if_less_accurate(version: Version, before: Version) -> str | None:
    """Say that a version is measured to be less accurate than the stable one before it; None if it is not, or was not measured."""
    for name, what in (("test_accuracy", "test"), ("validation_accuracy", "held-out")):
        new, old = version.manifest.metrics.get(name), before.manifest.metrics.get(name)
        if isinstance(new, int | float) and isinstance(old, int | float):
            sentence = (
                f"It is less accurate than version {before.number} on {what} images: {new:.4f} instead of {old:.4f}."
            )
            return f"{sentence} To serve that one: `models promote {before.number}`." if new < old else None
    return None


def _check_same_classes(names: Sequence[str], settings: Settings) -> None:
    """Refuse to export other classes under the default name, because the model's clients rely on its classes."""
    with suppress(VersionNotFound, VersionUnusable):
        served = RolloutLog.of(settings).stable_version().manifest.class_names
        if list(names) != list(served):
            raise ExportError(
                f"{settings.model_name} has {abridged(served)}, and this model has {abridged(names)}. Give it another name, such as "
                f"--name {name_for(names)}. To replace the model all the same: --name {settings.model_name}"
            )


@app.command(epilog="example: python -m cifar inspect saved_model/cifar_classifier/1")
def inspect(folder: Path = Argument(..., help="A version's folder."), as_json: bool = JSON) -> None:
    """Print the signatures, shapes, sizes and files of a version."""
    load_settings()  # a wrong setting is an error in every command
    from cifar.models.inspection import as_text, inspect_version

    report = inspect_version(folder)
    print(json_text(report) if as_json else as_text(report))


@app.command(epilog="example: python -m cifar predict photo.jpg --top-k 5")
def predict(
    images: list[Path] | None = Argument(None, metavar="IMAGE", help="Image files."),
    source: Path | None = Option(None, "--input", metavar="SOURCE", help="A folder, or a .txt or .csv file of paths."),
    output: Path | None = Option(None, metavar="OUT.parquet", help="With --input: a new folder of Parquet files."),
    runner: Literal["local", "ray"] = Option("local", help="With --input: this machine or a Ray cluster."),
    resume: bool = Option(False, "--resume", help="With --input: continue an interrupted run, if there is one."),
    top_k: int | None = Option(None, help="Labels to print. Default: CIFAR_DEFAULT_TOP_K."),
    version: int | None = VERSION,
    views: Views = Option(1, help="Views of each image to average: 2, also mirrored; 6, also cropped or moved; auto."),
    as_json: bool = JSON,
) -> None:
    """Classify image files."""
    if bool(images) == bool(source):
        raise WrongUse("give either image files or --input", param_hint="IMAGE")
    settings = load_settings()
    if source:
        if output is None:
            raise BulkError("--input needs --output: the folder for the rows, such as out.parquet.")
        from cifar.bulk.run import predict_many

        chosen = chosen_version(version, settings)
        errors = predict_many(source, output, chosen, settings, runner=runner, resume=resume, views=views)
        print(output)
        if errors:
            say(f"{errors:,} rows hold an error instead of a prediction; see their column error.")
        return
    rows, problems = _classify(images or [], chosen_version(version, settings), settings, top_k, views)
    if not as_json:
        _print_predictions(rows)
    elif rows:
        print(json_text(rows))
    for problem in problems[:-1]:
        say(str(problem))
    if problems:
        raise problems[-1]


def _classify(
    images: Sequence[Path], version: Version, settings: Settings, top_k: int | None, views: Views
) -> tuple[list[dict[str, Any]], list[CifarError]]:
    """Return a row for each image that was classified, and an error for each other file."""
    from cifar.images.decode import preprocess_views

    predictor = _load(version, settings)
    views = predictor.views_for(views)
    top_k = predictor.clamp_top_k(settings.default_top_k) if top_k is None else top_k
    rows: list[dict[str, Any]] = []
    problems: list[CifarError] = []
    for file in images:
        try:
            inputs = preprocess_views(_content(file), predictor.image, views, max_pixels=settings.max_image_pixels)
        except CifarError as error:
            problems.append(CifarError(f"{file}: {error}"))
            continue
        prediction = predictor.rank(predictor.answers_of([inputs])[0], top_k)
        rows.append(
            {
                "image": str(file),
                "top_k": [{"label": label, "score": score} for label, score in prediction.top_k],
                "ood_score": prediction.ood_score,
                "in_distribution": prediction.in_distribution,
                "grade": prediction.grade,
            }
        )
    return rows, problems


def _print_predictions(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        print(row["image"], *(f"{entry['label']} {entry['score']:.4f}" for entry in row["top_k"]), sep="\t")
        if row["grade"] == "none":
            say(f"{row['image']} is unlike the training images, probably of none of the classes.")
        elif row["grade"] == "unsure":
            say(f"{row['image']}: unsure; it looks most like {row['top_k'][0]['label']}.")


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except IsADirectoryError:
        raise CifarError(f"it is a folder; predict --input {file} --output out.parquet") from None
    except OSError as error:
        raise CifarError(f"it cannot be read: {error.strerror}.") from error


def chosen_version(number: int | None, settings: Settings) -> Version:
    """Return the version with this number. Without a number, return the stable one, which a server would serve."""
    if number is None:
        return RolloutLog.of(settings).stable_version()
    return Registry(settings.registry, settings.model_name).get(number)


@models.callback(invoke_without_command=True)
def _models(context: Context, as_json: bool = JSON) -> None:
    """List the versions in the registry, and change which users get which version."""
    if context.invoked_subcommand is None:
        list_versions(as_json=as_json)


@models.command("list", epilog="example: python -m cifar models list")
def list_versions(as_json: bool = JSON) -> None:
    """List versions, labels and traffic."""
    settings = load_settings()
    from cifar.models.inspection import list_versions

    log = RolloutLog.of(settings)
    rows, problems = list_versions(log.registry)
    if rows:
        rollout = log.current()
        for row in rows:
            labels = [label for label, number in rollout.labels.items() if number == row["version"]]
            row["labels"] = ",".join(labels)
            row["traffic"] = sum(rollout.traffic.get(label, 0) for label in labels)
    if rows or as_json:
        print_table(rows[0] if rows else (), rows, as_json=as_json)
    else:
        say(f"There is no version of {settings.model_name} in {settings.registry}.")
    for problem in problems:
        say(problem)


@models.command(epilog="example: python -m cifar models promote 3")
def promote(number: int = Argument(..., min=1, metavar="N", help="The version.")) -> None:
    """Make a version the stable one."""
    settings = load_settings()
    log = RolloutLog.of(settings)
    _report(log.promote(number, by=_user(), check_loadable=lambda version: _load(version, settings)), settings)


@models.command(epilog="example: python -m cifar models rollback")
def rollback() -> None:
    """Undo the last promotion."""
    settings = load_settings()
    log = RolloutLog.of(settings)
    _report(log.rollback(by=_user(), check_loadable=lambda version: _load(version, settings)), settings)


@models.command(epilog="example: python -m cifar models label canary=3")
def label(
    assignment: LabelValue | None = Argument(
        None, parser=label_value, metavar="NAME=N", help="The label, and its version."
    ),
    remove: str | None = Option(None, metavar="NAME", help="The label to remove."),
) -> None:
    """Give a version a label, or remove a label."""
    settings = load_settings()
    if remove is not None and assignment is None:
        rollout = RolloutLog.of(settings).label(remove, None, by=_user())
    elif assignment is not None and remove is None:
        rollout = RolloutLog.of(settings).label(*assignment, by=_user())
    else:
        raise WrongUse("give either NAME=N or --remove NAME", param_hint="NAME=N")
    _report(rollout, settings)


@models.command(epilog="example: python -m cifar models traffic stable=90 canary=10 --shadow canary=20")
def traffic(
    shares: list[LabelValue] = Argument(..., parser=label_value, metavar="LABEL=PERCENT", help="They add up to 100."),
    shadow: list[LabelValue] | None = Option(
        None,
        parser=label_value,
        metavar="LABEL=PERCENT ...",
        help="Share of requests that this label also answers in the background, for comparison.",
    ),
) -> None:
    """Split the users between labels."""
    settings = load_settings()
    split = RolloutLog.of(settings).split(_unique(shares), shadow=_unique(shadow or []), by=_user())
    _report(split, settings)


@models.command("log", epilog="example: python -m cifar models log")
def changes(as_json: bool = JSON) -> None:
    """List the changes of labels and traffic, and who made them."""
    rows = [change.model_dump() for change in RolloutLog.of(load_settings()).changes()]
    if rows or as_json:
        print_table(["revision", "at", "by", "action"], rows, as_json=as_json)
    else:
        say("Nothing has been changed yet: the highest version is the stable one.")


def _load(version: Version, settings: Settings) -> Predictor:
    from cifar.models.engines import engine_of
    from cifar.models.predictor import Predictor

    return Predictor.load(version, engine_of(settings))


def _user() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _unique(pairs: Sequence[LabelValue]) -> dict[str, int]:
    shares = dict(pairs)
    if len(shares) < len(pairs):
        raise BadParameter(f"A label may be given once; got {', '.join(label for label, _ in pairs)}.")
    return shares


def _report(rollout: Rollout, settings: Settings) -> None:
    """Print the traffic split to stdout, and notes about it to stderr."""
    print(*(f"{name}={percent} (version {rollout.labels[name]})" for name, percent in rollout.traffic.items()))
    for name, number in rollout.labels.items():
        if number == rollout.stable and name != STABLE:
            say(
                f"{name} is the stable version too, so it gets no trial traffic. To make an older version stable: models promote N"
            )
    say(f"Revision {rollout.revision}; running servers follow within {settings.registry_poll_seconds:g} s.")
