"""Reads and checks TensorFlow's environment variable `TF_CONFIG`, which lists the workers of a distributed training."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from cifar.errors import TrainingError

_EXAMPLE = '{"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, "task": {"type": "worker", "index": 0}}'
_ADDRESS = re.compile(r"\[?[\w.:-]+\]?:\d{1,5}")
_KINDS = ("chief", "worker")


@dataclass(frozen=True)
class Cluster:
    """The worker processes of a training, and which of them this process is."""

    addresses: tuple[str, ...]
    """`host:port` of every worker, the chief first."""
    index: int
    """The position of this process in `addresses`."""


def read_cluster(text: str | None) -> Cluster:
    """Parse the value of `TF_CONFIG`; None if the variable is not set.

    Raises:
        TrainingError: the variable is not set or not JSON, or cluster and task do not match. The message has an example.

    Source: https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
    """
    if not text:
        raise _unusable("it is not set")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _unusable(f"it is not JSON ({error})") from error
    match content:
        case {"cluster": dict(jobs), "task": {"type": str(kind), "index": int(index)}} if jobs:
            return _cluster(jobs, kind, index)
    raise _unusable("it must have a cluster, and a task with type and index")


def _cluster(jobs: dict[str, Any], kind: str, index: int) -> Cluster:
    if unknown := [name for name in (*jobs, kind) if name not in _KINDS]:
        raise _unusable(f"{unknown[0]!r} is not supported; there are: {', '.join(_KINDS)}")
    for name, addresses in jobs.items():
        if not isinstance(addresses, list) or not addresses:
            raise _unusable(f"cluster.{name} must be a list of addresses")
        for address in addresses:
            if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
                raise _unusable(f"{address!r} is not an address such as host:2222")
    all_addresses = tuple(address for name in _KINDS for address in jobs.get(name, []))
    if len(jobs.get("chief", [])) > 1:
        raise _unusable("there can be only one chief")
    if len(set(all_addresses)) < len(all_addresses):
        raise _unusable("an address appears twice")
    own = jobs.get(kind, [])
    if not 0 <= index < len(own):
        raise _unusable(f"the task is {kind} {index}, but the cluster has {len(own)} of this type, counted from 0")
    return Cluster(all_addresses, all_addresses.index(own[index]))


def _unusable(reason: str) -> TrainingError:
    return TrainingError(
        f"--distribute multiworker needs the environment variable TF_CONFIG: {reason}. "
        f"Set the same cluster and its own task for each process: TF_CONFIG='{_EXAMPLE}'."
    )
