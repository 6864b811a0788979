"""What modules of the catalogue get from a daemon, and which answers are clear ones."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wasmkiln import Client, CompileTimeout, WasmkilnError

from tests.e2e import wasm
from tests.hostile.catalogue import Hostile

ENGINES = ("wasmer-1.1.0", "wasmtime-50.0.1")
EVERYWHERE = {"OK", "ARTIFACT_TOO_LARGE", "COMPILE_MEMORY_LIMIT", "COMPILE_TIMEOUT"}
CLEAR_ANSWERS = {*EVERYWHERE, "ENGINE_LACKS_FEATURE", "MODULE_INVALID"}
"""What a module of the catalogue may get; ``OK`` stands for an artifact."""


@dataclass(frozen=True)
class Answer:
    """What one module got: the error's reason, or OK; what there is to say beside; and when."""

    said: str
    beside: str
    seconds: float


def try_each(client: Client, engine: str, modules: Sequence[Hostile]) -> Iterator[Answer]:
    """Send one module after the other; after each, an honest one is served as it was before."""
    before = _honest(client, engine)
    for hostile in modules:
        module = hostile.build()
        began_s = time.monotonic()
        try:
            made = client.compile(module, engine=engine, omit_artifact=True)
            said, beside = "OK", f"{made.header.size_bytes / 2**20:.1f} MiB"
        except WasmkilnError as refusal:
            said, beside = refusal.reason or refusal.code.name, refusal.metadata.get("signal", "")
        yield Answer(said, beside, time.monotonic() - began_s)
        assert _honest(client, engine) == before, hostile


def _honest(client: Client, engine: str) -> str:
    # Two seconds are little in a crowd: jobs get what other processes leave.
    for _ in range(30):
        with contextlib.suppress(CompileTimeout):
            made = client.compile(wasm.constant(1), engine=engine, skip_cache_lookup=True)
            return hashlib.sha256(made.bytes).hexdigest()
    raise AssertionError("an honest module is never made")


def highest_memory_bytes(pid: int) -> int:
    """Return the most memory that a process has had resident so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
