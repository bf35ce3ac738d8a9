"""Configuration of gunicorn: `gunicorn -c gunicorn.conf.py app:app`, or `python -m cifar serve --workers N`."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial

from cifar.serving.process import worker_slot

if len(os.fsencode(tempfile.gettempdir())) > 67:  # a socket's path has at most 107 bytes, file and folder included
    sys.exit(
        f"cifar: TMPDIR is {tempfile.gettempdir()}, which is too long for the path of a Unix socket. Set TMPDIR to a "
        "folder with a path of at most 67 bytes."
    )
_folder = worker_slot.shared_folder()  # returns the same folder when gunicorn reads this file again on SIGHUP
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_folder)  # must be set before prometheus_client is imported

# All workers share the memory of libraries that are imported before the fork. TensorFlow must not be among them, since it
# does not work after a fork. A reload (SIGHUP) reads settings and models again, but new code needs a restart.
import alembic.command  # noqa: E402, F401  # each worker checks at its start that the records' tables are up to date

import app  # noqa: E402

with suppress(ModuleNotFoundError):
    import ai_edge_litert.interpreter  # noqa: F401
from gunicorn.errors import HaltServer  # noqa: E402
from gunicorn.systemd import listen_fds  # noqa: E402
from prometheus_client import multiprocess  # noqa: E402

from cifar.cli.check import failures  # noqa: E402
from cifar.errors import CifarError, SettingsError  # noqa: E402
from cifar.profile import address, who_can_reach  # noqa: E402
from cifar.serving.gradio.uploads import own_folder, sweep  # noqa: E402
from cifar.serving.process import metrics, printed  # noqa: E402
from cifar.serving.process.logs import log_config  # noqa: E402
from cifar.settings import load_settings  # noqa: E402

try:
    _settings = load_settings()
    _uploads = own_folder(_settings, _folder)
except SettingsError as error:
    sys.exit(f"cifar: {error}")

bind = address(_settings.host, _settings.port)
workers = _settings.workers
worker_class = "cifar.serving.process.worker.Worker"
forwarded_allow_ips = _settings.trusted_proxies
timeout = 60
graceful_timeout = 30
keepalive = 75
max_requests = 100_000
max_requests_jitter = 10_000
logconfig_dict = log_config(_settings)
control_socket_disable = True  # its default place is the home folder, which may be read-only in a container

_slot_of_worker: dict[int, int] = {}
"""Slot numbers by the worker's `age`, a counter of gunicorn: before the fork a worker has no process id."""
_start_of_worker: dict[int, float] = {}
"""Times at which workers were started, by age."""
_early_deaths = 0
_ends: list[float] = []
"""Times at which workers ended early in the last minute."""
_EARLY_SECONDS = 20.0
_MAX_PAUSE_SECONDS = 4.0
_MAX_EARLY_DEATHS = 5
"""Workers of each slot that may end within `_EARLY_SECONDS`, one after the other. Then nobody is served, and the container must end
for its platform to start a new one."""


def on_starting(server):
    """Exit if a worker could not start, since gunicorn would restart workers endlessly. Check every reload in the same way."""
    if found := failures(_settings) or _unusable_port(server):
        sys.exit("\n".join(f"cifar: {sentence}" for sentence in found))
    server.handle_hup = partial(
        _reload_if_possible, server, server.handle_hup
    )  # gunicorn looks its handlers up by name


def _unusable_port(server):
    """Return why the port cannot be bound, as a list. Workers whose master was killed hold it for a second or two.

    gunicorn would try as often, and log two lines each time.
    """
    inherits = server.master_pid or listen_fds(unset_environment=False)
    if inherits or (_settings.host.lower(), _settings.port) not in server.address:  # `--bind` has chosen others
        return []
    for seconds in (1, 1, 1, 1, 0):
        try:
            app.listen(_settings).close()
        except SettingsError as error:
            reason = str(error)
            time.sleep(seconds)
        else:
            return []
    return [reason]


def _reload_if_possible(server, reload):
    """Reload, unless new workers could not start: gunicorn would stop the old ones all the same, or end.

    Without a reload, the settings and the workers stay as they are.
    """
    try:
        settings = load_settings()
        own_folder(settings, _folder)
        found = failures(settings)
        if settings.port not in [listener.cfg_addr[1] for listener in server.LISTENERS]:
            app.listen(settings).close()
    except (CifarError, OSError) as error:
        found = [str(error)]
    for sentence in found:
        server.log.error("Not reloaded; settings and workers stay as they are: %s", sentence)
    if not found:
        reload()


def when_ready(server):
    """Log what workers print, and exclude the imported objects from garbage collection, which would write to their shared memory pages.

    Say who can reach the server.
    """
    printed.capture_prints()
    gc.freeze()
    for listener in server.LISTENERS:
        if isinstance(listener.cfg_addr, tuple):  # else a Unix socket
            server.log.info(who_can_reach(*listener.cfg_addr[:2], public=_settings.profile == "public"))


def pre_fork(server, worker):
    """Choose the least used slot and a name for the worker's metric files.

    During a reload, an old worker and its successor share a slot until the old one has exited. The metric files of an exited
    worker are used again, since otherwise their number would grow with every restart.
    """
    sweep(_uploads)  # also here, since no worker sweeps if a full disk prevents that one starts
    _start_of_worker[worker.age] = time.monotonic() + _pause_seconds()
    taken = list(_slot_of_worker.values())
    _slot_of_worker[worker.age] = min(range(server.num_workers), key=taken.count)
    used = {other.metrics_number for other in server.WORKERS.values()}
    worker.metrics_number = min(set(range(len(used) + 1)) - used)
    worker.metrics_name = f"{server.pid}-{worker.metrics_number}"


def post_fork(server, worker):
    """Set the slot and the metric files in the worker process, before it creates the app.

    A worker waits before it starts if others ended early just before, each time for twice as long: otherwise workers that cannot
    start would keep all cores busy. It waits here, since the master has to go on.
    """
    if pause := _pause_seconds():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the master's handler would only note it
        time.sleep(pause)
    worker_slot.current = worker_slot.WorkerSlot(_slot_of_worker[worker.age], server.num_workers, _folder)
    metrics.count_in(worker.metrics_name)


def child_exit(server, worker):
    """Free the worker's slot. Its counters stay; its gauges are removed. End if no worker stays alive."""
    if (slot := _slot_of_worker.pop(worker.age, None)) is not None:
        worker_slot.count_connections(None, slot=slot)
    multiprocess.mark_process_dead(worker.metrics_name)
    _end_if_none_stays_alive(server, worker)


def _end_if_none_stays_alive(server, worker):
    global _early_deaths  # noqa: PLW0603 - gunicorn's hooks are functions
    since = time.monotonic() - _EARLY_SECONDS
    ended_early = _start_of_worker.pop(worker.age, 0) > since
    if ended_early:
        _ends.append(time.monotonic())
    others_serve = any(_start_of_worker.get(other.age, 0) <= since for other in server.WORKERS.values())
    _early_deaths = _early_deaths + 1 if ended_early and not others_serve else 0
    if _early_deaths == _MAX_EARLY_DEATHS * server.num_workers:  # not again while it stops
        raise HaltServer("Workers end as soon as they start; giving up.", 1)


def _pause_seconds():
    while _ends and _ends[0] < time.monotonic() - 60:
        del _ends[0]
    return min(_MAX_PAUSE_SECONDS, 0.25 * 2 ** len(_ends)) if _ends else 0


def on_exit(server):
    """Remove the sockets and the metric files."""
    shutil.rmtree(_folder, ignore_errors=True)
