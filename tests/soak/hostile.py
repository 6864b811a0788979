"""Hostile modules, each with the answers that are right."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from tests.e2e import wasm
from tests.soak.fleet import MODULE_LIMIT_BYTES
from tests.soak.modules import AT_LEAST, WASMER, WASMTIME, Mould

# By design: there is no room for it, or no time.
_NOT_NOW = frozenset({"COMPILE_QUEUE_FULL", "DEADLINE_EXCEEDED"})


@dataclass(frozen=True)
class Hostile:
    """One kind of hostile module."""

    name: str
    reason: str
    engines: Sequence[str]
    make: Callable[[random.Random], bytes]
    """Makes another module for each tag."""
    condemned: bool = False
    """Whether the daemon puts it into quarantine."""

    @property
    def expected(self) -> frozenset[str]:
        """The answers that are right."""
        return _NOT_NOW | {self.reason} | ({"MODULE_QUARANTINED"} if self.condemned else set())


def cheap(moulds: Sequence[Mould]) -> list[Hostile]:
    """Return those that a daemon refuses at hardly any cost."""
    both = (WASMER, WASMTIME)

    def too_large(dice: random.Random) -> bytes:
        return wasm.CORE_PREAMBLE + bytes(MODULE_LIMIT_BYTES + dice.randrange(1, 100_000))

    return [
        Hostile("garbage", "NOT_WASM", both, lambda dice: dice.randbytes(dice.randrange(1, 9999))),
        Hostile("text", "NOT_WASM", both, lambda dice: b"(module)" * dice.randrange(1, 99_999)),
        Hostile("truncated", "MODULE_INVALID", both, lambda dice: _truncated(dice, moulds)),
        Hostile("too large", "MODULE_TOO_LARGE", both, too_large),
    ]


def _truncated(dice: random.Random, moulds: Sequence[Mould]) -> bytes:
    [victim] = (mould for mould in moulds if mould.name == AT_LEAST)
    module = victim.cast(dice.randrange(10**15)).wasm
    return module[: dice.randrange(len(module) // 8, len(module) // 2)]


@cache
def costly() -> list[Hostile]:
    """Return those that only a limit stops: on time, memory, or the size of the artifact."""
    deep, deeper = wasm.nested_blocks(300_000), wasm.nested_blocks(1_000_000)
    rows = (
        ("nested blocks, too slow for wasmer", "COMPILE_TIMEOUT", WASMER, deep),
        ("nested blocks, too large for wasmtime", "COMPILE_MEMORY_LIMIT", WASMTIME, deeper),
        ("large artifact", "ARTIFACT_TOO_LARGE", WASMER, wasm.many_functions(100_000)),
    )
    return [
        Hostile(
            name, reason, [engine], partial(_tagged, module), condemned="ARTIFACT" not in reason
        )
        for name, reason, engine, module in rows
    ]


def _tagged(module: bytes, dice: random.Random) -> bytes:
    return module + wasm.section(0, b"\x03tag" + dice.randbytes(16))
