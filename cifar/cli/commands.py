"""What the commands of `python -m cifar` do. Data goes to stdout, words to stderr.

Each imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cifar.console import print_json, print_table, say
from cifar.errors import BulkError, CifarError, ExportError, RecordsError, VersionNotFound, VersionUnusable
from cifar.models.registry import Registry, Version
from cifar.models.rollout import RolloutLog
from cifar.settings import ROOT, Settings, process_environment

if TYPE_CHECKING:
    from sqlalchemy import Engine


def data(arguments: argparse.Namespace, settings: Settings) -> None:
    """Fetch or check a data set."""
    from cifar.training.data.dataset import load_dataset, summarize

    summary = summarize(load_dataset(arguments.source, settings, image_shape=_square(arguments.image_size)))
    _print(summary, arguments.json)


def train(arguments: argparse.Namespace, settings: Settings) -> None:
    """Fit a network."""
    from cifar.training.data.dataset import load_dataset
    from cifar.training.run.run_folder import CHECKPOINT, check_folder

    # Of several workers, the chief alone looks there, later.
    if not arguments.resume and arguments.distribute != "multiworker":
        check_folder(arguments.out, {}, resume=False)
    dataset = load_dataset(arguments.data, settings, image_shape=_square(arguments.image_size))
    from cifar.training.distributed.workers import join
    from cifar.training.run.context import TrainConfig
    from cifar.training.run.train import train  # not before: TensorFlow takes seconds to come

    config = TrainConfig(**{field.name: getattr(arguments, field.name) for field in fields(TrainConfig)})
    workers = join(arguments.distribute, process_environment().get("TF_CONFIG"))
    try:
        result = train(config, dataset, arguments.out, resume=arguments.resume, h5=arguments.h5, workers=workers)
        if workers.is_chief:
            print(result)
    except KeyboardInterrupt:
        kept = (arguments.out / CHECKPOINT).exists()
        words = f"What was finished is kept in {arguments.out}; go on" if kept else "No epoch was finished; begin again"
        say(f"{words} with the same command and --resume.")
        raise


def export(arguments: argparse.Namespace, settings: Settings) -> None:
    """Make a run or a Keras model the next version."""
    from cifar.training.export.source import read_source
    from cifar.training.export.write import export

    source = read_source(
        arguments.source,
        settings,
        class_names=arguments.classes,
        input_range=arguments.input_range,
        images=arguments.images,
        logits=arguments.logits,
    )
    if not arguments.name:
        _refuse_other_classes(source.class_names, settings)
    version = export(source, settings.registry, arguments.name or settings.model_name)
    print(version.path)
    routing = RolloutLog(Registry(settings.registry, version.name), pinned=settings.model_version).now()
    if version.number == routing.stable:
        say("It is the stable version, so it answers everybody. `models promote N` has another one be that.")
    else:
        say(f"Version {routing.stable} goes on answering; `models promote {version.number}` has this one do it.")


def _refuse_other_classes(names: Sequence[str], settings: Settings) -> None:
    """Who calls the model by its name counts on its classes: others take its place only by that name."""
    with suppress(VersionNotFound, VersionUnusable):
        served = RolloutLog.of(settings).stable_version().manifest.class_names
        if list(names) != list(served):
            raise ExportError(
                f"{settings.model_name} tells {_some(served)} apart, and this model {_some(names)}. Give it a name of its own, such as "
                f"--name {'-'.join(names)[:40]}. If it shall take that one's place: --name {settings.model_name}"
            )


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def inspect(arguments: argparse.Namespace, _: Settings) -> None:
    """Describe a version."""
    from cifar.models.inspection import as_text, inspect_version

    report = inspect_version(arguments.version_folder)
    if arguments.json:
        print_json(report)
    else:
        print(as_text(report))


def evaluate(arguments: argparse.Namespace, settings: Settings) -> None:
    """Measure what a version answers to test images."""
    from cifar.training.report.report import make_report
    from cifar.training.report.text import summary

    report = make_report(
        _chosen_version(arguments, settings),
        settings,
        arguments.data,
        out=arguments.out,
        views=arguments.tta,
        disturbed_images=arguments.robustness,
    )
    _print(report if arguments.json else summary(report), arguments.json)
    if arguments.out:
        say(f"The report is in {arguments.out}.")


def card(arguments: argparse.Namespace, settings: Settings) -> None:
    """Write a model card."""
    from cifar.training.report.card import write_card

    print(write_card(arguments.report, settings, arguments.out or arguments.report / "MODEL_CARD.md", arguments.notes))


def predict(arguments: argparse.Namespace, settings: Settings) -> None:
    """Classify image files."""
    if arguments.input:
        _predict_many(arguments, settings)
        return
    from cifar.images.decode import preprocess
    from cifar.models.engines import engine_of
    from cifar.models.predictor import Predictor

    predictor = Predictor.load(_chosen_version(arguments, settings), engine_of(settings))
    top_k = predictor.at_most(settings.default_top_k) if arguments.top_k is None else arguments.top_k
    rows: list[dict[str, Any]] = []
    problems: list[CifarError] = []
    for file in arguments.images:
        try:
            pixels = preprocess(_content(file), predictor.image, max_pixels=settings.max_image_pixels)
        except CifarError as error:  # the others are answered all the same
            problems.append(CifarError(f"{file}: {error}"))
            continue
        (prediction,) = predictor.predict(pixels[None], top_k=top_k)
        rows.append(
            {
                "image": str(file),
                "top_k": [{"label": label, "score": score} for label, score in prediction.top_k],
                "ood_score": prediction.ood_score,
                "in_distribution": prediction.in_distribution,
            }
        )
    if not arguments.json:
        _print_predictions(rows)
    elif rows:
        print_json(rows)
    for problem in problems[:-1]:
        say(str(problem))
    if problems:
        raise problems[-1]


def _print_predictions(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        print(row["image"], *(f"{entry['label']} {entry['score']:.4f}" for entry in row["top_k"]), sep="\t")
        if row["in_distribution"] is False:
            say(f"{row['image']} is unlike the training images, probably of none of the classes.")


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except IsADirectoryError:
        raise CifarError(f"it is a folder; predict --input {file} --output out.parquet") from None
    except OSError as error:
        raise CifarError(f"it cannot be read: {error.strerror}.") from error


def _predict_many(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.output is None:
        raise BulkError("--input needs --output: the folder for the rows, such as out.parquet.")
    from cifar.bulk.run import predict_many

    errors = predict_many(
        arguments.input,
        arguments.output,
        _chosen_version(arguments, settings),
        settings,
        runner=arguments.runner,
        resume=arguments.resume,
    )
    print(arguments.output)
    if errors:
        say(f"{errors:,} rows hold an error instead of an answer; see their column error.")


def ab_report(arguments: argparse.Namespace, settings: Settings) -> None:
    """Compare two versions by what was recorded."""
    from cifar.analytics.ab import ab_report
    from cifar.analytics.tables import report_text

    with _records(settings) as engine:
        report = ab_report(
            engine, settings, versions=arguments.versions, since_days=arguments.since, effect=arguments.effect
        )
    if arguments.json:
        print_json(report.as_json())
    else:
        print(report_text(report))


def drift(arguments: argparse.Namespace, settings: Settings) -> None:
    """Compare recent photos and answers with those of the manifest."""
    from cifar.analytics.drift_report import drift_report
    from cifar.analytics.tables import drift_text

    with _records(settings) as engine:
        found = drift_report(
            engine, Registry(settings.registry, settings.model_name), settings, since_hours=arguments.since
        )
    if arguments.json:
        print_json([version.as_json() for version in found])
    else:
        print(drift_text(found, min_images=settings.drift_min_images))


def keys_create(arguments: argparse.Namespace, settings: Settings) -> None:
    """Make an API key."""
    from cifar.serving.auth.api_keys import create

    print(create(_keys_file(settings), arguments.name, arguments.scopes.split(",")))
    say(f"This is the only time that the key {arguments.name} is shown: keep it where secrets are kept.")


def keys_list(arguments: argparse.Namespace, settings: Settings) -> None:
    """List the API keys."""
    from cifar.serving.auth.api_keys import listed

    rows = listed(_keys_file(settings))
    if arguments.json:
        print_json(rows)
    else:
        print_table(["name", "key", "scopes", "created"], rows)


def keys_revoke(arguments: argparse.Namespace, settings: Settings) -> None:
    """Make an API key invalid."""
    from cifar.serving.auth.api_keys import revoke

    revoke(_keys_file(settings), arguments.name)
    say(f"The key {arguments.name} is revoked; running servers notice within {settings.api_keys_reload_seconds:g} s.")


def _keys_file(settings: Settings) -> Path:
    if settings.api_keys_file is None:
        raise CifarError("Set CIFAR_API_KEYS_FILE to the file that holds the keys' hashes, such as api-keys.json.")
    return settings.api_keys_file


def records_migrate(_: argparse.Namespace, settings: Settings) -> None:
    """Bring the tables of the records to the newest revision."""
    with _records(settings) as engine:
        from cifar.records.database import migrate

        print(migrate(engine, settings.records_folder))


def records_export(arguments: argparse.Namespace, settings: Settings) -> None:
    """Write the predictions as a table."""
    with _records(settings) as engine:
        from cifar.records.export import export_table

        count = export_table(engine, arguments.out, arguments.format)
    say(f"{count:,} predictions are in {arguments.out}.")


def records_images(arguments: argparse.Namespace, settings: Settings) -> None:
    """Write the images that people said something of as an image folder."""
    with _records(settings) as engine:
        from cifar.records.export import export_images

        written, left_out = export_images(engine, settings, arguments.out)
    _print({name: written[name] for name in sorted(written)}, arguments.json)
    say(
        f"{sum(written.values()):,} images are in {arguments.out}: python -m cifar train --data {arguments.out} --out runs/NAME"
    )
    for words, count in left_out.items():
        say(f"{count:,} were left out: {words}.")


def records_sweep(arguments: argparse.Namespace, settings: Settings) -> None:
    """Delete what is older than the settings allow."""
    with _records(settings) as engine:
        from cifar.records.retention import sweep

        _print(sweep(engine, settings)._asdict(), arguments.json)


@contextmanager
def _records(settings: Settings) -> Iterator[Engine]:
    """The records' database, ready; what goes wrong with it is one sentence."""
    from sqlalchemy.exc import SQLAlchemyError

    from cifar.records.database import open_engine

    engine = open_engine(settings)
    try:
        _migrate(engine, settings.records_folder)
        yield engine
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise RecordsError(f"The records' database cannot be used: {reason}.") from error
    finally:
        engine.dispose()


def _migrate(engine: Engine, folder: Path) -> None:
    from cifar.records.database import migrate

    try:
        folder.mkdir(parents=True, exist_ok=True)
        migrate(engine, folder)
    except OSError as error:
        raise RecordsError(
            f"The records' folder {folder} cannot be written: {error.strerror}. CIFAR_RECORDS_FOLDER names another."
        ) from error


def serve(arguments: argparse.Namespace, settings: Settings) -> NoReturn:
    """Replace this process by the server, which reads the same settings."""
    workers = arguments.workers or settings.workers
    port = settings.port if arguments.port is None else arguments.port
    chosen = {"HOST": arguments.host or settings.host, "PORT": port, "WORKERS": workers}
    environment = {f"CIFAR_{name}": str(value) for name, value in chosen.items()}
    command = ["app.py"] if workers == 1 else ["-m", "gunicorn", "-c", "gunicorn.conf.py", "app:app"]
    os.chdir(ROOT)
    os.execve(sys.executable, [sys.executable, *command], {**process_environment(), **environment})


def _chosen_version(arguments: argparse.Namespace, settings: Settings) -> Version:
    """The version named, else the one that the server would serve."""
    if arguments.version is None:
        return RolloutLog.of(settings).stable_version()
    return Registry(settings.registry, settings.model_name).get(arguments.version)


def _square(size: int) -> tuple[int, int, int]:
    return size, size, 3


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    for key, value in report.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, entry in value.items():
                print(f"  {name:<20} {entry}")
        else:
            print(f"{key}: {value}")
