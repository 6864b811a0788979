"""A daemon that works as much as it can is seen to, however little of a CPU it gets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from wasmkilnd.rpc.connections.cpu_demand import CpuDemand

BUSY = "while True: pass"
# Works on one CPU that it shares with 7 others, looks, and prints what it got and asked for.
CROWDED = """
import os, time
from wasmkilnd.rpc.connections.cpu_demand import CpuDemand
demand = CpuDemand()
demand.look(time.monotonic())
def work(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until: pass
work(0.3)
demand.look(time.monotonic())
began, used = time.monotonic(), time.process_time()
work(1.5)
now = time.monotonic()
print((time.process_time() - used) / (now - began), demand.look(now))
"""
IDLE = """
import time
from wasmkilnd.rpc.connections.cpu_demand import CpuDemand
demand = CpuDemand()
demand.look(time.monotonic())
time.sleep(1)
print(demand.look(time.monotonic()))
"""


def test_what_a_busy_machine_keeps_from_it_counts() -> None:
    cpu = min(os.sched_getaffinity(0))

    def on_one_cpu() -> None:
        os.sched_setaffinity(0, {cpu})

    others = [
        subprocess.Popen([sys.executable, "-c", BUSY], preexec_fn=on_one_cpu) for _ in range(7)
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-c", CROWDED],
            preexec_fn=on_one_cpu,
            capture_output=True,
            check=True,
            text=True,
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    got, asked = map(float, done.stdout.split())
    assert got < 0.3
    assert asked > 0.7


def test_an_idle_daemon_asks_for_nothing() -> None:
    # In a process of its own: threads of other tests may work in this one.
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, check=True, text=True)
    assert float(done.stdout) < 0.1


def test_a_kernel_that_does_not_count_leaves_what_was_used(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "schedstat").write_text("")
    demand = CpuDemand(tmp_path)
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    assert demand.look(time.monotonic()) > 0
