"""The tier on a Redis that daemons share: values that nobody else can forge, one key each.

Below the prefix of a namespace, ``3`` is the format of values (``cache.value``):

- ``3:compiled:{<module>}:<engine>:<fingerprint>`` is an artifact, ``3:module:{<module>}`` a module.
- ``3:of:{<module>}`` is the set of ``<engine>:<fingerprint>`` of a module's artifacts, so that
  what is about one module takes time linear in its own artifacts. Where somebody deleted it,
  Evict scans instead.
- ``3:new:{<module>}:<random>`` is a value that is being written. It is renamed to its own name
  when it is whole, if nothing is there: so no reader meets a part of one value beside a part of
  another. If the writer dies, it expires after a minute.

The braces keep all keys of a module in one slot of a cluster. A value lives for ``ttl_s``, and for
ever while its module is pinned. Nothing that the server returns is trusted: a value that does not
verify is read once more, for it may have been replaced meanwhile; then it is counted, deleted if
it is still the same, and a miss.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from wasmkilnd.cache.redis_link import RedisLink
from wasmkilnd.cache.redis_servers import WRITE_TIMEOUT_S, Command
from wasmkilnd.cache.value import (
    TRAILER_BYTES,
    ZSTD,
    Opened,
    ValueRejected,
    head_bytes,
    open_head,
    open_value,
    stamped_by,
    with_payload,
    written,
)
from wasmkilnd.errors import (
    DoesNotFit,
    PartUnavailable,
    TierUnavailable,
    WrongType,
    forget_frames,
)
from wasmkilnd.model import (
    SHA256_HEX,
    Artifact,
    CacheKey,
    Evicted,
    EvictScope,
    Held,
    IsPinned,
    Kind,
    Module,
    TierUsage,
)
from wasmkilnd.model import RejectionCause as Cause
from wasmkilnd.ports import Recorder
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import Allowance
from wasmkilnd.wire import frame

T = TypeVar("T")

# One GETRANGE gets the head and, of most artifacts, all frames. Other clients of the server wait
# for as much at most (docs/explanation/performance.md).
# A little less than a MiB: glibc maps larger blocks one by one, and each page faults.
_RANGE_BYTES = 960 * 1024
# Enough for the head of nearly every artifact.
_HEAD_BYTES = 8192
_CHUNK_BYTES = 512 * 1024
_WRITING_S = 60
# More look-ups than this wait: answers would seem late because this daemon is busy.
_READS_AT_ONCE = 8
# A look-up may take longer for a large value, but no longer than this rate allows.
_LEAST_BYTES_PER_S = 32 * 1024 * 1024
# Below this, handing bytes to a thread costs more than checking them.
_INLINE_BYTES = 64 * 1024
_BATCH = 500
_LOOK_EVERY_S = 5.0
_RENEWALS_PER_LIFE = 10
_MAX_REMEMBERED = 100_000
_MAX_RENEWING = 16
_NO_TTL, _GONE = -1, -2

_GLOB = re.compile(r"[][*?\\^-]")
_HEX = "[0-9a-f]{64}"
_NAME = re.compile(rf"(module|compiled):{{({_HEX})}}(?::([!-~]+):({_HEX}))?".encode())
_OF_FORMAT_2 = re.compile(
    rf"compiled:{{{_HEX}}}:{_HEX}|module:{{{_HEX}}}|part:{{{_HEX}}}:(?:{_HEX}|module):{_HEX}"
    rf"|mark:(?:{{{_HEX}}}|all)|(?:revoked|cert):{_HEX}".encode()
)
_OURS = re.compile(
    rb"3:(?:compiled:\{[0-9a-f]{64}\}:.+:[0-9a-f]{64}|(?:module|of):\{[0-9a-f]{64}\})", re.DOTALL
)
# A fleet whose daemons do not trust each other's keys rejects every value for one of these.
_LOGGED_ONCE = frozenset({Cause.UNSIGNED, Cause.STRANGER})
_MAX_LOGGED = 64

# A value that was replaced since it was rejected must not be deleted: no two have one trailer. For
# a key of another type, or an empty one, ask for a trailer of no bytes.
_DELETE_IF = """
local last = redis.pcall('getrange', KEYS[1], ARGV[1], -1)
if type(last) == 'table' then last = '' end
if redis.sha1hex(last) ~= ARGV[2] then return 0 end
return redis.call('unlink', KEYS[1])
"""

log = structlog.get_logger("wasmkilnd.cache")


@dataclass(frozen=True, slots=True)
class Lacking:
    """What the tier lacks of pinned modules."""

    missing: list[CacheKey | str] = field(default_factory=list)
    """Artifacts, and digests of modules whose own bytes are missing, in the order of the look."""
    expiring: set[str] = field(default_factory=set)
    """Digests of modules of which a value expires."""


class RedisStore:
    """Artifacts and modules of one namespace. For one event loop.

    Each method raises TierUnavailable if the server fails, and no other error.
    """

    name = "redis"

    def __init__(
        self,
        link: RedisLink,
        prefix: str,
        sealer: Sealer,
        recorder: Recorder,
        *,
        ttl_s: int,
        renews: bool,
        artifact_bytes: Callable[[], int],
        module_bytes: Callable[[], int],
        is_pinned: IsPinned,
        reports_usage: bool,
    ) -> None:
        """Keep values below ``prefix``, that of the namespace.

        With ``renews``, a use restarts the time to live. Payloads larger than ``artifact_bytes``
        or ``module_bytes`` are not read. Without ``reports_usage``, ``usage`` returns zeros: the
        server's own figures are sums over all of its keys.
        """
        self.link = link
        self.prefix = prefix
        self.write_refusal = ""
        """Why the server, which answers, takes no writes; empty while it takes them."""
        self._sealer = sealer
        self._recorder = recorder
        self._ttl_s = ttl_s
        self._renews = renews
        self._limits = {True: artifact_bytes, False: module_bytes}
        self._is_pinned = is_pinned
        self._reports_usage = reports_usage
        self._usage = TierUsage()
        self._reading = asyncio.Semaphore(_READS_AT_ONCE)
        self._logged = set[str]()
        self._refused = b""
        self._renewed: OrderedDict[CacheKey | str, float] = OrderedDict()
        self._background = set[asyncio.Task[None]]()
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch the server; wait until it is known whether it answers."""
        await self._look()
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop watching; never raise. The link stays open."""
        tasks = [*self._background, *([self._watcher] if self._watcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def usage(self) -> TierUsage:
        """Return what the server reported last, the keys of other clients included."""
        return self._usage

    async def get(
        self, key: CacheKey, allowance: Allowance, accept: frozenset[str] = frozenset()
    ) -> Artifact | None:
        """Return the artifact under ``key``, verified.

        Its frames stay packed if ``accept`` has their encoding. The time that moving a large value
        takes is added to ``allowance``, and the wait for this daemon's other look-ups.
        """
        found = await self._find(key, allowance, accept)
        return found if isinstance(found, Artifact) else None

    async def get_module(self, sha256: str, allowance: Allowance) -> Module | None:
        """Return the module with this digest, verified; as ``get``."""
        found = await self._find(sha256, allowance, frozenset())
        return found if isinstance(found, Module) else None

    async def put(self, what: Artifact | Module) -> None:
        """Store a value, unless it is there; then restart its time to live.

        Raise DoesNotFit for one that the server does not take for its size.
        """
        began = time.perf_counter()
        try:
            async with asyncio.timeout(max(WRITE_TIMEOUT_S, self.link.timeout_s)):
                key = what.key if isinstance(what, Artifact) else what.sha256
                size_bytes = what.size_bytes if isinstance(what, Artifact) else len(what.wasm)
                await self.store(key, written(what, self._sealer), size_bytes)
        except DoesNotFit as failure:
            self._recorder.tier_store(self.name, "too_large", time.perf_counter() - began)
            log.warning(
                "value not shared: the tier does not take one of its size", why=str(failure)
            )
            raise
        except TimeoutError:
            self._recorder.tier_store(self.name, "error", time.perf_counter() - began)
            raise TierUnavailable("a write to Redis takes too long") from None
        except TierUnavailable as failure:
            self._recorder.tier_store(self.name, "error", time.perf_counter() - began)
            # Of a cluster, the other nodes take writes.
            if not self.link.is_down and not isinstance(failure, PartUnavailable):
                self._note_refusal(self._temporary(_module_of(what)), str(failure))
            raise
        self._recorder.tier_store(self.name, "ok", time.perf_counter() - began)
        self._note_refusal(b"", "")

    async def has_module(self, sha256: str) -> bool:
        """Return whether a module is stored, without verifying it."""
        [found] = await self._run(("EXISTS", self._module(sha256)))
        return bool(found)

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` are stored, without verifying them."""
        names = await self._names(keys)
        found = await self._each([("EXISTS", name) for name in names.values()])
        return frozenset(key for key, there in zip(names, found, strict=True) if there)

    async def kinds_of(self, keys: Sequence[CacheKey]) -> Mapping[CacheKey, Kind]:
        """Return the kind of module behind each artifact that is stored, by its head alone."""
        kinds = dict[CacheKey, Kind]()
        names = await self._names(keys)
        for some in _batches(list(names.items()), 128):
            tails = await self._each([("GETRANGE", name, -_HEAD_BYTES, -1) for _, name in some])
            for (key, name), tail in zip(some, tails, strict=True):
                if not tail:
                    continue
                with contextlib.suppress(ValueRejected):
                    if head_bytes(tail) > len(tail):
                        [tail] = await self._run(("GETRANGE", name, -head_bytes(tail), -1))
                    opened = open_head(tail, self._sealer).what
                    if isinstance(opened, Artifact) and opened.key == key:
                        kinds[key] = opened.kind
            await asyncio.sleep(0)
        return kinds

    async def evict(self, scope: EvictScope) -> Evicted:
        """Delete what is in ``scope`` and not pinned; a module in time linear in its artifacts."""
        gone = Evicted()
        if scope.module_sha256:
            return await self._delete(await self._of_module(scope.module_sha256), scope)
        engine = f"*:{_literal(scope.engine_id)}:*" if scope.engine_id else "*"
        for kind in ("compiled",) if scope.engine_id else ("compiled", "module", "of"):
            async for page in self.link.scan(self._pattern(kind, engine)):
                gone += await self._delete(page, scope)
        return gone

    def used(self, key: CacheKey | str) -> None:
        """Note a use, also one from memory, which restarts the time to live if settings say so.

        What every daemon has in memory must still be here when a daemon restarts. Each value is
        renewed ten times in its life at most. Return at once; never raise.
        """
        now_s = time.monotonic()
        last_s = self._renewed.get(key)
        interval_s = self._ttl_s / _RENEWALS_PER_LIFE
        if not self._renews or (last_s is not None and now_s - last_s < interval_s):
            return
        if len(self._background) >= _MAX_RENEWING:
            return  # The next use renews it.
        self._renewed[key] = now_s
        self._renewed.move_to_end(key)
        if len(self._renewed) > _MAX_REMEMBERED:
            self._renewed.popitem(last=False)
        renewing = asyncio.create_task(self._renew(key))
        self._background.add(renewing)
        renewing.add_done_callback(self._background.discard)

    async def measure(self, modules: Collection[str], *, keep: bool) -> dict[str, Held]:
        """Return what is here of each of ``modules``; with ``keep``, let none of it expire."""
        found = dict.fromkeys(modules, Held())
        async for some in self._of_modules(modules):
            if keep:
                await self._each([("PERSIST", name) for name in some])
            values = [name for name in some if not name.startswith(self._kind("of"))]
            sizes = await self._each([("STRLEN", name) for name in values])
            for name, size in zip(values, sizes, strict=True):
                is_module = name.startswith(self._kind("module"))
                if size:
                    held = Held(int(not is_module), int(is_module), size)
                    found[module_in(name)] += held
        return found

    async def release(self, modules: Collection[str]) -> None:
        """Let what is kept of ``modules`` expire, as if it were stored now."""
        async for some in self._of_modules(modules):
            ages = await self._each([("TTL", name) for name in some])
            kept = [name for name, age in zip(some, ages, strict=True) if age == _NO_TTL]
            await self._each([("EXPIRE", name, self._ttl_s) for name in kept])

    async def lacking(self, wanted: Sequence[CacheKey | str]) -> Lacking:
        """Return what is missing of ``wanted``, artifacts and modules, and what of it expires."""
        names = await self._names([each for each in wanted if isinstance(each, CacheKey)])
        named = [
            names.get(each) if isinstance(each, CacheKey) else self._module(each) for each in wanted
        ]
        ages = iter(await self._each([("TTL", name) for name in named if name]))
        found = Lacking()
        for each, name in zip(wanted, named, strict=True):
            age = next(ages) if name else _GONE
            if age == _GONE:
                found.missing.append(each)
            elif age != _NO_TTL:
                found.expiring.add(each if isinstance(each, str) else each.module_sha256)
        return found

    # Reading

    async def _find(
        self, key: CacheKey | str, allowance: Allowance, accept: frozenset[str]
    ) -> Artifact | Module | None:
        began = time.perf_counter()
        what = "module" if isinstance(key, str) else "artifact"
        try:
            with allowance.free():
                await self._reading.acquire()
            try:
                found = await self._read(key, allowance, accept)
            finally:
                self._reading.release()
        except TierUnavailable:
            self._recorder.tier_lookup(self.name, what, "error", time.perf_counter() - began)
            raise
        outcome = "miss" if found is None else "hit"
        self._recorder.tier_lookup(self.name, what, outcome, time.perf_counter() - began)
        return found

    async def _read(
        self, key: CacheKey | str, allowance: Allowance, accept: frozenset[str]
    ) -> Artifact | Module | None:
        name = self._module(key) if isinstance(key, str) else (await self._names([key])).get(key)
        for last in (False, True):
            if name is None:
                return None
            tail = b""
            try:
                [tail] = await self._run(("GETRANGE", name, -_RANGE_BYTES, -1))
                if not tail:
                    return None
                return await self._open(name, tail, key, allowance, accept)
            except WrongType:
                rejected = ValueRejected(Cause.FORMAT, "the key holds a list or the like")
            except ValueRejected as failure:
                forget_frames(failure)  # They hold the value, and this frame.
                rejected = failure
            if last:
                await self._discard(name, tail, rejected)
        return None

    async def _open(
        self,
        name: bytes,
        tail: bytes,
        key: CacheKey | str,
        allowance: Allowance,
        accept: frozenset[str],
    ) -> Artifact | Module | None:
        size_bytes = head_bytes(tail)
        if size_bytes > len(tail):
            [tail] = await self._run(("GETRANGE", name, -size_bytes, -1))
        await self._sealer.meet(stamped_by(tail))
        opened = await _in_thread(size_bytes, open_value, tail, key, self._sealer)
        if opened.size_bytes > self._limits[isinstance(key, CacheKey)]():
            # Not deleted: daemons with a higher limit use it.
            log.info("stored value is larger than the limit", key=name.decode())
            return None
        moving_s = opened.stored_bytes / _LEAST_BYTES_PER_S
        allowance.add(moving_s)
        packed = opened.codec == ZSTD and ZSTD in accept
        try:
            async with asyncio.timeout(self.link.timeout_s + moving_s):
                frames = await self._frames(name, opened, tail, packed=packed)
        except TimeoutError:
            # Not an outage: the server answered each command in time.
            raise TierUnavailable("Redis takes too long for a value of this size") from None
        if packed and isinstance(opened.what, Artifact):
            return dataclasses.replace(opened.what, frames=frames, encoding=ZSTD)
        if isinstance(opened.what, Artifact):
            return dataclasses.replace(opened.what, frames=frames)
        return await _in_thread(opened.size_bytes, with_payload, opened, frames)

    async def _frames(
        self, name: bytes, opened: Opened, tail: bytes, *, packed: bool
    ) -> tuple[bytes, ...]:
        """Return all frames, checked and, unless ``packed``, unpacked while others are read.

        Those of an artifact are as the wire carries them.
        """
        is_artifact = isinstance(opened.what, Artifact)
        begins = opened.stored_bytes - len(tail)
        if begins < 0:
            raise ValueRejected(Cause.FORMAT, "the value has bytes before its first frame")

        def take(first: int, stored: Sequence[memoryview]) -> list[bytes]:
            taken = []
            for index, each in enumerate(stored, first):
                raw = opened.check(index, each) if packed else opened.unpack(index, each)
                taken.append(frame(raw) if is_artifact else bytes(raw))
            return taken

        def here(first: int, end: int, data: bytes, offset: int) -> list[memoryview]:
            view = memoryview(data)
            return [
                view[one.offset - offset : one.offset - offset + one.stored_bytes]
                for one in opened.frames[first:end]
            ]

        count = len(opened.frames)
        # The frames that the tail holds whole, in two parts: two threads unpack them at once.
        first = next((i for i, one in enumerate(opened.frames) if one.offset >= begins), count)
        middle = (first + count + 1) // 2
        parts = [(start, end) for start, end in ((first, middle), (middle, count)) if start < end]
        taking = {
            start: asyncio.ensure_future(
                _in_thread(
                    sum(one.stored_bytes for one in opened.frames[start:end]),
                    take,
                    start,
                    here(start, end, tail, begins),
                )
            )
            for start, end in parts
        }
        try:
            start, last = 0, None
            while start < first:
                end, offset = start + 1, opened.frames[start].offset
                while end < first and _end(opened, end) - offset <= _RANGE_BYTES:
                    end += 1
                size_bytes = _end(opened, end - 1) - offset
                [data] = await self._run(("GETRANGE", name, offset, offset + size_bytes - 1))
                work = _in_thread(size_bytes, take, start, here(start, end, data, offset))
                taking[start] = asyncio.ensure_future(work)
                if last is not None:  # No more is read than two threads unpack.
                    await last
                last, start = taking[start], end
            done = {at: await task for at, task in taking.items()}
        finally:
            for task in taking.values():
                task.cancel()
            await asyncio.gather(*taking.values(), return_exceptions=True)
        return tuple(each for at in sorted(done) for each in done[at])

    async def _discard(self, name: bytes, tail: bytes, rejected: ValueRejected) -> None:
        cause = rejected.cause.value
        self._recorder.value_rejected(self.name, cause)
        tell = log.warning
        if rejected.cause in _LOGGED_ONCE:
            # A writer to Redis can make up any number of reasons.
            if rejected.why in self._logged or len(self._logged) >= _MAX_LOGGED:
                tell = log.debug
            else:
                self._logged.add(rejected.why)
        tell("stored value rejected", key=name.decode(), cause=cause, why=rejected.why)
        with contextlib.suppress(TierUnavailable):  # The next reader rejects it again.
            await self.delete_if(name, tail)

    async def delete_if(self, name: bytes, tail: bytes) -> bool:
        """Delete what is under ``name`` if it still ends in ``tail``; return whether it did.

        An empty ``tail`` stands for an empty string, or for a key of another type.
        """
        # In hexadecimal, since REST carries such an argument as it carries any text.
        end = tail[-TRAILER_BYTES:]
        digest = hashlib.sha1(end, usedforsecurity=False).hexdigest()
        [deleted] = await self._run(("EVAL", _DELETE_IF, 1, name, -max(1, len(end)), digest))
        return bool(deleted)

    # Writing

    async def store(self, key: CacheKey | str, chunks: Iterator[bytes], size_bytes: int) -> bool:
        """Store the bytes of a value under ``key``, unless one is there; return whether it did.

        Then restart the time to live. ``chunks`` is taken in threads if ``size_bytes`` is large.
        """
        module_sha256 = key if isinstance(key, str) else key.module_sha256
        name = self._module(key) if isinstance(key, str) else self._name(key)
        names, stored = [name], False
        there, there_bytes = await self._each([("EXISTS", name), ("STRLEN", name)])
        if there and not there_bytes:  # What is no value must not keep one out.
            await self.delete_if(name, b"")
        if not there_bytes:
            stored = await self._write(name, self._temporary(module_sha256), chunks, size_bytes)
        if isinstance(key, CacheKey):
            names.append(self._set(module_sha256))
            await self._note(names[1], f"{key.engine_id}:{key.fingerprint}")
        if self._is_pinned(module_sha256):
            await self._send(*(("PERSIST", each) for each in names))
        else:
            await self._send(*(("EXPIRE", each, self._ttl_s) for each in names))
        return stored

    async def _write(
        self, name: bytes, temporary: bytes, chunks: Iterator[bytes], size_bytes: int
    ) -> bool:
        """Write a value, and give it its name unless that is taken; return whether it was not."""
        waiting, sent_bytes = b"", 0
        while chunk := await _in_thread(size_bytes, next, chunks, b""):
            if waiting and len(waiting) + len(chunk) > _CHUNK_BYTES:
                sent_bytes = await self._append(temporary, waiting, sent_bytes)
                waiting = b""
            waiting += chunk
        await self._append(temporary, waiting, sent_bytes)
        stored, _ = await self._send(("RENAMENX", temporary, name), ("UNLINK", temporary))
        return bool(stored)

    async def _append(self, temporary: bytes, chunk: bytes, sent_bytes: int) -> int:
        """Write the next chunk of a value; return how many bytes there are now."""
        if not sent_bytes:
            await self._send(("SET", temporary, chunk, "EX", _WRITING_S))
            return len(chunk)
        [there, _] = await self._send(
            ("APPEND", temporary, chunk), ("EXPIRE", temporary, _WRITING_S)
        )
        if there != sent_bytes + len(chunk):
            raise TierUnavailable("Redis lost the beginning of a value while it was written")
        return sent_bytes + len(chunk)

    async def _note(self, name: bytes, member: str) -> None:
        """Add to the set of a module's artifacts, in place of a key of another type."""
        try:
            await self._send(("SADD", name, member))
        except WrongType:
            await self._send(("UNLINK", name), ("SADD", name, member))

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
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        # If the server is down, the link has logged it and asks again by itself.
        with contextlib.suppress(TierUnavailable):
            if self._reports_usage:
                self._usage = await self.link.usage()
        if self.write_refusal:  # The next write may be far off.
            with contextlib.suppress(TierUnavailable):
                await self._run(("SET", self._refused, b"", "EX", 1))
                self._note_refusal(b"", "")

    async def _renew(self, key: CacheKey | str) -> None:
        module_sha256 = key if isinstance(key, str) else key.module_sha256
        if self._is_pinned(module_sha256):
            return
        names = [self._module(module_sha256), self._set(module_sha256)]
        try:
            if isinstance(key, CacheKey):
                names += (await self._names([key])).values()
            await self._run(*(("EXPIRE", name, self._ttl_s) for name in names))
        except TierUnavailable:
            self._renewed.pop(key, None)  # The next use tries again.

    # What ``wasmkilnd cache`` asks for

    async def pages(self, beginning: str = "") -> AsyncIterator[list[CacheKey | str]]:
        """Return the keys of all values, of modules whose digest begins with ``beginning``.

        Modules come first. Some values may come twice.
        """
        for kind in ("module", "compiled"):
            async for page in self.link.scan(self._pattern(kind, f"{{{beginning}*")):
                yield [key for key in map(self._key_at, page) if key]

    def name_of(self, key: CacheKey | str) -> bytes:
        """Return the name of an artifact, whose engine must be known, or of a module."""
        return self._module(key) if isinstance(key, str) else self._name(key)

    async def look(
        self, keys: Sequence[CacheKey | str], tail_bytes: int = 0
    ) -> list[tuple[int, int | None, bytes | None]]:
        """Return size, seconds to live (None for ever) and last bytes of values; size -1 if gone.

        None in place of the bytes stands for a key that holds a list or the like.
        """
        names = [self.name_of(key) for key in keys]
        asked: list[Command] = [("TTL", name) for name in names]
        asked += [("STRLEN", name) for name in names]
        asked += [("GETRANGE", name, -tail_bytes, -1) for name in names if tail_bytes]
        found = await self._each(asked)
        count, looked = len(names), list[tuple[int, int | None, bytes | None]]()
        tails = found[2 * count :] or [b""] * count
        for age, size, tail in zip(found[:count], found[count : 2 * count], tails, strict=True):
            is_string = isinstance(tail, bytes)
            looked.append(
                (
                    size if age != _GONE else -1,
                    None if age == _NO_TTL else age,
                    tail if is_string else None,
                )
            )
        return looked

    async def kept(self, modules: Collection[str]) -> set[str]:
        """Return which of ``modules`` are pinned, as Redis shows it: their values never expire."""
        names = [(each, name) for each in modules for name in (self._module(each), self._set(each))]
        ages = await self._each([("TTL", name) for _, name in names])
        return {each for (each, _), age in zip(names, ages, strict=True) if age == _NO_TTL}

    async def of_format_2(self) -> AsyncIterator[list[bytes]]:
        """Return the names of what versions up to 0.6.0 stored and no later version reads."""
        begins = len(self.prefix)
        async for page in self.link.scan(f"{_literal(self.prefix)}*".encode()):
            yield [name for name in page if _OF_FORMAT_2.fullmatch(name, begins)]

    # Names

    def _key_at(self, name: bytes) -> CacheKey | str | None:
        found = _NAME.fullmatch(name.removeprefix(f"{self.prefix}3:".encode()))
        if not found:
            return None
        kind, module_sha256, engine_id, fingerprint = (each.decode() for each in found.groups(b""))
        if kind == "module" and not engine_id:
            return module_sha256
        if kind == "compiled" and engine_id:
            return CacheKey(module_sha256, fingerprint, engine_id)
        return None

    def _kind(self, kind: str) -> bytes:
        return f"{self.prefix}3:{kind}:".encode()

    def _name(self, key: CacheKey) -> bytes:
        return b"%b{%b}:%b:%b" % (
            self._kind("compiled"),
            key.module_sha256.encode(),
            key.engine_id.encode(),
            key.fingerprint.encode(),
        )

    def _module(self, sha256: str) -> bytes:
        return b"%b{%b}" % (self._kind("module"), sha256.encode())

    def _set(self, module_sha256: str) -> bytes:
        return b"%b{%b}" % (self._kind("of"), module_sha256.encode())

    def _temporary(self, module_sha256: str) -> bytes:
        random = secrets.token_hex(8).encode()
        return b"%b{%b}:%b" % (self._kind("new"), module_sha256.encode(), random)

    def _pattern(self, kind: str, rest: str = "*") -> bytes:
        return (_literal(self._kind(kind).decode()) + rest).encode()

    async def _names(self, keys: Iterable[CacheKey]) -> dict[CacheKey, bytes]:
        """Return the names of those artifacts whose engines are known, or stand in the sets."""
        names, unknown = dict[CacheKey, bytes](), list[CacheKey]()
        for key in keys:
            if key.engine_id:
                names[key] = self._name(key)
            else:
                unknown.append(key)
        modules = list({key.module_sha256: None for key in unknown})
        members = await self._each([("SMEMBERS", self._set(each)) for each in modules])
        sets = dict(zip(modules, members, strict=True))
        for key in unknown:
            for member in sets[key.module_sha256]:
                engine_id, _, fingerprint = member.decode(errors="replace").rpartition(":")
                if fingerprint == key.fingerprint:
                    names[key] = self._name(dataclasses.replace(key, engine_id=engine_id))
        return names

    async def _of_module(self, module_sha256: str) -> list[bytes]:
        """Return the names of a module, its artifacts and its set; without one, by a scan."""
        [members] = await self._each([("SMEMBERS", self._set(module_sha256))])
        names = [self._artifact_of(module_sha256, each) for each in members]
        if not names:
            pattern = self._pattern("compiled", f"{{{module_sha256}}}:*")
            names = [name async for page in self.link.scan(pattern) for name in page]
        return [*names, self._module(module_sha256), self._set(module_sha256)]

    async def _of_modules(self, modules: Collection[str]) -> AsyncIterator[list[bytes]]:
        """Return the names of modules, their artifacts and sets, in batches."""
        for some in _batches(list(modules), _BATCH):
            sets = await self._each([("SMEMBERS", self._set(each)) for each in some])
            names = list[bytes]()
            for module_sha256, members in zip(some, sets, strict=True):
                names += [self._artifact_of(module_sha256, each) for each in members]
                names += [self._module(module_sha256), self._set(module_sha256)]
            yield names

    def _artifact_of(self, module_sha256: str, member: bytes) -> bytes:
        return b"%b{%b}:%b" % (self._kind("compiled"), module_sha256.encode(), member)

    async def _delete(self, names: Sequence[bytes], scope: EvictScope) -> Evicted:
        gone = Evicted()
        sets, modules = self._kind("of"), self._kind("module")
        for some in _batches([name for name in names if self._is_ours(name)], _BATCH):
            stay = {name for name in some if scope.leaves(module_in(name))}
            go = [name for name in some if name not in stay]
            lengths = [("EXISTS" if name.startswith(sets) else "STRLEN", name) for name in go]
            sizes = await self._each(lengths)
            existed = await self._each([("UNLINK", name) for name in go])
            gone += Evicted(pinned=sum(not name.startswith(sets) for name in stay))
            for name, size, did in zip(go, sizes, existed, strict=True):
                if did and not name.startswith(sets):
                    is_module = name.startswith(modules)
                    gone += Evicted(int(not is_module), int(is_module), size)
        return gone

    def _is_ours(self, name: bytes) -> bool:
        """Return whether a name that a scan found, or a set led to, is one that a daemon writes."""
        prefix = self.prefix.encode()
        return name.startswith(prefix) and bool(_OURS.fullmatch(name, len(prefix)))

    async def _each(self, commands: Sequence[Command]) -> list[Any]:
        """Run any number of commands; one on a key of another type counts as one on no key."""
        answers = list[Any]()
        for some in _batches(commands, _BATCH):
            try:
                answers += await self._run(*some)
            except WrongType:
                for command in some:
                    try:
                        answers += await self._run(command)
                    except WrongType:
                        answers.append([] if command[0] == "SMEMBERS" else 0)
        return answers

    async def _run(self, *commands: Command) -> list[Any]:
        return await self.link.run(*commands)


def module_in(name: bytes) -> str:
    """Return the digest between the braces of a key's name; empty if there is none."""
    found = name.partition(b"{")[2].partition(b"}")[0].decode(errors="replace")
    return found if SHA256_HEX.fullmatch(found) else ""


def _literal(text: str) -> str:
    """Return a pattern that matches ``text`` alone."""
    return _GLOB.sub(r"\\\g<0>", text)


def _module_of(what: Artifact | Module) -> str:
    return what.module_sha256 if isinstance(what, Artifact) else what.sha256


def _end(opened: Opened, index: int) -> int:
    one = opened.frames[index]
    return one.offset + one.stored_bytes


def _batches(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))


async def _in_thread(size_bytes: int, work: Callable[..., T], *args: Any) -> T:
    if size_bytes < _INLINE_BYTES:
        return work(*args)
    return await asyncio.to_thread(work, *args)
