"""What every actor works with, and how it makes a call and checks the answer."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from wasmkiln import Artifact

from tests.soak.fleet import Fleet, Life
from tests.soak.ledger import OK, ONLY_OK, Ledger
from tests.soak.modules import CPU, Known, Mould

TIMEOUT_S = 120.0
"""The deadline of a call that is in no hurry."""
_HOT_BYTES = 150_000


@dataclass
class Stage:
    """The fleet, the modules, and the ledger."""

    fleet: Fleet
    moulds: list[Mould]
    ledger: Ledger
    regulars: list[Known] = field(init=False)
    """Modules that are asked for again and again."""
    hot: list[Known] = field(init=False)
    """The regular modules that callers ask for so often that they stay in memory."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when callers must begin no more calls."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """By engine: what its artifacts are stored under."""
    _tags: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.regulars = [mould.cast(0) for mould in self.moulds]
        self.hot = [known for known in self.regulars if len(known.wasm) < _HOT_BYTES]

    def fresh(self, dice: random.Random) -> Known:
        """Return a new module, a large one less often than a small one."""
        weights = [1 / max(50_000, mould.size_bytes) for mould in self.moulds]
        [mould] = dice.choices(self.moulds, weights)
        return mould.cast(next(self._tags))

    def some(self, dice: random.Random) -> tuple[Life, Known, str]:
        """Return a random daemon, a regular module, and an engine for it."""
        known = dice.choice(self.regulars)
        return self.fleet.any_life(dice), known, dice.choice(list(known.artifacts))

    async def ask(
        self,
        kind: str,
        dice: random.Random,
        module: Known,
        *,
        life: Life | None = None,
        engine: str = "",
        by_digest: bool = False,
        timeout_s: float = TIMEOUT_S,
        expected: frozenset[str] = ONLY_OK,
        **options: Any,
    ) -> None:
        """Ask for an artifact, as a service does, and compare it with the engine's own.

        The dice choose the daemon and the engine that are not named.
        """
        life = life or self.fleet.any_life(dice)
        engine = engine or dice.choice(list(module.artifacts))
        with self.ledger.call(kind, life, timeout_s, expected) as call:
            source = module.sha256 if by_digest else module.wasm
            answer = await life.regulars.compile(
                source, engine=engine, cpu=CPU, timeout_s=timeout_s, **options
            )
            call.origin = answer.header.origin
            self.fingerprints[engine] = answer.header.fingerprint
        if call.outcome == OK:
            call.wrong = difference(answer, module, engine)


def difference(answer: Artifact, module: Known, engine: str) -> str:
    """Return what is wrong with an artifact whose attestation was verified."""
    if answer.header.module_sha256 != module.sha256 or answer.header.engine.id != engine:
        return f"{answer!r} instead of {module.name} for {engine}"
    if answer.bytes != module.artifacts[engine]:
        return f"{answer!r} is not what the engine itself makes of {module.name}"
    return ""
