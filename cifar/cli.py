"""`python -m cifar COMMAND`: argument parsing only. Data goes to stdout, words to stderr.

Exit status: 0 done, 1 failed (one sentence says why), 2 wrong use. Each command imports what it needs when it runs,
so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cifar import __version__
from cifar.errors import CifarError
from cifar.registry import Registry, Version
from cifar.settings import ROOT, Settings, load_settings, process_environment


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="cifar: %(message)s")
    try:
        arguments.run(arguments, load_settings())
    except (CifarError, OSError) as error:
        print(f"cifar: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cifar: stopped.", file=sys.stderr)
        return 1
    return 0


def _data(arguments: argparse.Namespace, settings: Settings) -> None:
    from cifar.training.data import load_dataset, summarize

    summary = summarize(load_dataset(arguments.source, settings, image_shape=_square(arguments.image_size)))
    _print(summary, arguments.json)


def _train(arguments: argparse.Namespace, settings: Settings) -> None:
    from cifar.training.data import load_dataset
    from cifar.training.train import TrainConfig, train

    config = TrainConfig(
        arch=arguments.arch,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        validation_split=arguments.validation_split,
        seed=arguments.seed,
    )
    dataset = load_dataset(arguments.data, settings, image_shape=_square(arguments.image_size))
    try:
        print(train(config, dataset, arguments.out, resume=arguments.resume, h5=arguments.h5))
    except KeyboardInterrupt:
        _say(f"What was finished is kept in {arguments.out}; go on with the same command and --resume.")
        raise


def _export(arguments: argparse.Namespace, settings: Settings) -> None:
    from cifar.training.export import export
    from cifar.training.source import read_source

    source = read_source(
        arguments.source,
        settings,
        class_names=arguments.classes,
        input_range=arguments.input_range,
        images=arguments.images,
        logits=arguments.logits,
    )
    print(export(source, settings.registry, arguments.name or settings.model_name).path)


def _inspect(arguments: argparse.Namespace, _: Settings) -> None:
    from cifar.inspection import as_text, inspect_version

    report = inspect_version(arguments.version_folder)
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))


def _evaluate(arguments: argparse.Namespace, settings: Settings) -> None:
    from cifar.predictor import Predictor
    from cifar.training.data import load_dataset
    from cifar.training.evaluate import evaluate

    version = _chosen_version(arguments, settings)
    spec = version.manifest.image
    dataset = load_dataset(arguments.data, settings, image_shape=(spec.height, spec.width, spec.channels))
    _print(evaluate(Predictor.load(version, settings.engine), dataset), arguments.json)


def _predict(arguments: argparse.Namespace, settings: Settings) -> None:
    from cifar.predictor import Predictor
    from cifar.preprocess import preprocess

    predictor = Predictor.load(_chosen_version(arguments, settings), settings.engine)
    top_k = predictor.at_most(settings.default_top_k) if arguments.top_k is None else arguments.top_k
    rows: list[dict[str, Any]] = []
    for file in arguments.images:
        try:
            pixels = preprocess(file.read_bytes(), **predictor.image.model_dump(), max_pixels=settings.max_image_pixels)
        except OSError as error:
            raise CifarError(f"{file} cannot be read: {error.strerror}.") from error
        except CifarError as error:
            raise type(error)(f"{file}: {error}") from error
        (prediction,) = predictor.predict(pixels[None], top_k=top_k)
        rows.append(
            {"image": str(file), "top_k": [{"label": label, "score": score} for label, score in prediction.top_k]}
        )
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(row["image"], *(f"{entry['label']} {entry['score']:.4f}" for entry in row["top_k"]), sep="\t")


def _models(arguments: argparse.Namespace, settings: Settings) -> None:
    registry = _registry(settings)
    problems = registry.problems()
    rows: list[dict[str, Any]] = [
        {
            "version": version.number,
            "created": version.manifest.created,
            "classes": len(version.manifest.class_names),
            "image": "x".join(map(str, version.manifest.image.shape)),
            "test_accuracy": version.manifest.metrics.get("test_accuracy"),
        }
        for version in (registry.get(number) for number in registry.numbers() if str(number) not in problems)
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print(*rows[0], sep="\t")
        for row in rows:
            print(*row.values(), sep="\t")
    if not rows:
        _say(f"There is no version of {settings.model_name} in {settings.registry}.")
    for problem in problems.values():
        _say(problem)


def _keys_create(arguments: argparse.Namespace, settings: Settings) -> None:
    from cifar.serving.api_keys import create

    print(create(_keys_file(settings), arguments.name, arguments.scopes.split(",")))
    _say(f"This is the only time that the key {arguments.name} is shown: keep it where secrets are kept.")


def _keys_list(arguments: argparse.Namespace, settings: Settings) -> None:
    from cifar.serving.api_keys import listed

    rows = listed(_keys_file(settings))
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in (["name", "key", "scopes", "created"], *(row.values() for row in rows)):
        print(*row, sep="\t")


def _keys_revoke(arguments: argparse.Namespace, settings: Settings) -> None:
    from cifar.serving.api_keys import revoke

    revoke(_keys_file(settings), arguments.name)
    _say(f"The key {arguments.name} is revoked; running servers notice within {settings.api_keys_reload_seconds:g} s.")


def _keys_file(settings: Settings) -> Path:
    if settings.api_keys_file is None:
        raise CifarError("Set CIFAR_API_KEYS_FILE to the file that holds the keys' hashes, such as api-keys.json.")
    return settings.api_keys_file


def _serve(arguments: argparse.Namespace, settings: Settings) -> NoReturn:
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
    return _registry(settings).get(settings.model_version if arguments.version is None else arguments.version)


def _registry(settings: Settings) -> Registry:
    return Registry(settings.registry, settings.model_name)


def _square(size: int) -> tuple[int, int, int]:
    return size, size, 3


def _say(words: str) -> None:
    print(f"cifar: {words}", file=sys.stderr)


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
        return
    for key, value in report.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, entry in value.items():
                print(f"  {name:<20} {entry}")
        else:
            print(f"{key}: {value}")


# --- the parser -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cifar", description="Train, export and serve image classifiers.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    data = _command(commands, "data", _data, "fetch or check a data set, print what it holds", "cifar data cifar10")
    data.add_argument("source", metavar="SOURCE", help=_SOURCE_HELP)
    _image_size(data)
    _json(data)

    train = _command(
        commands, "train", _train, "fit a network, in a new run folder", "cifar train --data cifar10 --out runs/first"
    )
    train.add_argument("--data", required=True, metavar="SOURCE", help=_SOURCE_HELP)
    train.add_argument("--out", required=True, type=Path, metavar="RUN", help="the run's folder, made new")
    train.add_argument("--arch", default="tutorial", help="the network (default: %(default)s)")
    train.add_argument("--epochs", type=int, default=10, help="times through the data (default: %(default)s)")
    train.add_argument("--batch-size", type=int, default=64, help="images a step (default: %(default)s)")
    train.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam (default: %(default)s)")
    train.add_argument(
        "--validation-split", type=float, default=0.05, help="share of each class held out (default: %(default)s)"
    )
    train.add_argument("--seed", type=int, default=0, help="same seed, same result (default: %(default)s)")
    train.add_argument("--resume", action="store_true", help="go on from the run's last whole epoch")
    train.add_argument("--h5", action="store_true", help="also write model.h5")
    _image_size(train)

    export = _command(
        commands,
        "export",
        _export,
        "make a run or a Keras model the next version, and print its path",
        "cifar export runs/first",
    )
    export.add_argument("source", type=Path, help="a run folder, a .keras file or an .h5 file (Keras 2 or 3)")
    export.add_argument("--name", help="the model's name in the registry (default: the setting CIFAR_MODEL_NAME)")
    export.add_argument(
        "--classes",
        type=_names,
        metavar="A,B,...",
        help="class names in the order of the outputs (default: the run's; CIFAR's for 10 outputs at 32x32)",
    )
    export.add_argument(
        "--input-range",
        type=_range,
        metavar="LOW,HIGH",
        help="the pixel range the model takes, such as 0,1 or 0,255 or (with the =) --input-range=-1,1",
    )
    export.add_argument(
        "--images", type=Path, metavar="DIR", help="images to compare the export on (default: examples/)"
    )
    export.add_argument("--logits", action="store_true", help="the model ends in logits: append a softmax")

    inspect = _command(
        commands,
        "inspect",
        _inspect,
        "signatures, shapes, sizes and files of a version",
        "cifar inspect saved_model/cifar_classifier/1",
    )
    inspect.add_argument("version_folder", type=Path, metavar="FOLDER", help="a version's folder")
    _json(inspect)

    evaluate = _command(
        commands,
        "evaluate",
        _evaluate,
        "accuracy of an exported version on test images",
        "cifar evaluate --data cifar10",
    )
    evaluate.add_argument("--data", required=True, metavar="SOURCE", help=_SOURCE_HELP)
    _version(evaluate)
    _json(evaluate)

    predict = _command(commands, "predict", _predict, "classify image files", "cifar predict photo.jpg --top-k 5")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument("--top-k", type=int, help="labels to print (default: the setting CIFAR_DEFAULT_TOP_K)")
    _version(predict)
    _json(predict)

    models = _command(commands, "models", _models, "the versions in the registry", "cifar models list")
    models.add_argument("action", nargs="?", choices=["list"], default="list")
    _json(models)

    _add_keys(commands)

    serve = _command(
        commands, "serve", _serve, "the page and the API, as app.py serves them", "cifar serve --port 8000"
    )
    serve.add_argument("--host", help="address to listen on (default: the setting CIFAR_HOST)")
    serve.add_argument("--workers", type=_size, help="processes (default: the setting CIFAR_WORKERS)")
    serve.add_argument("--port", type=int, help="port to listen on (default: the setting CIFAR_PORT)")
    return parser


def _add_keys(commands: Any) -> None:
    keys = _command(commands, "keys", _keys_list, "make, list and revoke API keys", "cifar keys create ci")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    create = _command(
        actions, "create", _keys_create, "make a key and print it, this once", "cifar keys create ci --scopes predict"
    )
    create.add_argument("name", metavar="NAME", help="who the key is for")
    create.add_argument(
        "--scopes", default="predict", metavar="A,B", help="predict, feedback, admin (default: predict)"
    )
    _json(_command(actions, "list", _keys_list, "names and scopes of the keys there are", "cifar keys list"))
    revoke = _command(actions, "revoke", _keys_revoke, "make a key invalid", "cifar keys revoke ci")
    revoke.add_argument("name", metavar="NAME", help="the name it was made under")


_SOURCE_HELP = "cifar10, a cifar-10-python.tar.gz, its extracted folder, or an image folder train/<class>/*"


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace, Settings], None], words: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
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
        type=_size,
        default=32,
        metavar="PIXELS",
        help="side that an image folder's pictures get (default: %(default)s)",
    )


def _size(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 4096; got {text!r}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"expected at least two different names separated by commas; got {text!r}")
    return names


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected two numbers LOW,HIGH; got {text!r}") from None
    if not low < high:
        raise argparse.ArgumentTypeError(f"LOW must be below HIGH; got {text!r}")
    return low, high
