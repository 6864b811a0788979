"""When freed memory is given back, and how often that is tried in vain."""

from __future__ import annotations

import subprocess
import sys

from wasmkilnd.lifecycle.malloc_trim import MallocTrim

MIB = 1024 * 1024


class Process:
    """A process whose spare memory is what a test says."""

    def __init__(self) -> None:
        self.spare_bytes = 50 * MIB
        self.stuck_bytes = 50 * MIB
        self.trims = 0

    def trim(self) -> None:
        self.trims += 1
        self.spare_bytes = self.stuck_bytes


def rig() -> tuple[Process, MallocTrim]:
    process = Process()
    return process, MallocTrim(lambda: process.spare_bytes, process.trim)


def test_what_became_free_is_given_back_at_the_next_look() -> None:
    process, trim = rig()
    for _ in range(3):
        process.spare_bytes = 300 * MIB
        trim.look()
        assert process.spare_bytes == 50 * MIB
    assert process.trims == 3


def test_a_little_is_not_worth_it() -> None:
    process, trim = rig()
    process.spare_bytes = 65 * MIB
    trim.look()
    assert process.trims == 0


def test_what_cannot_be_given_back_is_tried_ever_less_often() -> None:
    process, trim = rig()
    process.spare_bytes = process.stuck_bytes = 100 * MIB
    for _ in range(120):
        trim.look()
    assert 5 < process.trims < 20
    before = process.trims
    process.spare_bytes = 200 * MIB  # But more of it is no reason to wait.
    trim.look()
    assert process.trims == before + 1


def test_what_was_freed_during_a_trim_is_given_back_too() -> None:
    process, trim = rig()
    process.spare_bytes, process.stuck_bytes = 300 * MIB, 180 * MIB
    trim.look()
    process.stuck_bytes = 50 * MIB
    trim.look()
    assert process.spare_bytes == 50 * MIB


# In a process of its own: what else a process holds decides what its heap can give back.
_PROCESS = """
from wasmkilnd.lifecycle.malloc_trim import MallocTrim

MIB = 1024 * 1024
trim = MallocTrim.of_this_process()
held = [b"x" * (100 * 1024) for _ in range(1000)]
kept = held[::50]  # So that the end of the heap is not free.
before = trim._spare_bytes()
del held
assert trim._spare_bytes() - before > 50 * MIB, trim._spare_bytes() - before
trim.look()
assert trim._spare_bytes() - before < 10 * MIB, trim._spare_bytes() - before
assert kept
"""


def test_a_process_gives_back_what_it_frees() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
