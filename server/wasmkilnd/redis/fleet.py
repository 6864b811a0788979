"""What the daemons on one Redis agree on: who compiles an artifact.

Redis decides here, and nothing depends on it. When it does not answer, a daemon goes on alone: at
worst an artifact is compiled twice.

**A lease** (``<prefix>3:lease:{<module>}:<fingerprint>``) names the daemon that compiles, by a
random token. It lives for ``lease_s``, and that daemon renews it three times as often, so a daemon
that dies frees it. It is taken when a worker is free, not before: a job that waits in one daemon's
queue keeps no other daemon from compiling. The others look until the artifact is stored, for
``max_wait_s`` at most in all waits of one call together; then they compile alone. Who can write to
Redis can delay a call within that bound, and no more.

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
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from wasmkilnd.errors import Reason, TierUnavailable, WasmkilnError
from wasmkilnd.model import CacheKey
from wasmkilnd.redis.records import name_of, opened
from wasmkilnd.redis.servers import RedisLink
from wasmkilnd.telemetry import tracing
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.waits.budgets import WaitBudget
from wasmkilnd.waits.flights import Background

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
_NOT_TRIED = (
    *(Reason.COMPILE_QUEUE_FULL, Reason.WORKER_UNAVAILABLE, Reason.SERVER_DRAINING),
    Reason.JOB_ENDED,
)

# KEYS: the lease; ARGV: the token, and what to store for how long, or nothing. A holder that lost
# its lease leaves the next one alone.
_REPLACE = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('del', KEYS[1]) end
redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""


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
        lease, module = name_of(f"{self.prefix}3:lease:", key), key.module_sha256
        artifact = f"{self.prefix}3:compiled:{{{module}}}:{key.engine_id}:{key.fingerprint}"
        # Before the looks: a holder stores the artifact before it releases the lease.
        take = ("SET", lease, token, "NX", "PX", int(self.lease_s * 1000) + 1)
        looks = ("EXISTS", artifact.encode()), ("GETRANGE", lease, 0, 31), ("TTL", lease)
        try:
            asking = opened(self.link).run(*((take, *looks) if token else looks))
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
        lease, ttl_ms = name_of(f"{self.prefix}3:lease:", key), int(ttl_s * 1000) + 1
        command = ("EVAL", _REPLACE, 1, lease, token, value, ttl_ms)
        try:
            [replaced] = await opened(self.link).run(command)
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
