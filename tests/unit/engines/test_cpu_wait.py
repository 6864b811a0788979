"""How long a process had no CPU is the kernel's own account of all its threads."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

from wasmkilnd.engines.process import cpu_wait_s

# More threads of one CPU than it can run: each waits for most of the time.
_CROWD = """
import os, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
children = [os.fork() == 0 for _ in range(1)]
until = time.monotonic() + 30
print(flush=True)
while time.monotonic() < until:
    pass
"""


def test_one_that_shares_its_cpu_waits_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", _CROWD], stdout=subprocess.PIPE) as crowd:
        assert crowd.stdout
        crowd.stdout.readline()
        children = Path(f"/proc/{crowd.pid}/task/{crowd.pid}/children").read_text().split()
        try:
            time.sleep(1)
            waited_s = cpu_wait_s(crowd.pid)
        finally:
            for pid in (crowd.pid, *map(int, children)):
                os.kill(pid, 9)
    assert 0.2 < waited_s < math.inf


def test_of_one_that_is_gone_nothing_is_known() -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    assert cpu_wait_s(gone.pid) == math.inf
