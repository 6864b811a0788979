"""What this process may use of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from wasmkilnd.machine import cpu_count, file_system_bytes, memory_bytes

GIB = 2**30


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal:  16777216 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected_bytes"),
    [
        ({}, 16 * GIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 16 * GIB),
        (
            {  # the limit of a group above counts as well
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": f"{GIB}\n",
            },
            GIB,
        ),
        ({"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/memory.max": f"{GIB}\n"}, GIB),
        ({"proc/self/cgroup": "nonsense\n", "sys/fs/cgroup/memory.max": "1\n"}, 16 * GIB),
    ],
)
def test_memory_is_the_smallest_limit(
    tmp_path: Path, files: dict[str, str], expected_bytes: int
) -> None:
    assert memory_bytes(machine(tmp_path, files)) == expected_bytes


def test_a_cpu_quota_counts_and_is_rounded_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    root = machine(tmp_path, {"proc/self/cgroup": "0::/\n"})
    quota = tmp_path / "sys/fs/cgroup/cpu.max"
    quota.parent.mkdir(parents=True)
    assert cpu_count(root) == 8
    quota.write_text("max 100000\n")
    assert cpu_count(root) == 8
    quota.write_text("150000 100000\n")
    assert cpu_count(root) == 2
    quota.write_text("1000 100000\n")
    assert cpu_count(root) == 1


def test_the_file_system_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    here = os.statvfs(tmp_path)
    size_bytes = here.f_blocks * here.f_frsize
    assert size_bytes > 0
    assert file_system_bytes(tmp_path / "not" / "there" / "yet") == size_bytes
    (tmp_path / "file").write_text("")
    assert file_system_bytes(tmp_path / "file" / "below") == size_bytes
