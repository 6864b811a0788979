"""Ways to cause each error; the caller is grpcurl."""

from __future__ import annotations

import base64
import itertools
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e import wasm
from tests.e2e.callers import ENGINE, Caller, held_worker, modules
from tests.e2e.daemon import Daemon, is_ready
from tests.e2e.grpcurl import Grpcurl, Refusal
from tests.e2e.processes import busy_job, eventually, jobs_of, send, workers_of

LOAD, COMPILE = "wasmkiln.v1.ModuleService/Load", "wasmkiln.v1.ModuleService/Compile"
_ADMIN = "wasmkiln.v1.AdminService"

Meet = Callable[[Daemon], Refusal]


@dataclass(frozen=True)
class Call:
    """A call with a module, which is bytes or made from a text, and with wishes."""

    method: str
    source: bytes | str
    wishes: Mapping[str, Any]

    def __call__(self, daemon: Daemon) -> Refusal:
        """Make it."""
        module = wasm.from_text(self.source) if isinstance(self.source, str) else self.source
        asked = {"module": _module(module), **self.wishes}
        return Grpcurl(daemon.address).refused(self.method, asked)


def load(source: bytes | str, **wishes: object) -> Call:
    """Load a module."""
    return Call(LOAD, source, wishes)


def compile_(source: bytes | str, **wishes: object) -> Call:
    """Compile a module."""
    return Call(COMPILE, source, wishes)


def _module(wasm_bytes: bytes) -> str:
    return base64.b64encode(wasm_bytes).decode()


def request(method: str, message: Mapping[str, Any]) -> Meet:
    """Call a method with a message as it is."""
    return lambda daemon: Grpcurl(daemon.address).refused(f"wasmkiln.v1.{method}", message)


READER, EXPIRED, SMALL = "reader.token", "expired.token", "small.token"
"""Files in the state directory of a guarded daemon: a token with the role read, one that has
expired, and one that may compile once a minute."""


def guarded(authorization: str, method: str = LOAD) -> Meet:
    """Call a guarded daemon; of ``authorization``, names in braces stand for files."""

    def meet(daemon: Daemon) -> Refusal:
        tokens = {name.partition(".")[0]: _text(daemon, name) for name in (READER, EXPIRED)}
        # It asks for descriptions of the services as the reader, and calls as the row says.
        flags = ["-reflect-header", f"authorization: Bearer {tokens['reader']}"]
        if authorization:
            flags += ["-rpc-header", f"authorization: {authorization.format(**tokens)}"]
        return Grpcurl(daemon.address, flags=flags).refused(method, {"module": _module(b"")})

    return meet


def _text(daemon: Daemon, name: str) -> str:
    return (daemon.state_dir / name).read_text()


def repeat_what_was_refused(daemon: Daemon) -> Refusal:
    """Send a module that fails, unless it has failed before, and send it again."""
    again = compile_(wasm.nested_blocks(1_000_000), engine="wasmer")
    first = again(daemon)
    known = first.details["ErrorInfo"]["reason"] == "MODULE_QUARANTINED"
    return first if known else again(daemon)


def crash(daemon: Daemon) -> Refusal:
    """Kill the job of a call."""
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(compile_(wasm.many_functions(200_000)), daemon)
        busy_job(daemon.pid)
        # Engines handle these signals once, to tell a trap from a crash, and let the next kill.
        while not call.done():
            send(signal.SIGABRT, *jobs_of(daemon.pid))
            time.sleep(0.05)
        return call.result()


def end_the_job(daemon: Daemon) -> Refusal:
    """End the job of a call, as an operator does."""
    grpcurl = Grpcurl(daemon.address)
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(compile_(wasm.many_functions(200_001)), daemon)
        busy_job(daemon.pid)
        [told] = grpcurl.json(f"{_ADMIN}/ListJobs", {})
        [ended] = grpcurl.json(f"{_ADMIN}/EndJob", {"id": told["jobs"][0]["id"]})
        assert ended["job"]["module_sha256"] == told["jobs"][0]["module_sha256"]
        return call.result()


def fill_the_queue(daemon: Daemon) -> Refusal:
    """Call while one job runs and another fills the queue."""
    with held_worker(daemon), Caller(daemon) as another:
        waiting = another.compile(*modules(1))
        eventually(lambda: daemon.metric("queue_depth", engine=ENGINE) == 1, "nobody waits")
        refused = compile_("(module (memory 1))")(daemon)
        waiting.cancel()
        return refused


def lose_every_worker(daemon: Daemon) -> Refusal:
    """Call while the engine has no Python, so that no worker starts."""
    return _with_another(daemon, _without_python)


def lose_the_engine(daemon: Daemon) -> Refusal:
    """Call while the engine's folder is somewhere else."""
    return _with_another(daemon, lambda _engine, _real: None)


def _with_another(daemon: Daemon, put: Callable[[Path, Path], None]) -> Refusal:
    engine = daemon.state_dir / "engines" / ENGINE
    elsewhere = engine.rename(daemon.state_dir / "elsewhere")
    put(engine, elsewhere)
    try:
        send(signal.SIGKILL, *workers_of(daemon.pid))
        eventually(lambda: not is_ready(daemon), "it is ready without a worker")
        return compile_("(module (memory 1))")(daemon)
    finally:
        shutil.rmtree(engine, ignore_errors=True)
        elsewhere.rename(engine)
        eventually(lambda: is_ready(daemon), "it does not come back", 60)


def _without_python(engine: Path, real: Path) -> None:
    engine.mkdir()
    shutil.copy(real / "engine.json", engine)


def use_up_a_quota(daemon: Daemon) -> Refusal:
    """Compile another module until the quota of a token is used up."""
    grpcurl = Grpcurl(daemon.address, f"authorization: Bearer {_text(daemon, SMALL)}")
    for number in itertools.count():
        asked = {"module": _module(wasm.constant(number)), "omit_artifact": True}
        if grpcurl(COMPILE, request=asked).returncode:
            break
    return grpcurl.refused(COMPILE, asked)


def evict_what_is_pinned(daemon: Daemon) -> Refusal:
    """Pin a module, and evict it."""
    module = wasm.constant(3)
    about, grpcurl = {"module_sha256": wasm.digest(module)}, Grpcurl(daemon.address)
    grpcurl.json(LOAD, {"module": _module(module)})
    grpcurl.json(f"{_ADMIN}/Pin", about)
    try:
        return grpcurl.refused(f"{_ADMIN}/Evict", about)
    finally:
        grpcurl.json(f"{_ADMIN}/Unpin", about)


def pin_too_much(daemon: Daemon) -> Refusal:
    """Pin a module that takes more than half of the memory."""
    module = wasm.CORE_PREAMBLE + wasm.section(0, b"\1x" + bytes(60_000))
    grpcurl = Grpcurl(daemon.address)
    grpcurl.json(LOAD, {"module": _module(module)})
    return grpcurl.refused(f"{_ADMIN}/Pin", {"module_sha256": wasm.digest(module)})


def drain(daemon: Daemon) -> Refusal:
    """Call a daemon that drains and waits for a call that runs."""
    with held_worker(daemon):
        Grpcurl(daemon.address).json("wasmkiln.v1.AdminService/Drain", {"grace": "100s"})
        return compile_("(module (memory 1))")(daemon)
