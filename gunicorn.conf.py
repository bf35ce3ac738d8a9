"""How gunicorn runs the Space: `gunicorn -c gunicorn.conf.py app:app`, or `python -m cifar serve --workers N`."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import sys
import tempfile
from contextlib import suppress

if "CIFAR_WORKER_FILES" not in os.environ:  # gunicorn reads this file again on SIGHUP: one folder for all that
    if len(os.fsencode(tempfile.gettempdir())) > 67:  # of 107, with the folder's name and the socket's
        sys.exit(
            f"cifar: the workers' sockets are in TMPDIR, and a socket's path may not be long. Choose a shorter one than {tempfile.gettempdir()}"
        )
    os.environ["CIFAR_WORKER_FILES"] = tempfile.mkdtemp(prefix="cifar-workers-")
os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.environ["CIFAR_WORKER_FILES"]  # before anything imports its library

# Imported before the fork, the Space's libraries are there at once and shared. TensorFlow must not be among them: it does
# not survive a fork. A reload (SIGHUP) thus reads settings and models anew, but code only on a restart.
import alembic.command  # noqa: F401  # each worker sees at its start whether the records' tables are up to date

import app  # noqa: F401

with suppress(ModuleNotFoundError):
    import ai_edge_litert.interpreter  # noqa: F401
from prometheus_client import multiprocess

from cifar.errors import CifarError, SettingsError
from cifar.models.rollout import RolloutLog
from cifar.records.database import database_url
from cifar.serving.process import metrics
from cifar.serving.process.logs import log_config
from cifar.settings import load_settings

try:
    _settings = load_settings()
except SettingsError as error:
    sys.exit(f"cifar: {error}")

bind = f"{_settings.host}:{_settings.port}"
workers = _settings.workers
worker_class = "cifar.serving.process.worker.Worker"
forwarded_allow_ips = _settings.trusted_proxies
timeout = 60
graceful_timeout = 30
keepalive = 75
max_requests = 100_000
max_requests_jitter = 10_000
logconfig_dict = log_config(_settings)
control_socket_disable = True  # it would stand in the home folder, which a container may not write to

_slot_of_worker: dict[int, int] = {}
"""By the worker's age, which gunicorn counts up: a worker has no process id before the fork."""


def on_starting(server):
    """End at once where there is nothing to serve, or nowhere to record: workers that cannot start would be replaced for ever."""
    try:
        RolloutLog.of(_settings).stable_version().verify()
        database_url(_settings)
    except CifarError as error:
        sys.exit(f"cifar: {error}")


def when_ready(server):
    """Leave what was imported out of garbage collection, so that its pages stay shared."""
    gc.freeze()


def pre_fork(server, worker):
    """Give the worker a free slot; on a reload all are, and the old workers keep theirs until they go."""
    taken = list(_slot_of_worker.values())
    _slot_of_worker[worker.age] = min(range(server.num_workers), key=taken.count)
    # The files of its counts: those of a worker that has gone, so that files do not gather with every restart.
    files = {living.count_files for living in server.WORKERS.values()}
    worker.count_files = next(name for n in itertools.count() if (name := f"{server.pid}-{n}") not in files)


def post_fork(server, worker):
    """Tell the worker its slot."""
    os.environ["CIFAR_WORKERS"] = str(server.num_workers)
    os.environ["CIFAR_WORKER_SLOT"] = str(_slot_of_worker[worker.age])
    metrics.count_in(worker.count_files)


def child_exit(server, worker):
    """Free the slot; what the worker counted stays, what it held (its gauges) goes."""
    _slot_of_worker.pop(worker.age, None)
    multiprocess.mark_process_dead(worker.count_files)


def on_exit(server):
    """Remove the sockets and the counts."""
    shutil.rmtree(os.environ["CIFAR_WORKER_FILES"], ignore_errors=True)
