"""How often each artifact of one namespace is served, for whoever has to know what is hot.

The request path adds one to a number for each Compile call that is answered, and does nothing else.
Every SAVE_EVERY_S, and when the daemon ends, the numbers go into sums that fade with a half-life of
a day. With Redis, each daemon writes its own sums there, as a record in one of PLACES places, and
the fleet's sums are those of all records; without Redis, the daemons on one state directory add
theirs to a file in it. A daemon that is killed loses what it counted since it last saved.

Uses decide nothing but the order of work that is done ahead of time. At most MAX_USES artifacts
have a count: those used least are forgotten. A server or a disk that fails costs no call anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import json
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import structlog
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wasmkilnd.cache import stamped
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import SHA256_HEX, STAMP_BYTES, Artifact, CacheKey, CompileSpec
from wasmkilnd.ownership import NotOurs, check_path
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.whole_files import locked, namespace_file, write_whole

MAX_USES = 10_000
"""How many artifacts have a count."""
HALF_LIFE_S = 24 * 3600.0
"""After this time, a use counts half."""
SAVE_EVERY_S = 30.0
PLACES = 64
"""How many daemons of a fleet can write; of more, some do not count."""

_LEAST_COUNT = 0.01
# What is served for the first time beyond this, since the last save, is not counted.
_MAX_TALLY = 2 * MAX_USES
_MAX_SPECS = 256
_PURPOSE = b"wasmkiln uses"
_RECORD_TTL_S = 14 * 24 * 3600
# A daemon that did not write for so long has ended without saying so.
_ABANDONED_S = 2 * 3600.0
# Clocks of a fleet differ.
_MOST_AHEAD_S = 300.0
# A record's owner stands behind its stamp, so that the record's beginning tells it.
_OWNER_BYTES = 16
_HEAD_BYTES = STAMP_BYTES + _OWNER_BYTES
# Of several daemons, one takes over what another left, and none what was written since. The digest
# is text, which every protocol carries.
_DELETE_IF = """
local head = redis.call('getrange', KEYS[1], 0, ARGV[1] - 1)
if redis.sha1hex(head) ~= ARGV[2] then return 0 end
return redis.call('unlink', KEYS[1])
"""

log = structlog.get_logger("wasmkilnd.usage")


@dataclass(frozen=True, slots=True)
class UsedSpec:
    """What a use asked for besides the module, as a request for another engine would say it."""

    engine_id: str
    target: str
    cpu: str
    settings: tuple[tuple[str, str], ...]
    """Names and values that differ from the engine's defaults, in order."""

    @classmethod
    def of(cls, spec: CompileSpec) -> UsedSpec:
        """Return what identifies ``spec``."""
        changed = tuple(sorted(spec.changed_settings.items()))
        return cls(spec.engine.id, spec.target, spec.cpu, changed)


Use: TypeAlias = tuple[str, UsedSpec]
"""The module's digest, and what was asked for."""


class Tally:
    """The uses since the last look. For one event loop.

    The request path counts by hand, which costs a memory hit one look-up::

        if (key := artifact.key) in tally.counts:
            tally.counts[key] += 1
        else:
            tally.begin(artifact)
    """

    def __init__(self) -> None:
        self.counts: dict[CacheKey, int] = {}
        self._specs: dict[str, UsedSpec] = {}

    def begin(self, artifact: Artifact) -> None:
        """Count the first use of an artifact."""
        if len(self.counts) < _MAX_TALLY:
            self.counts[artifact.key] = 1
            self._specs[artifact.spec.fingerprint] = UsedSpec.of(artifact.spec)

    def take(self) -> dict[Use, float]:
        """Return what was counted, and begin anew."""
        taken = {
            (key.module_sha256, self._specs[key.fingerprint]): float(count)
            for key, count in self.counts.items()
        }
        self.counts, self._specs = {}, {}
        return taken


class Uses:
    """Sums of uses as of a moment: what lies back counts less."""

    def __init__(self, counts: Mapping[Use, float] | None = None, at_s: float = 0.0) -> None:
        """``at_s`` is the moment, in seconds since 1970."""
        self.counts: dict[Use, float] = dict(counts or {})
        self.at_s = at_s

    def add(self, other: Uses) -> None:
        """Add the uses of ``other``, as of the later of both moments."""
        at_s = max(self.at_s, other.at_s)
        if at_s > self.at_s:
            left = _left_after(at_s - self.at_s)
            faded = {use: count * left for use, count in self.counts.items()}
            self.counts = {use: count for use, count in faded.items() if count >= _LEAST_COUNT}
            self.at_s = at_s
        left = _left_after(at_s - other.at_s)
        for use, count in other.counts.items():
            self.counts[use] = self.counts.get(use, 0.0) + count * left
        if len(self.counts) > MAX_USES:
            self.counts = dict(self.most(MAX_USES))

    def most(self, number: int) -> list[tuple[Use, float]]:
        """Return those used most, the first most of all."""
        return heapq.nlargest(number, self.counts.items(), key=lambda item: (item[1], item[0][0]))

    def of_engine(self, engine_id: str) -> Uses:
        """Return the uses of one engine alone."""
        counts = {use: n for use, n in self.counts.items() if use[1].engine_id == engine_id}
        return Uses(counts, self.at_s)


class Usage:
    """The uses in one namespace. For one event loop."""

    def __init__(
        self, state_dir: Path, namespace: str, sealer: Sealer, store: RedisStore | None
    ) -> None:
        """Save to ``store``, or without one to a file in ``state_dir``."""
        self.tally = Tally()
        self._file = namespace_file(state_dir / "uses", namespace)
        self._file_trouble = ""
        self._sealer = sealer
        self._store = store
        # The names of all places begin with this: a record counts in any place of its namespace.
        self._names = f"{store.prefix}uses:".encode() if store else b""
        self._owner = secrets.token_hex(_OWNER_BYTES // 2).encode()
        self._counted = Uses()
        """With Redis: all that this daemon counted. Without: what is not in the file yet."""
        self._changed = False
        self._saved_s = 0.0
        self._one_at_a_time = asyncio.Lock()
        self._saving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Save from now on."""
        self._saving = asyncio.create_task(self._save_for_ever())

    async def save(self, *, last: bool = False) -> None:
        """Save what was counted; never raise. ``last`` says that the daemon ends."""
        async with self._one_at_a_time:
            self._take()
            if self._store is None:
                if self._changed and await asyncio.to_thread(self._add_to_file):
                    self._counted, self._changed = Uses(), False
            elif self._changed or (self._counted.counts and (last or self._is_due)):
                with contextlib.suppress(TierUnavailable):  # The breaker has logged it.
                    await self._save_to_redis(self._store, last=last)
                    self._changed, self._saved_s = False, time.monotonic()

    async def of_fleet(self) -> Uses:
        """Return the sums of all daemons, this one's last calls included.

        Raises TierUnavailable.
        """
        async with self._one_at_a_time:
            self._take()
            whole = Uses(self._counted.counts, self._counted.at_s)
            if self._store is None:
                whole.add(await asyncio.to_thread(self._read_own_file))
                return whole
            for place, head in enumerate(await self._heads(self._store)):
                if head and not self._is_own(head):
                    record = await self._read(self._store, place)
                    whole.add(record.uses if record else Uses())
            return whole

    def own(self) -> Uses:
        """Return what this daemon counted, as far as it is in memory."""
        self._take()
        return self._counted

    async def close(self) -> None:
        """Stop, without saving; see ``save``."""
        if self._saving:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)

    @property
    def _is_due(self) -> bool:
        """Whether others may soon take what this daemon wrote for abandoned."""
        return time.monotonic() - self._saved_s > _ABANDONED_S / 4

    async def _save_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await self.save()

    def _take(self) -> None:
        counted = Uses(self.tally.take(), time.time())
        self._changed |= bool(counted.counts)
        self._counted.add(counted)

    # In Redis, no two daemons write to one place, and no command has to add on the server.

    async def _save_to_redis(self, redis: RedisStore, *, last: bool) -> None:
        heads = await self._heads(redis)
        place = next((n for n, head in enumerate(heads) if self._is_own(head)), None)
        if place is None:  # At the first write, or where the record was lost.
            heads = await self._take_over(redis, heads)
        # Of ten thousand uses, this takes as long as many calls do.
        text = await asyncio.to_thread(_text, self._counted, left=last)
        record = await asyncio.to_thread(
            stamped.written, _PURPOSE, self._names, self._owner + text, self._sealer
        )
        if place is not None:
            await stamped.store(redis.link, self._name(place), record, _RECORD_TTL_S)
            return
        free = [place for place, head in enumerate(heads) if not head]
        for place in random.sample(free, len(free)):
            name = self._name(place)
            if await stamped.store(redis.link, name, record, _RECORD_TTL_S, if_free=True):
                return

    async def _take_over(self, redis: RedisStore, heads: Sequence[bytes]) -> list[bytes]:
        """Add what daemons that have ended left, and free their places; return the heads."""
        left = list(heads)
        for place, head in enumerate(heads):
            if not head:
                continue
            record = await self._read(redis, place)
            # What nobody signed only takes the place away.
            if record is None or record.left or record.uses.at_s + _ABANDONED_S < time.time():
                # Not for security: it tells records apart.
                digest = hashlib.sha1(head, usedforsecurity=False).hexdigest()
                script = ("EVAL", _DELETE_IF, 1, self._name(place), len(head), digest)
                [deleted] = await redis.link.run(script)
                if deleted:
                    left[place] = b""
                    self._counted.add(record.uses if record else Uses())
        return left

    async def _heads(self, redis: RedisStore) -> list[bytes]:
        """Return the beginning of what is in each place."""
        names = [self._name(place) for place in range(PLACES)]
        return await stamped.fetch(redis.link, names, _HEAD_BYTES)

    async def _read(self, redis: RedisStore, place: int) -> _Record | None:
        [record] = await stamped.fetch(redis.link, [self._name(place)])
        text = await asyncio.to_thread(stamped.text_of, _PURPOSE, self._names, record, self._sealer)
        return await asyncio.to_thread(_parse, text[_OWNER_BYTES:])

    def _is_own(self, head: bytes) -> bool:
        return head[STAMP_BYTES:] == self._owner

    def _name(self, place: int) -> bytes:
        return b"%b%d" % (self._names, place)

    # The file. These methods block.

    def _add_to_file(self) -> bool:
        """Add what was counted to the file; return whether that was possible."""
        try:
            self._file.parent.mkdir(mode=0o700, exist_ok=True)
            check_path(self._file)
            with locked(self._file.parent):
                whole = _read_file(self._file)
                whole.add(self._counted)
                write_whole(self._file, _text(whole))
        except (OSError, NotOurs) as failure:
            if str(failure) != self._file_trouble:
                self._file_trouble = str(failure)
                log.warning("cannot save uses", cause=self._file_trouble)
            return False
        self._file_trouble = ""
        return True

    def _read_own_file(self) -> Uses:
        """Return what is in the file; nothing if it cannot be read."""
        try:
            check_path(self._file)
            return _read_file(self._file)
        except (OSError, NotOurs):
            return Uses()


@dataclass(frozen=True, slots=True)
class _Record:
    uses: Uses
    left: bool
    """Whether the daemon has ended, so that another may take its record over."""


_Text = Annotated[str, StringConstraints(max_length=200)]
_Sha256 = Annotated[str, StringConstraints(pattern=f"^{SHA256_HEX.pattern}$")]
_Settings = Annotated[dict[_Text, _Text], Field(max_length=64)]
_Count = Annotated[float, Field(ge=0, lt=1e12)]


class _Document(BaseModel):
    """Uses as they are kept; the numbers of ``specs`` stand in the rows of ``uses``."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    version: Literal[1]
    at: Annotated[float, Field(ge=0)]
    left: bool
    specs: Annotated[list[tuple[_Text, _Text, _Text, _Settings]], Field(max_length=_MAX_SPECS)]
    uses: Annotated[
        list[tuple[_Sha256, Annotated[int, Field(ge=0, lt=_MAX_SPECS)], _Count]],
        Field(max_length=MAX_USES),
    ]


def _text(uses: Uses, *, left: bool = False) -> bytes:
    """Return uses as text, those used most first, as far as the bounds go."""
    specs: dict[UsedSpec, int] = {}
    rows = []
    for (module_sha256, spec), count in uses.most(MAX_USES):
        if spec in specs or len(specs) < _MAX_SPECS:
            rows.append([module_sha256, specs.setdefault(spec, len(specs)), round(count, 3)])
    document = {
        "version": 1,
        "at": round(uses.at_s, 3),
        "left": left,
        "specs": [[each.engine_id, each.target, each.cpu, dict(each.settings)] for each in specs],
        "uses": rows,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _parse(text: bytes) -> _Record | None:
    """Return what ``_text`` wrote; None for anything else."""
    try:
        said = _Document.model_validate_json(text)
        specs = [
            UsedSpec(engine_id, target, cpu, tuple(sorted(settings.items())))
            for engine_id, target, cpu, settings in said.specs
        ]
        counts = {(module, specs[number]): count for module, number, count in said.uses}
    except (ValidationError, IndexError):
        return None
    if said.at >= time.time() + _MOST_AHEAD_S:
        return None
    return _Record(Uses(counts, said.at), said.left)


def _read_file(path: Path) -> Uses:
    try:
        with path.open("rb") as file:
            text = file.read(stamped.MAX_BYTES + 1)
    except FileNotFoundError:
        return Uses()
    record = _parse(text) if len(text) <= stamped.MAX_BYTES else None
    return record.uses if record else Uses()


def _left_after(seconds: float) -> float:
    """Return how much a use of so long ago counts."""
    return float(0.5 ** (max(0.0, seconds) / HALF_LIFE_S))
