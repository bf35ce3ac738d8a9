"""The number of processors that this process may use, which in a container is fewer than the machine has.

`loky.cpu_count` does the same, but reads the quota of one control group only. That of a pod or a systemd slice is in a group
above, and without it a server would start more threads than it has processors.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_V2 = "sys/fs/cgroup"
_V1 = "sys/fs/cgroup/cpu"


def available_cpus(root: Path = Path("/")) -> int:
    """Return the number of processors in the affinity mask, or the control group's quota rounded up if that is less.

    Args:
        root: the folder in which `proc` and `sys` are mounted.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, `cpu.max`.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> list[float]:
    """Return the quotas, in processors, of this process's control groups and of all groups above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    groups = {Path(line.split(":", 2)[-1].strip("/")) for line in [*lines, "/"]}
    folders = {folder for group in groups for folder in (group, *group.parents)}
    found = [read(root / mount / folder) for folder in folders for mount, read in ((_V2, _v2), (_V1, _v1))]
    return [quota for quota in found if quota]


def _v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # the quota "max" means that there is none
        return None


def _v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None


def computes_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 matrices in hardware (Intel AMX), several times as fast as float32."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):  # not Linux, or not x86
        return False
