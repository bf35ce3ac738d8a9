"""The processors that this process may use; a container may grant fewer than the machine has.

`loky.cpu_count` reads the quota of one control group only. The quota of a pod or of a systemd slice is set on a parent group;
a server that ignores it starts more threads than it has processors.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA_FILES = {"sys/fs/cgroup": ("cpu.max",), "sys/fs/cgroup/cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us")}
"""By mount point, the files that contain a group's quota and period: control groups version 2, then version 1."""


def available_cpus(root: Path = Path("/")) -> int:
    """Return the number of processors in the affinity mask, or the control group's quota rounded up if that is less.

    Args:
        root: the folder in which `proc` and `sys` are mounted.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, `cpu.max`.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([affinity, *(math.ceil(quota) for quota in _quotas(root))])


def _quotas(root: Path) -> list[float]:
    """Return the quotas, in processors, of this process's control groups and of all groups above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    groups = {Path(line.split(":", 2)[-1].strip("/")) for line in [*lines, "/"]}
    folders = {folder for group in groups for folder in (group, *group.parents)}
    found = [_quota(root / mount / folder, files) for folder in folders for mount, files in _QUOTA_FILES.items()]
    return [quota for quota in found if quota]


def _quota(folder: Path, files: tuple[str, ...]) -> float | None:
    """Return the quota of one group, or None if it has none: version 2 then writes `max`, version 1 writes -1."""
    try:
        quota, period = (int(word) for file in files for word in (folder / file).read_text().split())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None


def computes_bfloat16() -> bool:
    """Return whether the processor has Intel AMX, which multiplies bfloat16 matrices several times as fast as float32 ones."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):  # not Linux, or not x86
        return False
