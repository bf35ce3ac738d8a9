"""`python -m cifar COMMAND`: argument parsing only; `commands.py` has what each does.

Exit status: 0 done, 1 failed (one sentence says why), 2 wrong use.
"""

from __future__ import annotations

import argparse
import errno
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cifar import __version__
from cifar.cli import commands
from cifar.cli import models as model_commands
from cifar.cli.arguments import (
    accuracy,
    count,
    duration,
    effect,
    interval,
    names,
    part,
    positive,
    share,
    size,
    two_versions,
)
from cifar.errors import CifarError
from cifar.settings import Settings, load_settings

_TO_PROGRAMMERS = (
    "Please consider providing the trackable_obj",
    "You are saving your model as an HDF5 file",
)
"""How advice of TensorFlow and Keras begins that whoever gives a command can do nothing about."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not record.getMessage().startswith(_TO_PROGRAMMERS))
    logging.basicConfig(format="cifar: %(message)s", handlers=[handler])
    try:
        arguments.run(arguments, load_settings())
    except (CifarError, OSError) as error:
        print(f"cifar: {_sentence(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cifar: stopped.", file=sys.stderr)
        return 1
    return 0


_HIDDEN = re.compile(r"(^|/)\.((tmp\.|export-|report-|[0-9a-f]{16}).*|[^/]*$)")
"""What we write before it gets its name, and whatever is in it."""


def _sentence(error: OSError) -> str:
    """Which place the system refused, why, and what to do; of a hidden file of ours only the folder that it was to be in."""
    if error.strerror is None:  # a library's own
        return str(error)
    place = isinstance(error.filename, str) and (_HIDDEN.sub("", error.filename) or ".")
    what = f"{place} cannot be used: {error.strerror}." if place else f"{error.strerror}."
    if error.errno == errno.ENOSPC:
        return f"{what} Make room, then give the command again."
    right = ", or give this user the right to it" if isinstance(error, PermissionError) else ""
    return f"{what} Name another place{right}." if place else what


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cifar", description="Train, export and serve image classifiers.")
    parser.add_argument("--version", action="version", version=__version__)
    kinds = parser.add_subparsers(required=True, metavar="COMMAND")

    data = _command(
        kinds, "data", commands.data, "fetch or check a data set, print what it holds", "cifar data cifar10"
    )
    data.add_argument("source", metavar="SOURCE", help=_SOURCE_HELP)
    _image_size(data)
    _json(data)

    _add_train(kinds)

    export = _command(
        kinds,
        "export",
        commands.export,
        "make a run or a Keras model the next version, and print its path",
        "cifar export runs/first",
    )
    export.add_argument("source", type=Path, help="a run folder, a .keras file or an .h5 file (Keras 2 or 3)")
    export.add_argument("--name", help="the model's name in the registry (default: the setting CIFAR_MODEL_NAME)")
    export.add_argument(
        "--classes",
        type=names,
        metavar="A,B,...",
        help="class names in the order of the outputs (default: the run's; CIFAR's for 10 outputs at 32x32)",
    )
    export.add_argument(
        "--input-range",
        type=interval,
        metavar="LOW,HIGH",
        help="the pixel range the model takes, such as 0,1 or 0,255 or (with the =) --input-range=-1,1",
    )
    export.add_argument(
        "--images", type=Path, metavar="DIR", help="images to compare the export on (default: examples/)"
    )
    export.add_argument("--logits", action="store_true", help="the model ends in logits: append a softmax")

    inspect = _command(
        kinds,
        "inspect",
        commands.inspect,
        "signatures, shapes, sizes and files of a version",
        "cifar inspect saved_model/cifar_classifier/1",
    )
    inspect.add_argument("version_folder", type=Path, metavar="FOLDER", help="a version's folder")
    _json(inspect)

    _add_evaluate(kinds)

    predict = _command(kinds, "predict", commands.predict, "classify image files", "cifar predict photo.jpg --top-k 5")
    which = predict.add_mutually_exclusive_group(required=True)
    which.add_argument("images", nargs="*", default=[], type=Path, metavar="IMAGE")
    which.add_argument("--input", type=Path, metavar="SOURCE", help="a folder, or a text or .csv file of paths")
    predict.add_argument(
        "--output", type=Path, metavar="OUT.parquet", help="with --input: a new folder of Parquet files"
    )
    predict.add_argument(
        "--runner", choices=["local", "ray"], default="local", help="with --input: what computes (default: %(default)s)"
    )
    predict.add_argument("--resume", action="store_true", help="with --input: go on with what was interrupted, if any")
    predict.add_argument("--top-k", type=int, help="labels to print (default: the setting CIFAR_DEFAULT_TOP_K)")
    _version(predict)
    _json(predict)

    _add_models(kinds)
    _add_experiment(kinds)
    _add_keys(kinds)
    _add_records(kinds)

    serve = _command(
        kinds, "serve", commands.serve, "the page and the API, as app.py serves them", "cifar serve --port 8000"
    )
    serve.add_argument("--host", help="address to listen on (default: the setting CIFAR_HOST)")
    serve.add_argument("--workers", type=size, help="processes (default: the setting CIFAR_WORKERS)")
    serve.add_argument("--port", type=int, help="port to listen on (default: the setting CIFAR_PORT)")
    return parser


def _add_train(kinds: Any) -> None:
    train = _command(
        kinds,
        "train",
        commands.train,
        "fit a network, in a new run folder",
        "cifar train --data cifar10 --out runs/first --time-budget 600",
    )
    train.add_argument("--data", required=True, metavar="SOURCE", help=_SOURCE_HELP)
    train.add_argument("--out", required=True, type=Path, metavar="RUN", help="the run's folder, made new")
    train.add_argument(
        "--arch",
        choices=["fast", "tutorial"],
        default="fast",
        help="the network, with its recipe (default: %(default)s)",
    )
    length = train.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=count, help="times through the data (default: the recipe's)")
    length.add_argument(
        "--time-budget", type=positive, metavar="SECONDS", help="how long to train, in place of --epochs"
    )
    train.add_argument(
        "--target-accuracy", type=accuracy, metavar="SHARE", help="stop at this validation accuracy, such as 0.9"
    )
    train.add_argument("--batch-size", type=count, help="images a step (default: the recipe's, fewer of large images)")
    train.add_argument(
        "--learning-rate", type=positive, help="at the start (default: the recipe's, less with --init-from)"
    )
    train.add_argument(
        "--validation-split",
        type=part,
        default=0.05,
        metavar="SHARE",
        help="share of each class held out (default: %(default)s)",
    )
    train.add_argument("--seed", type=int, default=0, help="same seed, same result (default: %(default)s)")
    train.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="what convolutions compute in (default: %(default)s, bfloat16 where the processor is made for it)",
    )
    train.add_argument(
        "--init-from", metavar="PATH", help="start from the weights of a version's folder, a run or a .keras file"
    )
    train.add_argument(
        "--distribute",
        choices=["none", "mirrored", "multiworker"],
        default="none",
        help="all GPUs of this machine, or the processes that TF_CONFIG names (default: %(default)s)",
    )
    train.add_argument("--resume", action="store_true", help="go on from the run's last epoch, if there is one")
    train.add_argument("--h5", action="store_true", help="also write model.h5")
    _image_size(train)


def _add_evaluate(kinds: Any) -> None:
    evaluate = _command(
        kinds,
        "evaluate",
        commands.evaluate,
        "accuracy of an exported version on test images",
        "cifar evaluate --data cifar10",
    )
    evaluate.add_argument("--data", required=True, metavar="SOURCE", help=_SOURCE_HELP)
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="write report.json, report.md and pictures there")
    evaluate.add_argument("--tta", action="store_true", help="also answer from six views of each image")
    evaluate.add_argument(
        "--robustness",
        type=count,
        nargs="?",
        default=0,
        const=2000,
        metavar="IMAGES",
        help="also disturb so many test images (2000 where no number is given)",
    )
    _version(evaluate)
    _json(evaluate)

    card = _command(kinds, "card", commands.card, "a model card, from a report of evaluate", "cifar card reports/first")
    card.add_argument("report", type=Path, metavar="REPORT", help="a folder made by evaluate --out")
    card.add_argument("--out", type=Path, help="the file (default: MODEL_CARD.md in the report's folder)")
    card.add_argument(
        "--notes", type=Path, metavar="FILE", help="Markdown of your own, put where the card says what else is known"
    )


def _add_models(kinds: Any) -> None:
    words = "the versions in the registry, and who is answered by which"
    models = _command(kinds, "models", model_commands.listed, words, "cifar models promote 3")
    _json(models)
    actions = models.add_subparsers(metavar="ACTION")
    _json(_command(actions, "list", model_commands.listed, "versions, labels and traffic", "cifar models list"))
    promote = _command(
        actions, "promote", model_commands.promote, "have a version answer everybody", "cifar models promote 3"
    )
    promote.add_argument("number", type=size, metavar="N", help="the version")
    _command(actions, "rollback", model_commands.rollback, "take the last promotion back", "cifar models rollback")
    label = _command(
        actions, "label", model_commands.label, "give a version another name", "cifar models label canary=3"
    )
    which = label.add_mutually_exclusive_group(required=True)
    which.add_argument("label", nargs="?", type=share, metavar="NAME=N", help="the name, and the version")
    which.add_argument("--remove", metavar="NAME", help="the name to take away")
    traffic = _command(
        actions,
        "traffic",
        model_commands.traffic,
        "share out the users between labels",
        "cifar models traffic stable=90 canary=10 --shadow canary=20",
    )
    traffic.add_argument("traffic", nargs="+", type=share, metavar="LABEL=PERCENT", help="they add to 100")
    traffic.add_argument(
        "--shadow",
        nargs="+",
        type=share,
        default=[],
        metavar="LABEL=PERCENT",
        help="requests that a label answers in the background too, to be compared (default: none)",
    )
    _json(_command(actions, "log", model_commands.changes, "who changed what", "cifar models log"))


def _add_experiment(kinds: Any) -> None:
    ab = _command(kinds, "ab", commands.ab_report, "whether one version is better than another", "cifar ab report")
    ab.add_argument("action", choices=["report"])
    ab.add_argument(
        "--versions",
        type=two_versions,
        metavar="A,B",
        default=(),
        help="the one in use and the one on trial (default: the stable one and the other with traffic)",
    )
    ab.add_argument("--since", type=duration, metavar="DAYS", help="default: the setting CIFAR_AB_WINDOW_DAYS")
    ab.add_argument(
        "--effect",
        type=effect,
        metavar="SHARE",
        help="tell how much feedback finds this difference (default: CIFAR_AB_EFFECT_SHARE)",
    )
    _json(ab)
    drift = _command(
        kinds, "drift", commands.drift, "whether photos and answers are still what they were", "cifar drift --since 6"
    )
    drift.add_argument("--since", type=duration, metavar="HOURS", help="default: the setting CIFAR_DRIFT_WINDOW_HOURS")
    _json(drift)


def _add_keys(kinds: Any) -> None:
    keys = _command(kinds, "keys", commands.keys_list, "make, list and revoke API keys", "cifar keys create ci")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    create = _command(
        actions,
        "create",
        commands.keys_create,
        "make a key and print it, this once",
        "cifar keys create ci --scopes predict",
    )
    create.add_argument("name", metavar="NAME", help="who the key is for")
    create.add_argument(
        "--scopes", default="predict", metavar="A,B", help="predict, feedback, admin (default: predict)"
    )
    _json(_command(actions, "list", commands.keys_list, "names and scopes of the keys there are", "cifar keys list"))
    revoke = _command(actions, "revoke", commands.keys_revoke, "make a key invalid", "cifar keys revoke ci")
    revoke.add_argument("name", metavar="NAME", help="the name it was made under")


def _add_records(kinds: Any) -> None:
    words, example = "export, sweep and migrate predictions and feedback", "cifar records export --out records.csv"
    records = _command(kinds, "records", commands.records_export, words, example)
    actions = records.add_subparsers(required=True, metavar="ACTION")
    export = _command(
        actions,
        "export",
        commands.records_export,
        "all predictions with their feedback, as a table",
        "cifar records export --out records.csv",
    )
    export.add_argument("--format", choices=["csv", "parquet"], default="csv", help="(default: csv)")
    images = _command(
        actions,
        "images",
        commands.records_images,
        "kept images with feedback, as an image folder to train on",
        "cifar records images --out data/said",
    )
    for parser in (export, images):
        parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="where to")
    sweep = _command(actions, "sweep", commands.records_sweep, "delete what is too old, now", "cifar records sweep")
    for parser in (images, sweep):
        _json(parser)
    _command(actions, "migrate", commands.records_migrate, "bring the tables up to date", "cifar records migrate")


_SOURCE_HELP = "cifar10, a cifar-10-python.tar.gz, its extracted folder, or an image folder train/<class>/*"


def _command(
    kinds: Any, name: str, run: Callable[[argparse.Namespace, Settings], None], words: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(
        name, help=words, description=words[0].upper() + words[1:] + ".", epilog=f"example: python -m {example}"
    )
    parser.set_defaults(run=run)
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", type=int, metavar="N", help="the version (default: the one that would be served)")


def _image_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-size",
        type=size,
        default=32,
        metavar="PIXELS",
        help="side that an image folder's pictures get (default: %(default)s)",
    )
