"""What the daemons on one Redis agree on: who compiles an artifact, and which modules do harm.

Redis decides here, and nothing depends on it. When it does not answer, a daemon goes on alone: at
worst an artifact is compiled twice, or each daemon learns for itself that a module breaks its
compiler.

**A lease** (``<prefix>3:lease:{<module>}:<fingerprint>``) names the daemon that compiles, by a
random token. It lives for ``lease_s``, and that daemon renews it three times as often, so a daemon
that dies frees it. It is taken when a worker is free, not before: a job that waits in one daemon's
queue keeps no other daemon from compiling. The others look until the artifact is stored, for
``max_wait_s`` at most in all waits of one call together; then they compile alone. Who can write to
Redis can delay a call within that bound, and no more.

**A strike** (``<prefix>3:strike:{<module>}:<fingerprint>``) is signed, and says when it ends:
whoever writes one back can make it count until then. ``quarantine.py`` decides what it means.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from enum import Enum
from typing import Annotated, Any

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from wasmkilnd.cache.redis_link import RedisLink
from wasmkilnd.errors import Reason, TierUnavailable, WasmkilnError, WrongType
from wasmkilnd.model import STAMP_BYTES, CacheKey, Strike
from wasmkilnd.ports import Claim, Recorder
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wait_budget import WaitBudget

_RENEWALS_PER_LEASE = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.25
# A job that waits for a worker looks less often, and all such jobs of a daemon together look no
# more often than this.
_QUEUED_PAUSE_S = 1.0
_QUEUED_LOOKS_PER_S = 50
# Anyone who can write to the server can make artifacts come and go for ever. In an honest fleet a
# holder dies or gives up now and then.
_MAX_TIMES_WAITED = 4
_CLOSE_TIMEOUT_S = 1.0

# How long a holder whose compile failed leaves a note. All other daemons see it, and each
# compiles now and finds out for itself, rather than one after the other.
_FAILED, _FAILED_MS = b"failed", 2000

# Failures that tell nothing about the module.
_NOT_TRIED = frozenset(
    {Reason.COMPILE_QUEUE_FULL, Reason.WORKER_UNAVAILABLE, Reason.SERVER_DRAINING}
)

# KEYS: the lease and the artifact; ARGV: a token, empty to look and change nothing, and the time
# to live. What no daemon writes is replaced: another type, another form, or a lease for ever.
_TAKE = f"""
if redis.call('exists', KEYS[2]) == 1 then return 'stored' end
local held = redis.pcall('getrange', KEYS[1], 0, 32)
if type(held) == 'string' and redis.call('ttl', KEYS[1]) >= 0 then
    if held == '{_FAILED.decode()}' then return 'failed' end
    if #held == 32 and not held:find('[^0-9a-f]') then return 'held' end
end
if ARGV[1] == '' then return 'free' end
local there = redis.call('exists', KEYS[1])
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return there == 1 and 'seized' or 'taken'
"""

# KEYS: the lease; ARGV: the token, and what to store for how long, or nothing. A holder that lost
# its lease leaves the next one alone.
_REPLACE = """
local held = redis.pcall('getrange', KEYS[1], 0, 32)
if held ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('del', KEYS[1]) end
redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""

_MAX_LISTED = 10_000
_BATCH = 100
_MAX_RECORD_BYTES = 16 * 1024
_PURPOSE = b"wasmkiln strike 3\0"
# A daemon whose clock is ahead by no more than this ends no strike early.
_CLOCKS_DIFFER_S = 60.0
_LONGEST_S = 100 * 365 * 24 * 3600

_log = structlog.get_logger("wasmkilnd.cache")


class Outcome(Enum):
    """How a claim ended; the values are labels of the metric ``fleet_turns``."""

    TAKEN = "taken"
    """This daemon took the lease, and compiled."""
    SEIZED = "seized"
    """As TAKEN; it replaced a value that no daemon writes there."""
    MADE = "made"
    """Another daemon stored the artifact."""
    FAILED = "failed"
    """Another daemon compiled and failed, or could not store: this daemon compiled too."""
    LATE = "late"
    """Other daemons took too long to compile or to store: this daemon compiled."""
    ALONE = "alone"
    """Redis did not answer: this daemon compiled."""


class _End(Enum):
    """How a holder's work ended, and so what becomes of its lease."""

    COMPILED = "keep it until the artifact is stored"
    FAILED = "leave a note"
    GIVEN_UP = "release it: another daemon may take over"


async def _run(link: RedisLink | None, *commands: tuple[bytes | str | int, ...]) -> list[Any]:
    if link is None:
        raise TierUnavailable("there is no shared tier")
    return await link.run(*commands) if commands else []


def _name(prefix: str, key: CacheKey) -> bytes:
    return f"{prefix}{{{key.module_sha256}}}:{key.fingerprint}".encode()


class Fleet:
    """The daemons that share a Redis; see the port. For one event loop."""

    def __init__(
        self,
        link: RedisLink | None,
        prefix: str,
        recorder: Recorder,
        stored: Callable[[CacheKey], Awaitable[None]],
        *,
        lease_s: float,
        max_wait_s: Callable[[], float],
    ) -> None:
        """Grant every claim without ``link``, or if ``lease_s`` is 0.

        ``stored`` returns once an artifact that was compiled here is stored, or dropped;
        ``max_wait_s`` returns how long one call waits on others' leases, all its waits together.
        """
        self._link = link if lease_s else None
        self._leases, self._artifacts = f"{prefix}3:lease:", f"{prefix}3:compiled:"
        self._recorder = recorder
        self._stored = stored
        self._lease_s = lease_s
        self._lease_ms = max(1, round(lease_s * 1000))
        self._max_wait_s = max_wait_s
        self._queued: set[_Claim] = set()
        """The claims whose jobs wait for a worker."""
        self._background: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def claim(
        self, key: CacheKey, budget: WaitBudget, *, alone: bool = False
    ) -> AsyncIterator[Claim]:
        """Return this daemon's claim to compile ``key``; see the port."""
        claim = _Claim(self, key, budget, alone=alone or self._link is None)
        end = _End.GIVEN_UP
        try:
            yield claim
            end = _End.COMPILED
        except WasmkilnError as failure:
            if failure.reason not in _NOT_TRIED:
                end = _End.FAILED
            raise
        finally:
            claim.end(end)

    async def close(self) -> None:
        """Release every lease; never raises."""
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=_CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` without letting the call wait for it."""

        async def unless_down() -> None:
            with contextlib.suppress(TierUnavailable):
                await work

        task = asyncio.create_task(unless_down())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _ask(self, key: CacheKey, token: bytes = b"") -> bytes:
        """Return what becomes of the artifact; with a token, take the lease if it is free."""
        artifact = f"{self._artifacts}{{{key.module_sha256}}}:{key.engine_id}:{key.fingerprint}"
        names = _name(self._leases, key), artifact.encode()
        [found] = await _run(self._link, ("EVAL", _TAKE, 2, *names, token, self._lease_ms))
        if not isinstance(found, bytes):
            raise TierUnavailable("the server returned a reply of another type")
        return found

    async def _replace(self, key: CacheKey, token: bytes, value: bytes, ttl_ms: int = 0) -> bool:
        """Store ``value``, or nothing if it is empty, if ``token`` still holds the lease."""
        name = _name(self._leases, key)
        [replaced] = await _run(self._link, ("EVAL", _REPLACE, 1, name, token, value, ttl_ms))
        return bool(replaced)


class _Claim:
    """Implements Claim by a lease. For the tasks of one flight."""

    def __init__(self, fleet: Fleet, key: CacheKey, budget: WaitBudget, *, alone: bool) -> None:
        self._fleet = fleet
        self._key = key
        self._budget = budget
        self._alone = alone
        self._token = b""
        self._renewing: asyncio.Task[None] | None = None
        self._times_waited = 0
        self._waited_s = 0.0
        self._why_compile: Outcome | None = None
        """Why this daemon compiles, though it does not hold the lease."""

    async def stored(self) -> None:
        """See Claim. All claims of a daemon share a limit of looks per second."""
        if not self._believes_others:
            await asyncio.Event().wait()
        queued = self._fleet._queued
        queued.add(self)
        pause_s = _LONGEST_PAUSE_S
        try:
            while True:
                # Jittered to half of this at least, so all of them keep the limit.
                await asyncio.sleep(_jittered(max(pause_s, 2 * len(queued) / _QUEUED_LOOKS_PER_S)))
                pause_s = min(pause_s * 1.5, _QUEUED_PAUSE_S)
                # A server that does not answer costs nothing: the job waits for a worker anyway.
                with contextlib.suppress(TierUnavailable):
                    if await self._fleet._ask(self._key) == b"stored":
                        return
        finally:
            queued.discard(self)

    async def take(self) -> bool:
        """See Claim."""
        if self._alone:
            return True
        outcome = await self._take()
        if outcome is None:
            return False
        self._fleet._recorder.fleet_turn(outcome.value)
        return True

    async def wait_for_others(self) -> bool:
        """See Claim. The pauses cost no budget: they replace work that this call would do."""
        if self._alone:
            return False
        self._times_waited += 1
        pause_s = _FIRST_PAUSE_S
        while True:
            began_s = time.monotonic()
            looking = self._fleet._ask(self._key)
            try:
                found = await self._budget.spend_on(looking, charged=False)
            except TierUnavailable:
                return False
            if found == b"stored":
                self._fleet._recorder.fleet_turn(Outcome.MADE.value)
                return True
            if found == _FAILED:
                self._why_compile = Outcome.FAILED
            if found != b"held":
                return False
            left_s = self._fleet._max_wait_s() - self._waited_s
            if left_s <= 0:
                self._why_compile = Outcome.LATE
                return False
            await asyncio.sleep(min(_jittered(pause_s), left_s))
            self._waited_s += time.monotonic() - began_s
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    def ignore_others(self) -> None:
        """See Claim."""
        self._alone = True

    def failed(self) -> None:
        """See Claim."""
        self.end(_End.FAILED)

    def end(self, end: _End) -> None:
        """End the lease as ``end`` says, if it is held. Only the first call counts."""
        renewing, self._renewing = self._renewing, None
        if renewing:
            self._fleet._in_background(self._let_go(end, renewing))

    @property
    def _believes_others(self) -> bool:
        return not self._alone and self._times_waited < _MAX_TIMES_WAITED

    async def _take(self) -> Outcome | None:
        """Take the lease; return None to leave the compile to another daemon."""
        token = secrets.token_hex(16).encode()
        try:
            found = await self._budget.spend_on(self._fleet._ask(self._key, token))
        except (TierUnavailable, asyncio.CancelledError) as failure:
            # The server may have taken it all the same, and then all would wait for nothing.
            self._fleet._in_background(self._release(token))
            if isinstance(failure, TierUnavailable):
                return self._why_compile or Outcome.ALONE
            raise
        if found in (b"taken", b"seized"):
            if found == b"seized":
                name = _name(self._fleet._leases, self._key)
                _log.warning("replaced a lease that no daemon wrote", key=name.decode())
            self._token = token
            self._renewing = self._fleet._in_background(self._renew())
            return Outcome(found.decode())
        if found == _FAILED:
            self._why_compile = Outcome.FAILED
        if self._believes_others and (found == b"stored" or self._why_compile is None):
            return None
        return self._why_compile or Outcome.LATE

    async def _renew(self) -> None:
        fleet, token = self._fleet, self._token
        while True:
            await asyncio.sleep(fleet._lease_s / _RENEWALS_PER_LEASE)
            # A short outage: the lease may outlast it.
            with contextlib.suppress(TierUnavailable):
                if not await fleet._replace(self._key, token, token, fleet._lease_ms):
                    return  # It expired, and another daemon may hold one by now.

    async def _let_go(self, end: _End, renewing: asyncio.Task[None]) -> None:
        try:
            if end is _End.COMPILED:
                # One lease at most: who waits for longer than that compiles sooner.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._fleet._lease_s):
                        await self._fleet._stored(self._key)
                    if await self._fleet._ask(self._key) != b"stored":
                        end = _End.FAILED  # It was dropped, as it would be for the next daemon.
        finally:
            renewing.cancel()
        if end is _End.FAILED:
            await self._fleet._replace(self._key, self._token, _FAILED, _FAILED_MS)
        else:
            await self._release(self._token)

    async def _release(self, token: bytes) -> None:
        await self._fleet._replace(self._key, token, b"")


def _jittered(pause_s: float) -> float:
    """Return a pause for one of many daemons, so that they do not look together for ever."""
    return pause_s * random.uniform(0.5, 1.0)  # noqa: S311


class Strikes:
    """Strikes against modules, which daemons share. Every method raises TierUnavailable.

    A daemon believes what a trusted key signed for this very key. A released strike is deleted;
    one that somebody writes back counts until its own time ends.
    """

    def __init__(self, link: RedisLink | None, prefix: str, sealer: Sealer) -> None:
        self._link = link
        self._prefix = f"{prefix}3:strike:"
        self._sealer = sealer
        digest = r"([0-9a-f]{64})"
        self._names = re.compile(rf"{re.escape(self._prefix)}\{{{digest}\}}:{digest}")

    async def get(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        """Return the strike against ``key``, with the time that its quarantine has left."""
        found = await budget.spend_on(self._read([_name(self._prefix, key)]))
        return found[0] if found else None

    async def put(
        self, strike: Strike, ttl_s: float, budget: WaitBudget | None, age_s: float = 0.0
    ) -> None:
        """Store ``strike``, over what is there, for ``ttl_s`` seconds.

        A strike that is ``age_s`` old is not stored if the stored one counts as many failures.
        ``budget`` is the waiting call's, None if no call waits.
        """
        putting = self._put(strike, max(1, round(ttl_s)), only_if_more=age_s > 0)
        await (budget.spend_on(putting) if budget else putting)

    async def ready(self) -> None:
        """Return once the server is believed to answer; never without one."""
        await (self._link.ready() if self._link else asyncio.Event().wait())

    async def all(self) -> Sequence[Strike]:
        """Return all strikes, 10,000 at most."""
        found: dict[CacheKey, Strike] = {}
        async for names in self._scan(""):
            found |= {strike.key: strike for strike in await self._read_strings(names)}
            if len(found) >= _MAX_LISTED:
                break
        return list(found.values())[:_MAX_LISTED]

    async def remove(self, module_sha256: str) -> Sequence[CacheKey]:
        """Delete the strikes against a module, or against all modules for an empty digest."""
        removed: list[CacheKey] = []
        async for names in self._scan(module_sha256):
            existed = await _run(self._link, *(("UNLINK", name) for name in names))
            keys = [self._key_of(name) for name in names]
            removed += [key for key, did in zip(keys, existed, strict=True) if did and key]
        return removed

    async def _put(self, strike: Strike, ttl_s: int, *, only_if_more: bool) -> None:
        name = _name(self._prefix, strike.key)
        if only_if_more and (there := await self._read([name])) and there[0].count >= strike.count:
            return
        record = _Record.model_construct(  # Who reads it checks it.
            engine=strike.engine_id,
            reason=strike.reason,
            message=strike.message,
            count=strike.count,
            quarantine_s=strike.left_s,
            ttl_s=ttl_s,
            written_s=time.time(),
        )
        text = record.model_dump_json().encode()
        stamp = self._sealer.stamp(_PURPOSE + name + b"\0" + text)
        await _run(self._link, ("SET", name, stamp + text, "EX", ttl_s))

    async def _scan(self, module_sha256: str) -> AsyncIterator[list[bytes]]:
        if self._link is None:
            return
        pattern = re.sub(r"[*?\[\]\\]", r"\\\g<0>", self._prefix)
        pattern += f"{{{module_sha256}}}:*" if module_sha256 else "*"
        names: list[bytes] = []
        async for page in self._link.scan(pattern.encode()):
            names += page
            while len(names) >= _BATCH:
                yield names[:_BATCH]
                del names[:_BATCH]
        yield names

    async def _read_strings(self, names: Sequence[bytes]) -> list[Strike]:
        """Return the strikes under ``names``, apart from keys of another type."""
        try:
            return await self._read(names)
        except WrongType:
            if len(names) == 1:
                return []
        return [each for name in names for each in await self._read_strings([name])]

    async def _read(self, names: Sequence[bytes]) -> list[Strike]:
        """Return the strikes that count under ``names``."""
        looks = ((("GETRANGE", name, 0, _MAX_RECORD_BYTES), ("TTL", name)) for name in names)
        replies = await _run(self._link, *(command for look in looks for command in look))
        read = zip(names, replies[::2], replies[1::2], strict=True)
        return [strike for each in read if (strike := self._strike(*each))]

    def _strike(self, name: bytes, value: bytes, ttl_s: int) -> Strike | None:
        key = self._key_of(name)
        if not value or key is None:
            return None
        stamp, text = value[:STAMP_BYTES], value[STAMP_BYTES:]
        refused = self._sealer.check_stamp(_PURPOSE + name + b"\0" + text, stamp)
        record = None if refused or len(value) > _MAX_RECORD_BYTES else _Record.read(text)
        if record is None:
            module = key.module_sha256
            _log.warning("ignored a quarantine record without a valid stamp", module=module)
            return None
        quarantine_s = record.left_s(ttl_s, time.time())
        if quarantine_s is None:
            return None
        return Strike(key, record.engine, record.reason, record.message, record.count, quarantine_s)

    def _key_of(self, name: bytes) -> CacheKey | None:
        found = self._names.fullmatch(name.decode(errors="replace"))
        return CacheKey(*found.groups()) if found else None


def _printable(text: str) -> str:
    """Return ``text`` if it can be told to callers and operators; else raise ValueError."""
    if not text.isprintable():
        raise ValueError("it cannot be printed")
    return text


_Text = Annotated[str, AfterValidator(_printable)]


class _Record(BaseModel):
    """What a strike's key holds behind its stamp, as JSON."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    engine: _Text
    reason: _Text
    message: _Text
    count: int = Field(ge=1, le=1_000_000)
    quarantine_s: float = Field(ge=0, le=_LONGEST_S)
    ttl_s: int = Field(ge=1, le=_LONGEST_S)
    written_s: float = Field(ge=0, le=1e11)

    @classmethod
    def read(cls, text: bytes) -> _Record | None:
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    def left_s(self, ttl_s: int, now_s: float) -> float | None:
        """Return how long the quarantine lasts from now on; None if the record has ended.

        ``ttl_s`` is what the server says that the record has left, which counts, so daemons need
        no common clock. The time of writing ends a copy that was written back. A record with more
        left than it was written with was tampered with: its quarantine is over.
        """
        age_s: float = self.ttl_s - ttl_s if 0 <= ttl_s <= self.ttl_s else self.ttl_s
        age_s = max(age_s, now_s - self.written_s - _CLOCKS_DIFFER_S)
        return max(0.0, self.quarantine_s - age_s) if age_s <= self.ttl_s else None
