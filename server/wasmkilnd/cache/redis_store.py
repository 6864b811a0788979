"""The tier on a Redis that daemons share: values that nobody else can forge, one key each.

Below the prefix of a namespace, ``3`` is the format of values (``cache.value``):

- ``3:compiled:{<module>}:<engine>:<fingerprint>`` is an artifact, ``3:module:{<module>}`` a module.
- ``3:of:{<module>}`` is the set of ``<engine>:<fingerprint>`` of a module's artifacts, so that
  what is about one module takes time linear in its own artifacts. Nobody reads it often, so that
  a full server may evict it first: a use of an artifact adds that again, and ``lost`` if it was
  missing. Where there is no set, or one with ``lost`` in it, Evict scans instead.
- ``3:new:{<module>}:<random>`` is a value that is being written. It is renamed to its own name
  when it is whole, if nothing is there: so no reader meets a part of one value beside a part of
  another. If the writer dies, it expires after ten minutes.

The braces keep all keys of a module in one slot of a cluster. A value lives for ``ttl_s``, and for
ever while its module is pinned. Nothing that the server returns is trusted: a value that does not
verify is read once more, for it may have been replaced meanwhile; then it is counted, deleted, and
a miss. If another daemon replaces it at that moment, a good one goes, which costs a compile.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias, TypeVar

import structlog

from wasmkilnd import model
from wasmkilnd.cache import shared_tier, value
from wasmkilnd.cache.shared_tier import Key, SharedTier, in_thread, module_of, ready
from wasmkilnd.cache.value import Opened, ValueRejected
from wasmkilnd.errors import DoesNotFit, PartUnavailable, TierUnavailable, WrongType
from wasmkilnd.model import Artifact, CacheKey, Evicted, Held, Module
from wasmkilnd.model import RejectionCause as Cause
from wasmkilnd.redis.servers import WRITE_TIMEOUT_S, Command, RedisLink
from wasmkilnd.waits.budgets import Allowance

T = TypeVar("T")
K = TypeVar("K", bound="CacheKey | str")
# A module's digest, the kind of a key that is about it, and the key's name.
_Of: TypeAlias = tuple[str, str, bytes]

# One GETRANGE gets the head and, of most artifacts, all frames. Other clients of the server wait
# for as much at most (docs/explanation/performance.md).
_TAIL_BYTES = 1280 * 1024
# A little less than a MiB: glibc maps larger blocks one by one, and each page faults.
_RANGE_BYTES = 960 * 1024
# Enough for the head of nearly every artifact.
_HEAD_BYTES = 8192
# No write takes longer: no command renews it meanwhile.
_WRITING_S = 600
_BATCH = 500
_MOST_NAMED = 1000  # Artifacts of a module: few have more.
_LOST = b"lost"  # A member of a set that was not whole.
_RENEW_EVERY_S, _LOOK_EVERY_S, _RENEWALS_PER_LIFE = 1.0, 5.0, 10
_MAX_REMEMBERED, _MAX_RENEWING = 100_000, 10_000
_NO_TTL, _GONE = -1, -2

_GLOB = re.compile(r"[][*?\\^-]")
_HEX = "[0-9a-f]{64}"
_NAME = re.compile(
    rf"3:(?:(module|of):{{({_HEX})}}|compiled:{{({_HEX})}}:([!-~]+):({_HEX}))".encode()
)

log = structlog.get_logger("wasmkilnd.cache")


@dataclass(eq=False)
class RedisStore(SharedTier[RedisLink]):
    """Artifacts and modules of one namespace in Redis.

    A use restarts the time to live. Without ``reports_usage``, ``usage`` returns zeros: the
    server's own figures are sums over all of its keys.
    """

    _: KW_ONLY
    ttl_s: int
    reports_usage: bool

    name = "redis"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._usage = model.TierUsage()
        self._refused = b""
        self._renewed = dict[Key, float]()
        # Used since the last renewal, and due.
        self._due = set[Key]()
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch the server; wait until it is known whether it answers."""
        await self._look()
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop watching; never raise. The link stays open."""
        if self._watcher:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    def usage(self) -> model.TierUsage:
        """Return what the server reported last, the keys of other clients included."""
        return self._usage

    async def _put(self, what: Artifact | Module) -> None:
        """Store a value, unless one is there; then restart its time to live."""
        moving_s = what.size_bytes / shared_tier.WRITTEN_BYTES_PER_S
        most_s = min(max(WRITE_TIMEOUT_S, self.link.timeout_s) + moving_s, _WRITING_S)
        try:
            async with asyncio.timeout(most_s):
                await self.store(what.key, value.written(what, self._sealer), what.size_bytes)
            self._note_refusal(b"", "")
        except TimeoutError:
            raise TierUnavailable("a write to Redis takes too long") from None
        except TierUnavailable as failure:
            # Of a cluster, the other nodes take writes.
            is_about_all = not isinstance(failure, (DoesNotFit, PartUnavailable))
            if is_about_all and not self.link.is_down:
                self._note_refusal(self._temporary(what.module_sha256), str(failure))
            raise

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored, without verifying them."""
        names = await self._names(keys)
        found = await self._each([("EXISTS", name) for name in names.values()])
        return frozenset(itertools.compress(names, found))

    async def size(self, key: Key) -> int | None:
        """Return the size of a stored value; None if there is none."""
        [size_bytes] = await self._each([("STRLEN", self.name_of(key))])
        return size_bytes or None

    async def evict(self, scope: model.EvictScope) -> Evicted:
        """Delete what is in ``scope`` and not pinned; a module in time linear in its artifacts."""
        self.check_writes()
        gone = Evicted()
        if module_sha256 := scope.module_sha256:
            [names] = [some async for some in self._of_modules([module_sha256])]
            # Nothing but a scan finds what the set does not name, or what is not asked for.
            is_lost = any(name.endswith(_LOST) for *_, name in names)
            is_whole = 2 < len(names) < _MOST_NAMED and not is_lost
            patterns = [] if is_whole else [("compiled", f"{{{module_sha256}}}:*")]
            gone += await self._delete([name for *_, name in names], scope)
        elif scope.engine_id:
            patterns = [("compiled", f"*:{_literal(scope.engine_id)}:*")]
        else:
            patterns = [("compiled", "*"), ("module", "*"), ("of", "*")]
        for kind, rest in patterns:
            async for page in self._scan(kind, rest):
                gone += await self._delete(page, scope)
        return gone

    def used(self, key: Key) -> None:
        """Note a use, also one from memory, which restarts the time to live.

        What every daemon has in memory must still be here when a daemon restarts, and the set of
        its module must name it. Each value is renewed ten times in its life, all that are due
        together within a second, and a few more often if there are very many. Return at once; never
        raise.
        """
        now_s = time.monotonic()
        due_s = self._renewed.get(key, -math.inf) + self.ttl_s / _RENEWALS_PER_LIFE
        if now_s < due_s or len(self._due) >= _MAX_RENEWING:
            return
        if len(self._renewed) >= _MAX_REMEMBERED:
            self._renewed.clear()
        self._renewed[key] = now_s
        self._due.add(key)

    async def measure(self, modules: Collection[str], *, keep: bool) -> dict[str, Held]:
        """Return what is here of each of ``modules``; with ``keep``, let none of it expire."""
        found = dict.fromkeys(modules, Held())
        async for some in self._of_modules(modules):
            if keep:
                await self._each([("PERSIST", name) for *_, name in some])
            values = [each for each in some if each[1] != "of"]
            sizes = await self._each([("STRLEN", name) for *_, name in values])
            for (module_sha256, kind, _), size in zip(values, sizes, strict=True):
                if size:
                    held = Held(int(kind == "compiled"), int(kind == "module"), size)
                    found[module_sha256] += held
        return found

    async def release(self, modules: Collection[str]) -> None:
        """Let what is kept of ``modules`` expire, as if it were stored now."""
        async for some in self._of_modules(modules):
            ages = await self._each([("TTL", name) for *_, name in some])
            kept = [name for (*_, name), age in zip(some, ages, strict=True) if age == _NO_TTL]
            await self._each([("EXPIRE", name, self.ttl_s) for name in kept])

    # Reading

    async def _find(self, key: Key) -> tuple[bytes, bytes] | None:
        """Return the name and the end of a value. A list or the like has no end."""
        if (name := (await self._names([key])).get(key)) is None:
            return None
        try:
            [tail] = await self.link.run(("GETRANGE", name, -_TAIL_BYTES, -1))
        except WrongType:
            return name, b""
        return (name, tail) if tail else None

    async def _open(
        self, key: Key, stored: tuple[bytes, bytes], allowance: Allowance
    ) -> Artifact | Module | None:
        name, tail = stored
        if not tail:
            raise ValueRejected(Cause.FORMAT, "the key holds a list or the like")
        if (head_bytes := value.head_bytes(tail)) > len(tail):
            [tail] = await self.link.run(("GETRANGE", name, -head_bytes, -1))
        await self._sealer.meet(value.stamped_by(tail))
        asked = tail, key, self._sealer, allowance.accept
        opened = await in_thread(head_bytes, value.open_value, *asked)
        if self._is_too_large(opened, name.decode()):  # Before any of it is unpacked.
            return None
        if (begins := opened.stored_bytes - len(tail)) < 0:
            raise ValueRejected(Cause.FORMAT, "the value has bytes before its first frame")
        left = sum(one.offset < begins for one in opened.frames)
        came = left, len(opened.frames), tail, begins
        moving_s = opened.stored_bytes / shared_tier.READ_BYTES_PER_S
        allowance.seconds += moving_s
        frames = await in_thread(opened.size_bytes, ready, opened, *came)
        if left:
            try:
                async with asyncio.timeout(self.link.timeout_s + moving_s):
                    frames = [*await self._frames(name, opened, left), *frames]
            except TimeoutError:
                # Not an outage: the server answered each command in time.
                about = {"key": name.decode(), "seconds": moving_s}
                log.warning("value not read: it takes too long", **about)
                raise TierUnavailable("Redis takes too long for a value of this size") from None
        return await in_thread(opened.hashed_bytes, value.with_frames, opened, frames)

    async def _frames(self, name: bytes, opened: Opened, count: int) -> list[bytes]:
        """Return the first ``count`` frames, each range checked while the next one is read."""
        frames, start = list[bytes](), 0
        checking: asyncio.Future[list[bytes]] | None = None
        try:
            while start < count:
                begins, end = opened.frames[start].offset, start + 1
                while end < count and opened.frames[end].ends - begins <= _RANGE_BYTES:
                    end += 1
                ends = opened.frames[end - 1].ends
                [data] = await self.link.run(("GETRANGE", name, begins, ends - 1))
                frames += await checking if checking else ()
                work = in_thread(opened.size_bytes, ready, opened, start, end, data, begins)
                checking, start = asyncio.ensure_future(work), end
            return [*frames, *(await checking if checking else ())]
        finally:
            if checking:
                checking.cancel()

    async def _discard(
        self, key: Key, stored: tuple[bytes, bytes], rejected: ValueRejected
    ) -> None:
        self._count_rejected(stored[0].decode(), rejected)
        if self.writes:
            with contextlib.suppress(TierUnavailable):  # The next reader rejects it again.
                await self.link.run(("UNLINK", stored[0]))

    async def remove(self, key: Key) -> None:
        """Delete a value that turned out to be of no use."""
        await self.link.run(("UNLINK", self.name_of(key)))

    # Writing

    async def store(self, key: Key, chunks: Iterator[bytes], size_bytes: int) -> bool:
        """Store the bytes of a value under ``key``, unless one is there; return whether it did.

        Then restart the time to live. ``chunks`` is taken in threads if ``size_bytes`` is large.
        """
        name, module_sha256, stored = self.name_of(key), module_of(key), False
        names = [name]
        there, there_bytes = await self._each([("EXISTS", name), ("STRLEN", name)])
        if there and not there_bytes:  # What is no value must not keep one out.
            await self._send(("UNLINK", name))
        if not there_bytes:
            stored = await self._write(name, self._temporary(module_sha256), chunks, size_bytes)
        if isinstance(key, CacheKey):
            names.append(self._named("of", module_sha256))
            add: Command = ("SADD", names[1], _member(key))
            try:
                await self._send(add)
            except WrongType:
                await self._send(("UNLINK", names[1]), add)
        is_pinned = self.is_pinned(module_sha256)
        await self._send(
            *(("PERSIST", each) if is_pinned else ("EXPIRE", each, self.ttl_s) for each in names)
        )
        return stored

    async def _write(
        self, name: bytes, temporary: bytes, chunks: Iterator[bytes], size_bytes: int
    ) -> bool:
        """Write a value, and give it its name unless that is taken; return whether it was not."""
        sent_bytes = 0
        try:
            while chunk := await in_thread(size_bytes, next, chunks, b""):
                first: Command = ("SET", temporary, chunk, "EX", _WRITING_S)
                [done] = await self._send(("APPEND", temporary, chunk) if sent_bytes else first)
                sent_bytes += len(chunk)
                if done not in (b"OK", sent_bytes):
                    raise TierUnavailable("Redis lost the beginning of a value that was written")
        except TierUnavailable:  # A part of a value takes room, one that APPEND began for ever.
            with contextlib.suppress(TierUnavailable):
                await self._send(("UNLINK", temporary))
            raise
        stored, _ = await self._send(("RENAMENX", temporary, name), ("UNLINK", temporary))
        return bool(stored)

    async def _send(self, *commands: Command) -> list[Any]:
        return await self.link.run(*commands, timeout_s=WRITE_TIMEOUT_S)

    def _note_refusal(self, name: bytes, why: str) -> None:
        """Remember that the server refuses writes, until one succeeds; log both once."""
        if why and not self.write_refusal:
            log.warning("tier takes no writes", tier=self.name, detail=why)
        elif not why and self.write_refusal:
            log.info("tier takes writes again", tier=self.name)
        self._refused, self.write_refusal = name, why

    # Watching

    async def _watch(self) -> None:
        look_at_s = time.monotonic() + _LOOK_EVERY_S
        while True:
            await asyncio.sleep(_RENEW_EVERY_S)
            if self._due:
                await self._renew()
            if time.monotonic() >= look_at_s:
                look_at_s = time.monotonic() + _LOOK_EVERY_S
                await self._look()

    async def _look(self) -> None:
        # If the server is down, the link has logged it and asks again by itself.
        with contextlib.suppress(TierUnavailable):
            if self.reports_usage:
                self._usage = await self.link.usage()
            if self.write_refusal:  # The next write may be far off.
                await self.link.run(*_trial(self._refused))
                self._note_refusal(b"", "")

    async def _renew(self) -> None:
        """Restart the time to live of what was used, and have the sets of its modules name it."""
        due, self._due = self._due, set()
        with contextlib.suppress(TierUnavailable):  # A tenth of its life later, it is tried again.
            known = [key for key in due if isinstance(key, CacheKey) and key.engine_id]
            asked = list[Command]()
            for key in known:
                of, member = self._named("of", key.module_sha256), _member(key)
                asked += ("EXISTS", self.name_of(key)), ("SADD", of, member)
            found = iter(await self._each(asked))
            mended = zip(known, found, found, strict=True)
            lost = {key.module_sha256 for key, there, added in mended if there and added}
            await self._each([("SADD", self._named("of", each), _LOST) for each in lost])
            expire = [key for key in due if not self.is_pinned(module_of(key))]
            modules = {module_of(key) for key in expire}
            names = [*(await self._names({*expire, *modules})).values()]
            names += [self._named("of", each) for each in modules]
            await self._each([("EXPIRE", name, self.ttl_s) for name in names])

    # What ``wasmkilnd cache`` asks for

    async def pages(self, beginning: str = "") -> AsyncIterator[list[Key]]:
        """Return the keys of all values, of modules whose digest begins with ``beginning``.

        Modules come first. Some values may come twice.
        """
        for kind in ("module", "compiled"):
            async for page in self._scan(kind, f"{{{beginning}*"):
                yield [key for _, _, key in self._ours(page)]

    async def look(
        self, keys: Sequence[Key], tail_bytes: int = 0
    ) -> list[tuple[int, int | None, bytes | None]]:
        """Return size, seconds to live (None for ever) and last bytes of values; size -1 if gone.

        None in place of the bytes stands for a key that holds a list or the like.
        """
        start, end = (-tail_bytes, -1) if tail_bytes else (1, 0)
        asked = list[Command]()
        for name in map(self.name_of, keys):
            asked += ("TTL", name), ("STRLEN", name), ("GETRANGE", name, start, end)
        found = iter(await self._each(asked))
        told = list[tuple[int, int | None, bytes | None]]()
        for age, size, end in zip(found, found, found, strict=True):
            tail = end if isinstance(end, bytes) else None
            told.append((size if age != _GONE else -1, None if age == _NO_TTL else age, tail))
        return told

    async def kept(self, modules: Collection[str]) -> set[str]:
        """Return which of ``modules`` are pinned, as Redis shows it: their values never expire."""
        names = [(each, self._named(kind, each)) for each in modules for kind in ("module", "of")]
        ages = await self._each([("TTL", name) for _, name in names])
        return {each for (each, _), age in zip(names, ages, strict=True) if age == _NO_TTL}

    # Names

    def name_of(self, key: Key) -> bytes:
        """Return the name of an artifact, whose engine must be known, or of a module."""
        if isinstance(key, str):
            return self._named("module", key)
        return self._named("compiled", key.module_sha256, f":{key.engine_id}:{key.fingerprint}")

    def _named(self, kind: str, module_sha256: str, rest: str = "") -> bytes:
        return f"{self.prefix}3:{kind}:{{{module_sha256}}}{rest}".encode()

    def _temporary(self, module_sha256: str) -> bytes:
        return self._named("new", module_sha256, f":{secrets.token_hex(8)}")

    def _scan(self, kind: str, rest: str) -> AsyncIterator[list[bytes]]:
        return self.link.scan((_literal(f"{self.prefix}3:{kind}:") + rest).encode())

    def _ours(self, names: Iterable[bytes]) -> list[tuple[bytes, str, Key]]:
        """Return kind and key of those names, from a scan or a set, that a daemon writes."""
        ours, prefix = list[tuple[bytes, str, Key]](), self.prefix.encode()
        for name in names:
            found = _NAME.fullmatch(name, len(prefix))
            if found and name.startswith(prefix):
                kind, sha256, *of = (each.decode() for each in found.groups(b""))
                key: Key = sha256 or CacheKey(of[0], of[2], of[1])
                ours.append((name, kind or "compiled", key))
        return ours

    async def _names(self, keys: Iterable[K]) -> dict[K, bytes]:
        """Return the names of all but artifacts whose engines neither say nor the sets know."""
        keys = list(keys)
        names = {key: self.name_of(key) for key in keys if isinstance(key, str) or key.engine_id}
        unknown = [key for key in keys if isinstance(key, CacheKey) and key not in names]
        sets = dict(await self._sets({key.module_sha256 for key in unknown}))
        for key in unknown:
            end = f":{key.fingerprint}".encode()
            names |= ((key, name) for name in sets[key.module_sha256] if name.endswith(end))
        return names

    async def _of_modules(self, modules: Collection[str]) -> AsyncIterator[list[_Of]]:
        """Return the names of modules' artifacts, of themselves, and of their sets, in batches."""
        for some in _batches(list(modules), _BATCH):
            names = list[_Of]()
            for each, artifacts in await self._sets(some):
                names += [(each, "compiled", name) for name in artifacts]
                names += [(each, "module", self.name_of(each))]
                names += [(each, "of", self._named("of", each))]
            yield names

    async def _sets(self, modules: Collection[str]) -> list[tuple[str, list[bytes]]]:
        """Return modules with the names of their artifacts, as far as the sets know them."""
        asked = [("SRANDMEMBER", self._named("of", each), _MOST_NAMED) for each in modules]
        sets = await self._each(asked)
        return [
            (each, [self._named("compiled", each, ":") + member for member in members])
            for each, members in zip(modules, sets, strict=True)
        ]

    async def _delete(self, names: Sequence[bytes], scope: model.EvictScope) -> Evicted:
        gone = Evicted()
        for some in _batches(self._ours(names), _BATCH):
            go = [each for each in some if not scope.leaves(module_of(each[2]))]
            stay = [each for each in some if scope.leaves(module_of(each[2]))]
            asked = [("EXISTS" if kind == "of" else "STRLEN", name) for name, kind, _ in go]
            sizes = await self._each(asked)
            existed = await self._each([("UNLINK", name) for name, _, _ in go])
            gone += Evicted(pinned=sum(kind != "of" for _, kind, _ in stay))
            for (_, kind, _), size, did in zip(go, sizes, existed, strict=True):
                if did and kind != "of":
                    gone += Evicted(int(kind == "compiled"), int(kind == "module"), size)
        return gone

    async def _each(self, commands: Sequence[Command]) -> list[Any]:
        """Run any number of commands; one on a key of another type counts as one on no key."""
        answers = list[Any]()
        for some in _batches(commands, _BATCH):
            try:
                answers += await self.link.run(*some)
            except WrongType:
                none: list[Any] = [[] if some[0][0] == "SRANDMEMBER" else 0]
                each = [await self._each([one]) for one in some] if len(some) > 1 else [none]
                answers += itertools.chain(*each)
        return answers


def _trial(name: bytes) -> list[Command]:
    """Return every command that a write needs, on values that are gone within seconds.

    A server may let the user do some of them. ``name`` is that of a value that is being written.
    """
    value, of = name + b":value", name + b":of"
    return [
        ("SET", name, b"", "EX", 10),
        ("APPEND", name, b"."),
        ("RENAMENX", name, value),
        ("PERSIST", value),
        ("EXPIRE", value, 1),
        ("SADD", of, b"."),
        ("EXPIRE", of, 1),
    ]


def _member(key: CacheKey) -> str:
    """Return the name of an artifact in the set of its module."""
    return f"{key.engine_id}:{key.fingerprint}"


def _literal(text: str) -> str:
    """Return a pattern that matches ``text`` alone."""
    return _GLOB.sub(r"\\\g<0>", text)


def _batches(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
