"""Commands about data sets, training and measuring: data, train, evaluate, card."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any, Literal

from typer import Argument, BadParameter, Option, Typer

from cifar.cli.arguments import (
    DATA,
    IMAGE_SIZE,
    JSON,
    SKIP_DAMAGED,
    SOURCE,
    VERSION,
    MeasuredViews,
    accuracy,
    fraction,
    positive,
    share,
)
from cifar.cli.models import chosen_version
from cifar.cli.packages import need_tensorflow
from cifar.console import json_text, print_report, say
from cifar.environment import process_environment
from cifar.settings import ROOT, load_settings

app = Typer()

_PRECISION = "Number type of convolutions. auto: bfloat16 where the processor supports it."
_DEFAULT_SHEET = ROOT / "var" / "contact-sheet.png"
_SHEET = "Where to write the contact sheet, a PNG. Default: var/contact-sheet.png."
_CLASS_WEIGHTS = "Let every class count the same in the loss, however many images it has."
_ARCH = "The network, with its recipe. Default: photo (pretrained) for a small number of photographs, otherwise fast."
_PHOTO_VIEWS = "Share of the images that are changed to look like photographs; train twice as long with it."
_TEACHER = "A run or .keras file whose answers to learn instead of the labels. May be repeated, for their mean."
_TIME_BUDGET = "Time by the clock for the whole command, in place of --epochs."
_PHOTOS = "Also measure photographs: DIR/CLASS/*, and DIR/none/* of none of the classes. May be repeated."
_DISTRIBUTE = "mirrored: all GPUs of this machine. multiworker: the processes that TF_CONFIG names."


@app.command(epilog="example: python -m cifar data cifar10")
def data(
    source: str = SOURCE,
    image_size: int | None = IMAGE_SIZE,
    skip_damaged: bool = SKIP_DAMAGED,
    damaged: Path | None = Option(
        None, metavar="FILE", help="Write the names of damaged pictures, and why, to this file."
    ),
    sheet: Path | None = Option(None, metavar="FILE", help=_SHEET),
    as_json: bool = JSON,
) -> None:
    """Fetch or check a data set, print its contents, and draw a contact sheet of it."""
    settings = load_settings()
    from cifar.training.data.dataset import read_dataset, refuse_damaged
    from cifar.training.data.overview import as_text, summarize, write_damaged, write_sheet

    dataset = read_dataset(source, settings, image_shape=(image_size, image_size, 3) if image_size else None)
    summary = summarize(dataset)
    print(json_text(summary) if as_json else as_text(summary, dataset))
    if damaged:
        write_damaged(dataset, damaged)
    try:
        write_sheet(dataset, sheet or _DEFAULT_SHEET)
        say(f"The contact sheet is in {sheet or _DEFAULT_SHEET}.")
    except OSError as error:
        if sheet:
            raise
        say(f"No contact sheet was written: {_DEFAULT_SHEET}: {error.strerror}. Name another place with --sheet FILE.")
    if not skip_damaged:
        refuse_damaged(dataset)


@app.command(epilog="example: python -m cifar train --data cifar10 --out runs/first --time-budget 600")
def train(
    data: str = DATA,
    out: Path = Option(..., metavar="RUN", help="The run's folder, which must not exist."),
    arch: Literal["fast", "deep", "large", "tutorial", "photo"] | None = Option(None, help=_ARCH),
    epochs: int | None = Option(None, min=1, metavar="N", help="Passes over the data. Default: the recipe's."),
    time_budget: float | None = Option(None, parser=positive, metavar="SECONDS", help=_TIME_BUDGET),
    target_accuracy: float | None = Option(
        None, parser=accuracy, metavar="SHARE", help="Stop when validation reaches it."
    ),
    batch_size: int | None = Option(None, min=1, metavar="N", help="Default: the recipe's, fewer for large images."),
    learning_rate: float | None = Option(None, parser=positive, help="Default: the recipe's, less with --init-from."),
    validation_split: float = Option(0.05, parser=fraction, help="Share of each class held out."),
    seed: int = Option(0, help="The same seed gives the same result on the same kind of machine."),
    precision: Literal["auto", "float32", "bfloat16"] = Option("auto", help=_PRECISION),
    init_from: str | None = Option(None, metavar="PATH", help="A version's folder, run or .keras file to start from."),
    distribute: Literal["none", "mirrored", "multiworker"] = Option("none", help=_DISTRIBUTE),
    resume: bool = Option(False, "--resume", help="Continue after the run's last epoch, if any."),
    h5: bool = Option(False, "--h5", help="Also write model.h5."),
    image_size: int | None = IMAGE_SIZE,
    teacher: list[str] | None = Option(None, metavar="PATH", help=_TEACHER),
    photo_views: float = Option(0.0, parser=share, metavar="SHARE", help=_PHOTO_VIEWS),
    class_weights: bool = Option(False, "--class-weights", help=_CLASS_WEIGHTS),
    skip_damaged: bool = SKIP_DAMAGED,
) -> None:
    """Train a network into a new run folder."""
    if epochs is not None and time_budget is not None:
        raise BadParameter("not allowed together with --epochs", param_hint="'--time-budget'")
    began = time.monotonic()
    need_tensorflow()
    settings = load_settings()
    from cifar.training.data.dataset import load_dataset
    from cifar.training.data.findings import describe_training
    from cifar.training.data.photographs import PHOTO, choose_network
    from cifar.training.run.run_folder import CHECKPOINT, check_folder

    # With several workers, only the chief checks the folder, and later.
    if not resume and distribute != "multiworker":
        check_folder(out, {}, resume=False)
    options: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "validation_split": validation_split,
        "time_budget": time_budget,
        "target_accuracy": target_accuracy,
        "precision": precision,
        "init_from": init_from,
        "teacher": tuple(teacher or ()),
        "photo_views": photo_views,
    }
    choice = choose_network(arch, image_size, options | {"distribute": distribute})
    dataset = load_dataset(data, settings, image_shape=choice.image_shape, skip_damaged=skip_damaged)
    network = choice.arch_for(dataset.contents)
    fit, held_out = dataset.hold_out(validation_split, seed)
    cross_validated = network == PHOTO and dataset.validation is None
    for sentence in describe_training(
        dataset.class_names,
        dataset.train_labels if cross_validated else dataset.train_labels[fit],
        None if cross_validated else len(held_out),
        len(dataset.test_labels),
    ):
        say(sentence)
    from cifar.training.export.silence import import_tensorflow

    import_tensorflow()
    from cifar.training.run.config import TrainConfig
    from cifar.training.run.train import train  # imported late: loading TensorFlow takes seconds

    config = TrainConfig(arch=network, seed=seed, class_weights=class_weights, **options)
    try:
        if distribute != "none":
            from cifar.training.distributed.together import train_together
            from cifar.training.distributed.workers import join

            workers = join(distribute, process_environment().get("TF_CONFIG"))
            result = train_together(config, dataset, out, workers, resume=resume, h5=h5, began=began)
        else:
            result = train(config, dataset, out, resume=resume, h5=h5, began=began)
        if result:  # with several workers, only the chief has one
            print(result)
            say(f"Next: python -m cifar export {shlex.quote(str(out))}")
    except KeyboardInterrupt:
        if (out / CHECKPOINT).exists():
            say(f"The finished epochs are saved in {out}; to continue, add --resume to the same command.")
        else:
            say("No epoch was finished; to begin again, add --resume to the same command.")
        raise


@app.command(epilog="example: python -m cifar evaluate --data cifar10")
def evaluate(
    data: str = DATA,
    out: Path | None = Option(None, metavar="DIR", help="Write report.json, report.md and plots to this new folder."),
    photos: list[str] | None = Option(None, metavar="[NAME=]DIR", help=_PHOTOS),
    views: MeasuredViews = Option(
        1, help="Also measure the mean of this many views of each image (test-time augmentation)."
    ),
    robustness: int | None = Option(
        None, min=1, metavar="[IMAGES]", help="Also measure on this many disturbed test images (2000)."
    ),
    version: int | None = VERSION,
    skip_damaged: bool = SKIP_DAMAGED,
    as_json: bool = JSON,
) -> None:
    """Measure the accuracy of an exported version on test images."""
    settings = load_settings()
    from cifar.training.report.report import make_report
    from cifar.training.report.text import summary

    report = make_report(
        chosen_version(version, settings),
        settings,
        data,
        photographs=photos or (),
        out=out,
        views=views,
        disturbed_images=robustness or 0,
        skip_damaged=skip_damaged,
    )
    print_report(report if as_json else summary(report), as_json=as_json)
    if out:
        say(f"The report is in {out}.")


@app.command(epilog="example: python -m cifar card reports/first")
def card(
    report: Path = Argument(..., metavar="REPORT", help="A folder made by evaluate --out."),
    out: Path | None = Option(None, help="The file. Default: MODEL_CARD.md in the report's folder."),
    notes: Path | None = Option(None, metavar="FILE", help="Markdown of your own to insert as further notes."),
    license_id: str = Option("unknown", "--license", metavar="ID", help="The model's licence, such as mit."),
) -> None:
    """Write a model card from a report of evaluate."""
    settings = load_settings()
    from cifar.training.report.card import write_card

    print(write_card(report, settings, out or report / "MODEL_CARD.md", notes, license_id=license_id))
