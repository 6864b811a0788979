"""How often each artifact of one namespace is served, for whoever has to know what is hot.

The request path adds one to a number for each Compile call that is answered, and does nothing else.
Every 30 s (``tenants.LOOK_EVERY_S``), and when the daemon ends, the numbers go into sums that fade
with a half-life of a day. With Redis, each daemon adds to the sums in one of PLACES places there,
and the fleet's sums are those of all places. Without Redis, they are those of one daemon since its
start. A daemon that is killed loses what it counted since it last saved. Of two daemons that add to
one place at the same moment, one's numbers since its last save are lost.

Uses decide nothing but the order of work that is done ahead of time. At most MAX_USES artifacts
have a count: those used least are forgotten. A server that fails costs no call anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from wasmkilnd import errors, model
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.redis import records
from wasmkilnd.signing.sealer import Sealer

# How many artifacts have a count.
MAX_USES = 10_000
# After this time, a use counts half.
HALF_LIFE_S = 24 * 3600.0
# In how many records of Redis the sums of a fleet are.
PLACES = 64

_LEAST_COUNT = 0.01
_MAX_SPECS = 256
_PURPOSE = b"wasmkiln uses"
_RECORD_TTL_S = 14 * 24 * 3600
# Between a record's stamp and its text. Version 0.6 reads there which daemon's it is.
_OWNER_BYTES = 16


class UsedSpec(NamedTuple):
    """What a use asked for besides the module, as a request for another engine would say it.

    - ``settings``: names and values that differ from the engine's defaults, in order.
    """

    engine_id: str
    target: str
    cpu: str
    settings: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, spec: model.CompileSpec) -> UsedSpec:
        """Return what identifies ``spec``."""
        settings = sorted(spec.changed_settings.items())
        return cls(spec.engine.id, spec.target, spec.cpu, tuple(settings))


# The module's digest, and what was asked for.
Use: TypeAlias = tuple[str, UsedSpec]


@dataclass(frozen=True, slots=True)
class Uses:
    """Sums of uses as of a moment, in seconds since 1970: what lies back counts less."""

    counts: Mapping[Use, float] = field(default_factory=dict)
    at_s: float = 0.0

    def __add__(self, other: Uses) -> Uses:
        at_s, sums = max(self.at_s, other.at_s), dict[Use, float]()
        for each in (self, other):
            left = 0.5 ** ((at_s - each.at_s) / HALF_LIFE_S)
            for use, count in each.counts.items():
                sums[use] = sums.get(use, 0.0) + count * left
        whole = Uses({use: n for use, n in sums.items() if n >= _LEAST_COUNT}, at_s)
        return whole if len(sums) <= MAX_USES else Uses(dict(whole.most(MAX_USES)), at_s)

    def most(self, number: int, engine_id: str = "") -> list[tuple[Use, float]]:
        """Return those used most, the first most of all; of one engine alone, or of all."""
        some = (each for each in self.counts.items() if engine_id in ("", each[0][1].engine_id))
        return heapq.nlargest(number, some, key=lambda each: (each[1], each[0][0]))


class Usage:
    """The uses in one namespace. For one event loop."""

    def __init__(self, sealer: Sealer, redis: RedisStore | None) -> None:
        """Save to ``redis``; without one, uses end with the daemon."""
        # Since the last look, by module and spec: the request path counts here.
        self.tally = Counter[tuple[str, model.CompileSpec]]()
        self.own = Uses()  # What this daemon counted since it started.
        self._unsaved = Uses()
        self._sealer = sealer
        self._redis = redis
        # The names of all places begin with this: a record counts in any place of its namespace.
        self._names = f"{redis.prefix}uses:".encode() if redis else b""
        self._places = [b"%b%d" % (self._names, place) for place in range(PLACES)]
        self._place = secrets.choice(self._places)
        self._owner = secrets.token_hex(_OWNER_BYTES // 2).encode()
        self._one_at_a_time = asyncio.Lock()

    async def save(self) -> None:
        """Save what was counted; never raise."""
        async with self._one_at_a_time:
            self._look_at_tally()
            redis, unsaved = self._redis, self._unsaved
            if redis is None or not unsaved.counts:
                return

            def added(there: Uses) -> bytes:  # Of ten thousand it takes as long as many calls.
                # A record that was lost is written again as far as this daemon knows it.
                return _text(there + unsaved if there.counts else self.own)

            with contextlib.suppress(errors.TierUnavailable):  # The breaker has logged it.
                text = await asyncio.to_thread(added, await self._read(redis, self._place))
                record = records.written(_PURPOSE, self._names, self._owner + text, self._sealer)
                await records.store(redis.link, self._place, record, _RECORD_TTL_S)
                self._unsaved = Uses()

    async def of_fleet(self) -> Uses:
        """Return the sums of all daemons, this one's last calls included.

        Raises TierUnavailable.
        """
        async with self._one_at_a_time:
            self._look_at_tally()
            whole = self._unsaved
            if redis := self._redis:
                for place in self._places:
                    whole += await self._read(redis, place)
            return whole

    def _look_at_tally(self) -> None:
        uses = {(module, UsedSpec.of(spec)): n for (module, spec), n in self.tally.items()}
        self.tally.clear()
        counted = Uses(uses, time.time())
        self.own += counted
        self._unsaved += counted

    async def _read(self, redis: RedisStore, place: bytes) -> Uses:
        """Return what a place has; nothing if no daemon of the fleet signed it.

        Raises TierUnavailable.
        """
        [record] = await records.fetch(redis.link, [place])

        def read() -> Uses:
            text = records.text_of(_PURPOSE, self._names, record, self._sealer)
            return _parse(text[_OWNER_BYTES:])

        return await asyncio.to_thread(read)


class _Document(BaseModel):
    """Uses as they are kept; the numbers of ``specs`` stand in the rows of ``uses``."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    version: Literal[1]
    at: float
    specs: list[tuple[str, str, str, dict[str, str]]]
    uses: list[tuple[str, NonNegativeInt, float]]


def _text(uses: Uses) -> bytes:
    """Return uses as text, those used most first, as far as the bounds go."""
    specs, rows = dict[UsedSpec, int](), list[tuple[str, int, float]]()
    for (module_sha256, spec), count in uses.most(MAX_USES):
        if spec in specs or len(specs) < _MAX_SPECS:
            rows.append((module_sha256, specs.setdefault(spec, len(specs)), round(count, 3)))
    document = {
        "version": 1,
        "at": round(uses.at_s, 3),
        "left": False,  # Version 0.6 reads this.
        "specs": [[*each[:3], dict(each.settings)] for each in specs],
        "uses": rows,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _parse(text: bytes) -> Uses:
    """Return what ``_text`` wrote; no uses for anything else."""
    try:
        said = _Document.model_validate_json(text)
        specs = [UsedSpec(*each[:3], tuple(sorted(each[3].items()))) for each in said.specs]
        counts = {(module, specs[number]): count for module, number, count in said.uses}
    except (ValidationError, IndexError):
        return Uses()
    # Clocks of a fleet differ: what comes from the future must not make all else look old.
    return Uses(counts, min(said.at, time.time()))
