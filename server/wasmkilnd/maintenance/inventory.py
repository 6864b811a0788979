"""List the values of a shared tier by their heads alone.

Works with any number of values: one SCAN, heads in batches, and a few hundred bytes of memory
for each value.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from wasmkiln.attestation import peek

from wasmkilnd.cache.redis.guarded import GuardedRedis, read_strings
from wasmkilnd.cache.redis.scan import look_at_heads
from wasmkilnd.cache.redis.value_reader import no_string
from wasmkilnd.cache.value import format as value_format
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.maintenance.orphans import Mentions
from wasmkilnd.model import Artifact, Kind, Refusal
from wasmkilnd.signing.sealer import Sealer

_BATCH = 256


class Trust(Enum):
    """Whose key signed a value."""

    TRUSTED = "trusted"
    STRANGER = "stranger"
    REVOKED = "revoked"
    FORGED = "forged"
    NONE = ""
    """Unknown: the value cannot be read."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A stored value, as its head describes it."""

    key: ValueKey
    stored_bytes: int
    """Of the value and its pieces; of the value alone if its head cannot be read."""
    ttl_s: int
    """Its TTL; -1 for none."""
    rejected: ValueRejected | None = None
    """Why the head cannot be read; all further fields are empty then."""
    trust: Trust = Trust.NONE
    signer: str = ""
    """The id of the key that signed it."""
    raw_bytes: int = 0
    kind: Kind | None = None
    engine: str = ""
    """The engine's id; empty for a module."""
    target: str = ""
    cpu: str = ""
    changed_settings: tuple[tuple[str, str], ...] = ()
    finished_on: str = ""
    """When it was compiled, by its attestation."""


class Inventory:
    """Lists all values under the prefix. Raises TierUnavailable."""

    def __init__(self, link: GuardedRedis, names: KeyNames, verifier: Sealer) -> None:
        self._link = link
        self._names = names
        self._verifier = verifier
        self.other_format: set[bytes] = set()
        """Names of modules in another format, as far as they were seen."""

    async def key_pages(self) -> AsyncIterator[list[ValueKey]]:
        """Return the keys of all values, modules first, in batches, each once."""
        seen: set[ValueKey] = set()
        for pattern in (self._names.modules_pattern(), self._names.artifacts_pattern()):
            async for page in self._link.scan(pattern):
                self.other_format.update(filter(self._names.is_of_other_format, page))
                found = dict.fromkeys(filter(None, map(self._names.value_at, page)))
                new = [key for key in found if key not in seen]
                seen.update(new)
                for start in range(0, len(new), _BATCH):
                    yield new[start : start + _BATCH]

    async def values(self, mentions: Mentions | None = None) -> AsyncIterator[Listed]:
        """Return all values, modules first, each once; add their pieces to ``mentions``."""
        async for keys in self.key_pages():
            for listed in await self._look(keys, mentions):
                yield listed

    async def _look(self, keys: Sequence[ValueKey], mentions: Mentions | None) -> list[Listed]:
        """Return the values under ``keys``, without those that are gone by now."""
        names = {self._names.value(key): key for key in keys}

        def listed_at(name: bytes, head: bytes) -> Listed:
            return listed_by_head(names[name], head, self._verifier, mentions)

        found, others = await look_at_heads(self._link, list(names), listed_at)
        lengths, more = await read_strings(list(found), self._link.lengths)
        others |= more
        ages = dict(zip(names, await self._link.ages(list(names)), strict=True))
        listed = []
        for name, key in names.items():
            if ages[name] == -2:
                continue
            if name in others:
                listed.append(Listed(key, 0, ages[name], no_string()))
            else:
                one = found[name]
                stored_bytes = one.stored_bytes + lengths[name]
                listed.append(replace(one, stored_bytes=stored_bytes, ttl_s=ages[name]))
        return listed


def listed_by_head(
    key: ValueKey, head: bytes, verifier: Sealer, mentions: Mentions | None = None
) -> Listed:
    """Return what ``head`` describes, without the value's own length and its TTL.

    Add its pieces to ``mentions``.
    """
    try:
        opened, refusal = value_format.open_anyones(head, verifier.check_stamp)
    except ValueRejected as rejected:
        # Not the exception itself: its traceback holds the head, and callers keep the result.
        return Listed(key, 0, 0, ValueRejected(rejected.cause, rejected.why))
    what = opened.what
    of = what.key if isinstance(what, Artifact) else what.sha256
    if of != (key.artifact or key.module_sha256):
        wrong = ValueRejected(Cause.WRONG_KEY, "the value belongs to another key")
        return Listed(key, 0, 0, wrong)
    if mentions is not None:
        mentions.add(key, opened.body)
    listed = Listed(
        key=key,
        stored_bytes=sum(piece.size_bytes for piece in opened.body.pieces[1:]),
        ttl_s=0,
        trust=trust_of(refusal),
        signer=sys.intern(value_format.stamped_by(head)),
        raw_bytes=opened.body.size_bytes,
        kind=what.kind,
    )
    return _of_artifact(listed, what) if isinstance(what, Artifact) else listed


def _of_artifact(listed: Listed, artifact: Artifact) -> Listed:
    spec, attested = artifact.spec, peek(artifact.attestation)
    return replace(
        listed,
        engine=sys.intern(spec.engine.id),
        target=sys.intern(spec.target),
        cpu=sys.intern(spec.cpu),
        changed_settings=tuple(sorted(spec.changed_settings.items())),
        finished_on=attested[0].finished_on if attested else "",
    )


def trust_of(refusal: Refusal | None) -> Trust:
    """Return whose key signed a value, by why it is refused."""
    if refusal is None:
        return Trust.TRUSTED
    told = {Trust.STRANGER.value: Trust.STRANGER, Trust.REVOKED.value: Trust.REVOKED}
    return told.get(refusal.cause, Trust.FORGED)
