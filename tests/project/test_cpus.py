"""`cifar.cpus`: the number of processors that a container grants."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cifar.cpus import available_cpus

HERE = len(os.sched_getaffinity(0))


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_without_a_quota_the_affinity_mask_counts(tmp_path):
    """There is no quota if the files are missing, or if it is `max` or -1."""
    assert available_cpus(tmp_path) == HERE
    write(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert available_cpus(tmp_path) == HERE


@pytest.mark.parametrize(("quota", "cpus"), [("100000 100000", 1), ("20000 100000", 1), ("110000 100000", 2)])
def test_a_quota_is_rounded_up_to_at_least_one_processor(tmp_path, quota, cpus):
    """A server needs one thread even with a fifth of a processor; with 1.1 processors it can use two."""
    write(tmp_path, "sys/fs/cgroup/cpu.max", quota)
    assert available_cpus(tmp_path) == min(cpus, HERE)


def test_the_quota_files_of_cgroups_version_1_are_read_too(tmp_path):
    """Older hosts and some container services still use them."""
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert available_cpus(tmp_path) == 1


def test_the_quota_of_a_parent_group_counts(tmp_path):
    """A systemd slice limits its services together, a pod its containers."""
    write(tmp_path, "proc/self/cgroup", "0::/pod.slice/container\n")
    write(tmp_path, "sys/fs/cgroup/pod.slice/container/cpu.max", "max 100000")
    write(tmp_path, "sys/fs/cgroup/pod.slice/cpu.max", "100000 100000")
    assert available_cpus(tmp_path) == 1
