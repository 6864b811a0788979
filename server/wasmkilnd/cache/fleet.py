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

**A strike** (``<prefix>3:strike:{<module>}:<fingerprint>``) is signed, and says when it was written
and for how long: whoever writes one back can make it count until then. ``quarantine.py`` decides
what it means.

**A record** is a stamp, then the text that it signs. Strikes, lists of pins and records of uses are
records. Other programs may write to the server, too. So no more is read than a record may have, a
key of another type is deleted, and a text counts only if a trusted key signed it for this purpose
and this name.

The metric ``fleet_turns`` counts how claims end:

| outcome | |
|---|---|
| ``taken`` | this daemon took the lease, and compiled |
| ``made`` | another daemon stored the artifact |
| ``failed`` | another daemon compiled and failed, or could not store: this daemon compiled too |
| ``late`` | other daemons took too long to compile or to store: this daemon compiled |
| ``alone`` | Redis did not answer: this daemon compiled |
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import structlog
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from wasmkilnd.cache.redis_link import RedisLink
from wasmkilnd.cache.redis_servers import WRITE_TIMEOUT_S
from wasmkilnd.errors import Reason, TierUnavailable, WasmkilnError, WrongType
from wasmkilnd.flights import Background, WaitBudget
from wasmkilnd.model import STAMP_BYTES, CacheKey, Strike
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry import tracing
from wasmkilnd.telemetry.metrics import Metrics

_RENEWALS_PER_LEASE = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.25
# A job that waits for a worker looks less often, and all such jobs of a daemon together look no
# more often than this.
_QUEUED_PAUSE_S, _QUEUED_LOOKS_PER_S = 0.5, 50
# Anyone who can write to the server can make artifacts come and go for ever. In an honest fleet a
# holder dies or gives up now and then.
_MAX_TIMES_WAITED = 4
_CLOSE_TIMEOUT_S = 1.0

# How long a holder whose compile failed leaves a note. All other daemons see it, and each
# compiles now and finds out for itself, rather than one after the other.
_FAILED, _FAILED_S = b"failed", 2.0

# Failures that tell nothing about the module.
_NOT_TRIED = (Reason.COMPILE_QUEUE_FULL, Reason.WORKER_UNAVAILABLE, Reason.SERVER_DRAINING)

# KEYS: the lease; ARGV: the token, and what to store for how long, or nothing. A holder that lost
# its lease leaves the next one alone.
_REPLACE = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('del', KEYS[1]) end
redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""

_MAX_LISTED, _MAX_BYTES, _MAX_STRIKE_BYTES = 10_000, 2 * 1024**2, 16 * 1024
_PURPOSE = b"wasmkiln strike 3"
_LONGEST_S = 100 * 365 * 24 * 3600

_log = structlog.get_logger("wasmkilnd.cache")


@dataclass(eq=False, repr=False)
class Fleet:
    """The daemons that share a Redis. For one event loop.

    Every claim is granted without ``link``, or if ``lease_s`` is 0. ``stored`` returns once an
    artifact that was compiled here is stored, or dropped; ``max_wait_s`` returns how long one call
    waits on others' leases, all its waits together.
    """

    link: RedisLink | None
    prefix: str
    metrics: Metrics
    stored: Callable[[CacheKey], Awaitable[None]]
    lease_s: float
    max_wait_s: Callable[[], float]
    # Held for a moment before each look of a job that waits for a worker.
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    background: Background = field(default_factory=Background)

    @contextlib.asynccontextmanager
    async def claim(
        self, key: CacheKey, budget: WaitBudget, *, alone: bool = False
    ) -> AsyncIterator[Claim]:
        """Return this daemon's claim to compile ``key``, which lasts as long as the context.

        Its requests to the shared tier together take no longer than ``budget`` has left. Other
        daemons learn how the context ends. With ``alone``, this daemon compiles whatever other
        daemons do, and they learn nothing of it.
        """
        claim = Claim(self, key, budget, alone=alone or not self.link or not self.lease_s)
        try:
            yield claim
            claim.end(None)
        except WasmkilnError as failure:
            if failure.reason not in _NOT_TRIED:
                claim.failed()
            raise
        finally:
            claim.end(b"")  # Unless it has ended: another daemon may take over.

    async def close(self) -> None:
        """Wait until every lease is released, but not for long; never raises."""
        if self.background.tasks:
            await asyncio.wait(self.background.tasks, timeout=_CLOSE_TIMEOUT_S)

    async def look(self, key: CacheKey, budget: WaitBudget, token: bytes = b"") -> str:
        """Return what becomes of the artifact: ``stored``, ``held``, ``failed`` or ``free``.

        With a token, take the lease if it is free: ``taken``, or ``stored``, which counts first.
        ``alone`` if Redis does not answer.
        """
        lease, module = _name(f"{self.prefix}3:lease:", key), key.module_sha256
        artifact = f"{self.prefix}3:compiled:{{{module}}}:{key.engine_id}:{key.fingerprint}"
        # Before the looks: a holder stores the artifact before it releases the lease.
        take = ("SET", lease, token, "NX", "PX", int(self.lease_s * 1000) + 1)
        looks = ("EXISTS", artifact.encode()), ("GETRANGE", lease, 0, 31), ("TTL", lease)
        try:
            asking = _open(self.link).run(*((take, *looks) if token else looks))
            *taken, stored, held, ttl_s = await budget.spend_on(asking)
        except TierUnavailable:
            return "alone"
        if stored or any(taken):
            return "stored" if stored else "taken"
        if not held or ttl_s == -1:  # No daemon writes a lease for ever.
            return "free"
        return "failed" if held == _FAILED else "held"

    async def replace(self, key: CacheKey, token: bytes, value: bytes) -> bool:
        """Renew the lease by its token, leave a note, or release it by nothing, if it is held.

        Return whether it is: it may be if Redis does not answer, as it outlasts a short outage.
        """
        ttl_s = self.lease_s if value == token else _FAILED_S
        lease, ttl_ms = _name(f"{self.prefix}3:lease:", key), int(ttl_s * 1000) + 1
        command = ("EVAL", _REPLACE, 1, lease, token, value, ttl_ms)
        try:
            [replaced] = await _open(self.link).run(command)
        except TierUnavailable:
            return True
        return bool(replaced)


class Claim:
    """One daemon's claim to compile one artifact, by a lease. For the tasks of one flight.

    No method fails because the shared tier fails: the daemon then compiles by itself, so the same
    artifact may be compiled twice, but no call waits for a daemon that cannot be seen.
    """

    def __init__(self, fleet: Fleet, key: CacheKey, budget: WaitBudget, *, alone: bool) -> None:
        self._fleet = fleet
        self._key = key
        self._budget = budget
        self._alone = alone
        self._ended: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._times_waited, self._waited_s = 0, 0.0
        # Why this daemon compiles, though it does not hold the lease.
        self._why_compile = ""

    async def stored(self) -> None:
        """Return once another daemon has stored the artifact: the job needs no worker then."""
        while True:
            await asyncio.sleep(_QUEUED_PAUSE_S)
            async with self._fleet.looking:
                await asyncio.sleep(1 / _QUEUED_LOOKS_PER_S)
            # A server that does not answer costs nothing: the job waits for a worker anyway.
            believes = self._believes_others
            if believes and await self._fleet.look(self._key, WaitBudget()) == "stored":
                return

    async def take(self) -> bool:
        """Take the lease, so that other daemons wait until the artifact is stored.

        Return False if the artifact is stored already, or if another daemon compiles it.
        """
        if self._alone:
            return True
        with tracing.step("lease") as about:
            taken = await self._take()
            about["outcome"] = "granted" if taken else "left to another"
        return taken

    async def _take(self) -> bool:
        token, found = secrets.token_hex(16).encode(), ""
        try:
            found = await self._fleet.look(self._key, self._budget, token)
        finally:
            if found in ("", "alone", "stored"):
                # The server may have taken it all the same, and then all would wait for nothing.
                self._fleet.background.begin(self._fleet.replace(self._key, token, b""))
        if found == "taken":
            self._fleet.background.begin(self._hold(token))
        elif found in ("stored", "held", "free"):
            if self._believes_others and (found == "stored" or not self._why_compile):
                return False
            found = self._why_compile or "late"
        self._fleet.metrics.count("fleet_turns", found)
        return True

    async def wait_for_others(self) -> bool:
        """Wait while another daemon compiles; return whether the artifact is stored then.

        This costs no budget: it replaces work that this call would do.
        """
        if self._alone:
            return False
        with tracing.step("wait for another daemon") as about:
            stored = await self._wait_for_others()
            about["outcome"] = "stored" if stored else "given up"
        return stored

    async def _wait_for_others(self) -> bool:
        self._times_waited += 1
        while True:
            began_s, budget_s = time.monotonic(), self._budget.left_s
            found = await self._fleet.look(self._key, self._budget)
            if found != "alone":  # One that waited in vain must not wait for a second time-out.
                self._budget.left_s = budget_s
            if found == "stored":
                self._fleet.metrics.count("fleet_turns", "made")
                return True
            left_s = self._fleet.max_wait_s() - self._waited_s
            if found != "held" or left_s <= 0:
                why = {"held": "late", "failed": "failed"}
                self._why_compile = why.get(found, self._why_compile)
                return False
            pause_s = min(max(self._waited_s / 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            pause_s *= random.uniform(0.5, 1.0)  # noqa: S311 - so that not all look together
            await asyncio.sleep(min(pause_s, left_s))
            self._waited_s += time.monotonic() - began_s

    def ignore_others(self) -> None:
        """Compile here from now on, whatever other daemons do: what they stored is no use."""
        self._alone = True

    def failed(self) -> None:
        """Tell other daemons, before the context ends, that the module does not compile."""
        self.end(_FAILED)

    def end(self, note: bytes | None) -> None:
        """End the lease, if it is held, and leave ``note``. Only the first call counts.

        None keeps the lease until the artifact is stored.
        """
        if not self._ended.done():
            self._ended.set_result(note)

    @property
    def _believes_others(self) -> bool:
        return not self._alone and self._times_waited < _MAX_TIMES_WAITED

    async def _hold(self, token: bytes) -> None:
        """Renew the lease until the claim ends, and until its artifact is stored; then let go."""
        fleet, key = self._fleet, self._key
        while not self._ended.done():
            await asyncio.wait((self._ended,), timeout=fleet.lease_s / _RENEWALS_PER_LEASE)
            if not await fleet.replace(key, token, token):
                return  # It expired, and another daemon may hold one by now.
        note = self._ended.result()
        if note is None:
            # One lease at most, which it has just renewed: who waits longer compiles sooner.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(fleet.stored(key), fleet.lease_s)
                if await fleet.look(key, WaitBudget()) != "stored":
                    note = _FAILED  # It was dropped, as it would be for the next daemon.
        await fleet.replace(key, token, note or b"")


class Strikes:
    """Strikes against modules, which daemons share. Every method raises TierUnavailable.

    A daemon believes what a trusted key signed for this very key. A released strike is deleted;
    one that somebody writes back counts until its own time ends, by the clock of the reader.
    """

    def __init__(self, link: RedisLink | None, prefix: str, sealer: Sealer) -> None:
        self._link = link
        self._prefix = f"{prefix}3:strike:"
        self._sealer = sealer

    async def get(self, key: CacheKey, budget: WaitBudget) -> Strike | None:
        """Return the strike against ``key``, with the time that its quarantine has left."""
        found = await budget.spend_on(self._read([_name(self._prefix, key)]))
        return found[0] if found else None

    async def put(self, strike: Strike, ttl_s: float, budget: WaitBudget) -> None:
        """Store ``strike``, over what is there, for ``ttl_s`` seconds."""
        name = _name(self._prefix, strike.key)
        said = (strike.engine_id, strike.reason, strike.message, strike.count, strike.left_s)
        record = _Record(*said, max(1, round(ttl_s)), time.time())  # Who reads it checks it.
        stored = written(_PURPOSE, name, _RECORDS.dump_json(record), self._sealer)
        await budget.spend_on(store(_open(self._link), name, stored, record.ttl_s))

    async def all(self) -> Sequence[Strike]:
        """Return all strikes, 10,000 at most."""
        found: dict[CacheKey, Strike] = {}
        # In pages; some may come twice.
        async for names in _open(self._link).scan(f"{self._prefix}*".encode()):
            found |= {strike.key: strike for strike in await self._read(names)}
            if len(found) >= _MAX_LISTED:
                break
        return list(found.values())[:_MAX_LISTED]

    async def remove(self, module_sha256: str) -> Sequence[CacheKey]:
        """Delete the strikes against a module, or against all modules for an empty digest."""
        removed: list[CacheKey] = []
        if self._link is None:
            return removed
        pattern = f"{self._prefix}{{{module_sha256}}}:*" if module_sha256 else f"{self._prefix}*"
        async for names in self._link.scan(pattern.encode()):
            existed = await self._link.run(*(("UNLINK", name) for name in names))
            found = zip(names, existed, strict=True)
            removed += [key for name, did in found if did and (key := self._key_of(name))]
        return removed

    async def _read(self, names: Sequence[bytes]) -> list[Strike]:
        """Return the strikes that count under ``names``."""
        records = await fetch(_open(self._link), names, _MAX_STRIKE_BYTES)
        return [strike for strike in map(self._strike, names, records) if strike]

    def _strike(self, name: bytes, stored: bytes) -> Strike | None:
        key = self._key_of(name)
        if not stored or key is None:
            return None
        try:
            text = text_of(_PURPOSE, name, stored, self._sealer)
            record = _RECORDS.validate_json(text)
        except ValidationError:
            module = key.module_sha256
            _log.warning("ignored a quarantine record without a valid stamp", module=module)
            return None
        age_s = max(0.0, time.time() - record.written_s)
        if age_s > record.ttl_s:
            return None  # Somebody has written it back.
        left_s = max(0.0, record.quarantine_s - age_s)
        return Strike(key, record.engine, record.reason, record.message, record.count, left_s)

    def _key_of(self, name: bytes) -> CacheKey | None:
        found = _KEY.fullmatch(name.decode(errors="replace").removeprefix(self._prefix))
        return CacheKey(*found.groups()) if found else None


_KEY = re.compile(r"\{([0-9a-f]{64})\}:([0-9a-f]{64})")
# What can be told to callers and operators: nothing that moves a cursor or hides text.
_Text = Annotated[str, Field(pattern=r"^[^\p{C}\p{Zl}\p{Zp}]*$")]


@dataclass
class _Record:
    """What a strike's key holds behind its stamp, as JSON."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    engine: _Text
    reason: _Text
    message: _Text
    count: int = Field(ge=1, le=1_000_000)
    quarantine_s: float = Field(ge=0, le=_LONGEST_S)
    ttl_s: int = Field(ge=1, le=_LONGEST_S)
    written_s: float = Field(ge=0, le=1e11)


_RECORDS = TypeAdapter(_Record)


def _open(link: RedisLink | None) -> RedisLink:
    if link is None:
        raise TierUnavailable("there is no shared tier")
    return link


def _name(prefix: str, key: CacheKey) -> bytes:
    return f"{prefix}{{{key.module_sha256}}}:{key.fingerprint}".encode()


def written(purpose: bytes, name: bytes, text: bytes, sealer: Sealer) -> bytes:
    """Return the bytes to store for ``text``."""
    return sealer.stamp(b"\0".join((purpose, name, text))) + text


def text_of(purpose: bytes, name: bytes, record: bytes, sealer: Sealer) -> bytes:
    """Return the text of a stored record; nothing if no trusted key signed it for ``name``."""
    stamp, text = record[:STAMP_BYTES], record[STAMP_BYTES:]
    if len(record) > _MAX_BYTES or not text:
        return b""
    return b"" if sealer.check_stamp(b"\0".join((purpose, name, text)), stamp) else text


async def store(link: RedisLink, name: bytes, record: bytes, ttl_s: int) -> None:
    """Store a record for ``ttl_s`` seconds. Raises TierUnavailable."""
    await link.run(("SET", name, record, "EX", ttl_s), timeout_s=WRITE_TIMEOUT_S)


async def fetch(
    link: RedisLink, names: Sequence[bytes], length: int = _MAX_BYTES + 1
) -> list[bytes]:
    """Return the first bytes under each name, empty for none; delete what is of another type.

    Raises TierUnavailable.
    """
    try:
        return await link.run(*(("GETRANGE", name, 0, length - 1) for name in names))
    except WrongType:
        if len(names) == 1:
            await link.run(("UNLINK", names[0]))
            return [b""]
    return [found for name in names for found in await fetch(link, [name], length)]
