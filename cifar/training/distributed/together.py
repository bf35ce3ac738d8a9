"""Train one model with several devices or machines."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import keras

from cifar.errors import BadParameter, TrainingError
from cifar.training.data.dataset import Dataset
from cifar.training.distributed.workers import Workers
from cifar.training.run.config import TrainConfig, TrainingPlan
from cifar.training.run.loader import EpochLoader
from cifar.training.run.run_folder import is_finished
from cifar.training.run.train import compile_model, fit_epochs, make_schedule, train


def train_together(
    config: TrainConfig,
    dataset: Dataset,
    run: Path,
    workers: Workers,
    *,
    resume: bool = False,
    h5: bool = False,
    began: float | None = None,
) -> Path | None:
    """Train one model with all workers, and return the path of `model.keras` for the chief, None for the others.

    The chief calls `train`; the others compute, but read and write no run folder. The arguments are those of `train`, and must be
    the same for all workers. All workers succeed or fail together: if another worker exited with success before the chief failed,
    Kubernetes would restart the chief alone.

    Raises:
        BadParameter: the batch cannot be divided evenly among the devices, or several workers have a time budget.
        TrainingError: as `train` raises it; or settings or data of the workers differ, another worker was lost, or there
            are more devices than images for validation.
    """
    plan = make_plan(config, dataset, workers)
    with workers.lost_workers_reported():
        options = {f"--{name.replace('_', '-')}": value for name, value in asdict(config).items()}
        workers.check_agreement(
            {**options, "--resume": resume, "data": dataset.fingerprint(), "precision": plan.precision}
        )
        finished = workers.from_chief(workers.is_chief and is_finished(run))
        result = None
        if workers.is_chief:
            result = train(config, dataset, run, resume=resume, h5=h5, devices=workers, began=began)
        elif not finished:
            _compute(plan, workers)
        workers.from_chief(None)  # wait until the chief has written everything
        return result


def _compute(plan: TrainingPlan, workers: Workers) -> None:
    """Take part in the chief's training."""
    keras.utils.set_random_seed(plan.config.seed)
    model = workers.build(lambda: compile_model(plan))
    history = workers.start(model, [])
    schedule = make_schedule(plan, history)
    with closing(EpochLoader(plan, history)) as loader:
        for _ in fit_epochs(plan, model, history, schedule=schedule, loader=loader, callbacks=[], devices=workers):
            pass


def make_plan(config: TrainConfig, dataset: Dataset, workers: Workers) -> TrainingPlan:
    """Make the plan, or raise the error that `train_together` documents if the devices cannot share the work evenly."""
    if workers.count > 1 and config.time_budget:
        raise BadParameter("A time budget follows the clock of one machine; with several workers use --epochs.")
    replicas = workers.replicas
    if config.batch_size and config.batch_size % replicas:
        even = workers.evenly(config.batch_size)
        raise BadParameter(
            f"A batch of {config.batch_size} cannot be divided evenly among {replicas} devices; "
            f"{even} and {even + replicas} can."
        )
    plan = TrainingPlan.make(config, dataset, workers)
    images = min(len(plan.fit), len(plan.held_out))
    if images < replicas:
        raise TrainingError(f"{replicas} devices need at least as many held-out images; there are {images}.")
    return plan
