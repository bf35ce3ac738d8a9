"""`cifar.cpus`: the processors that a container grants."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cifar.cpus import available_cpus

HERE = len(os.sched_getaffinity(0))


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_without_a_quota_the_processors_of_the_affinity_count(tmp_path):
    """No files, or a quota of `max`, or -1."""
    assert available_cpus(tmp_path) == HERE
    write(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert available_cpus(tmp_path) == HERE


@pytest.mark.parametrize(("quota", "cpus"), [("100000 100000", 1), ("20000 100000", 1), ("110000 100000", 2)])
def test_a_quota_is_rounded_up_and_never_to_none(tmp_path, quota, cpus):
    """A fifth of a processor is one thread; eleven tenths are two."""
    write(tmp_path, "sys/fs/cgroup/cpu.max", quota)
    assert available_cpus(tmp_path) == min(cpus, HERE)


def test_the_old_files_of_a_quota_are_read_too(tmp_path):
    """Control groups of version 1."""
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert available_cpus(tmp_path) == 1


def test_a_quota_of_a_group_above_counts(tmp_path):
    """Systemd's slices, or a pod around its container."""
    write(tmp_path, "proc/self/cgroup", "0::/pod.slice/container\n")
    write(tmp_path, "sys/fs/cgroup/pod.slice/container/cpu.max", "max 100000")
    write(tmp_path, "sys/fs/cgroup/pod.slice/cpu.max", "100000 100000")
    assert available_cpus(tmp_path) == 1
