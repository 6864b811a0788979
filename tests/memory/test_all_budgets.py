"""With the largest budgets in use at once, a daemon stays within the memory of its machine.

The machine is a control group of the chart's size, whose memory the daemon takes for that of the
machine. A container dies at the first process that the kernel kills in it (``memory.oom.group``),
so none may be.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import redis
from wasmkiln import Client, WasmkilnError

from tests.e2e import wasm
from tests.e2e.callers import Caller
from tests.e2e.control_groups import ControlGroup, control_group
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.programs import WASMKILND

MIB = 2**20
MACHINE, ONE = 4096 * MIB, 640 * MIB
# What is not full here: requests, artifacts and answers on their way, what waits to be written, and
# of 1,371 MiB for jobs what two of them leave.
UNFILLED = int(2.25 * MACHINE / 16) + (261 + 411) * MIB
ENGINE = "wasmtime-50.0.1"
# In a mount namespace of its own, with two processors. The group comes last, so that the
# interpreter is in it with all that it maps from then on.
_ENTER = """if True:
    import ctypes, os, sys
    group, meminfo, *command = sys.argv[1:]
    os.unshare(os.CLONE_NEWNS)
    mount = ctypes.CDLL(None, use_errno=True).mount
    private = mount(b"none", b"/", None, 1 << 18 | 1 << 14, None)
    if private or mount(meminfo.encode(), b"/proc/meminfo", None, 1 << 12, None):
        raise OSError(ctypes.get_errno(), "mount")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    open(group, "w").write("0")
    os.execv(command[0], command)
"""


def on(group: ControlGroup, folder: Path) -> Daemon:
    """Start a daemon with the budgets of a machine of the group's size."""
    meminfo = re.sub(
        "(?<=MemTotal: ) *[0-9]+", str(MACHINE // 1024), Path("/proc/meminfo").read_text()
    )
    (folder / "meminfo").write_text(meminfo)
    state = fresh_state(folder / "state", own_keys=True)
    enter = sys.executable, "-c", _ENTER, str(group.path / "cgroup.procs"), str(folder / "meminfo")
    own = {"WASMKILN_WORKERS": "4", "WASMKILN_COMPILE_TIMEOUT_S": "600"}
    own["WASMKILN_COMPILE_MEMORY_BYTES"] = str(ONE)
    return Daemon(state, environ=own, command=(*enter, WASMKILND))


class Most:
    """The most memory that is no file's, of all processes in the group together."""

    def __init__(self, group: ControlGroup) -> None:
        self._stat, self.bytes, self._ends = group.path / "memory.stat", 0, threading.Event()
        self._look = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._ends.wait(0.1):
            stat = dict(line.split() for line in self._stat.read_text().splitlines())
            self.bytes = max(self.bytes, int(stat.get("anon") or stat["total_rss"]))

    def __enter__(self) -> Most:
        self._look.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._look.join()


def fill_server(state: Path) -> int:
    """Fill the embedded server, and again while it writes its file anew; return its limit."""
    [path] = [each for each in (state / "redis").rglob("*") if each.is_socket()]
    password = (state / "redis" / "password").read_text()
    with redis.Redis(unix_socket_path=str(path), password=password) as server:
        limit = int(server.config_get("maxmemory")["maxmemory"])
        value = os.urandom(MIB // 4)
        for turn in range(2):
            for number in range(limit // len(value)):
                server.set(f"fill:{number}", value, ex=3600)
            if not turn:
                with suppress(redis.ResponseError):  # It does so already.
                    server.bgrewriteaof()
    return limit


@pytest.mark.timeout(1800)
def test_with_the_largest_budgets_in_use_no_process_is_killed(tmp_path: Path) -> None:
    with (
        control_group(MACHINE) as group,
        on(group, tmp_path) as daemon,
        Most(group) as most,
        ExitStack() as opened,
        daemon.client(timeout_s=900, max_attempts=1) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        for number in range(70):  # The memory tier.
            client.compile(wasm.with_data(4 * MIB, number), engine=ENGINE)
        fill_server(daemon.state_dir)
        # Jobs reserve all that fits, and touch three quarters: 5.6 KB for each function.
        functions = int(0.75 * ONE / 5700)
        large = [
            threads.submit(tried, client, wasm.many_functions(functions + n)) for n in range(8)
        ]
        # The modules of all work, and what waits behind them.
        callers = [opened.enter_context(Caller(daemon)) for _ in range(32)]
        module = wasm.with_data(5 * MIB - 200, 0)
        calls = [
            caller.compile(module + bytes([0, 2, 1, number]), engine=ENGINE, timeout=900)
            for number, caller in enumerate(callers * 4)
        ]
        fill_server(daemon.state_dir)
        ended = [each.result() for each in large]
        print(f"most {most.bytes / MIB:,.0f} MiB, {group.killed} killed, {ended}")
        for call in calls:
            call.cancel()
        assert group.killed == 0
        assert most.bytes < MACHINE - UNFILLED


def tried(client: Client, module: bytes) -> int | str:
    try:
        return client.compile(module, engine=ENGINE).header.size_bytes
    except WasmkilnError as failure:
        return failure.reason or str(failure)
