"""Who trains together: TensorFlow's `TF_CONFIG`, read and checked before TensorFlow sees it."""

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
    """The processes of one training, as one of them sees it."""

    addresses: tuple[str, ...]
    """Of all, the chief first."""
    index: int
    """Which of them this process is."""


def read_cluster(text: str | None) -> Cluster:
    """Read `TF_CONFIG`.

    Args:
        text: its value, None where it is not set.

    Raises:
        TrainingError: it is missing, is no JSON, or its cluster and task do not fit; the sentence has an example.

    Source: https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
    """
    if not text:
        raise _wrong("it is not set")
    try:
        given = json.loads(text)
    except ValueError as error:
        raise _wrong(f"it is no JSON ({error})") from error
    match given:
        case {"cluster": dict(jobs), "task": {"type": str(kind), "index": int(index)}} if jobs:
            return _cluster(jobs, kind, index)
    raise _wrong("it needs a cluster, and a task with type and index")


def _cluster(jobs: dict[str, Any], kind: str, index: int) -> Cluster:
    if unknown := [name for name in (*jobs, kind) if name not in _KINDS]:
        raise _wrong(f"{unknown[0]!r} takes no part here; there are: {', '.join(_KINDS)}")
    for name, addresses in jobs.items():
        if not isinstance(addresses, list) or not addresses:
            raise _wrong(f"cluster.{name} must be a list of addresses")
        for address in addresses:
            if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
                raise _wrong(f"{address!r} is no address such as host:2222")
    everybody = tuple(address for name in _KINDS for address in jobs.get(name, []))
    if len(jobs.get("chief", [])) > 1:
        raise _wrong("there can be one chief only")
    if len(set(everybody)) < len(everybody):
        raise _wrong("an address is there twice")
    own = jobs.get(kind, [])
    if not 0 <= index < len(own):
        raise _wrong(f"the task is {kind} {index}, and the cluster has {len(own)} of them, counted from 0")
    return Cluster(everybody, everybody.index(own[index]))


def _wrong(what: str) -> TrainingError:
    return TrainingError(
        f"--distribute multiworker goes by the environment variable TF_CONFIG: {what}. "
        f"Give each process the same cluster and its own task: TF_CONFIG='{_EXAMPLE}'."
    )
