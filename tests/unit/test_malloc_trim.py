"""Freed memory is given back."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: what else a process holds decides what its heap can give back.
_PROCESS = """
from pathlib import Path
from wasmkilnd.lifecycle.preflight import configure_malloc, trim_memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

configure_malloc()
before = resident_mib()
large = [b"x" * (2 * 2**20) for _ in range(50)]
assert resident_mib() - before > 50
del large  # What is large goes back without a trim.
assert resident_mib() - before < 10, resident_mib() - before
held = [b"x" * (100 * 1024) for _ in range(1000)]
kept = held[::50]  # So that the end of the heap is not free.
del held
assert resident_mib() - before > 50, resident_mib() - before
trim_memory()
assert resident_mib() - before < 10, resident_mib() - before
assert kept
"""


def test_a_process_gives_back_what_it_frees() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
