"""A tier that goes through an outage, and what its calls may do meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Module

from tests.contract.redis_access import redis_access
from tests.doubles.no_sealer import NoSealer
from tests.doubles.notes import Notes
from tests.servers.deployments import NO_ACCESS, Access
from tests.servers.redis_server import TIMEOUT_S

TIMEOUT_OF_CALLS_S = 2.0
# Timing out is all that a call may do; the rest is for a machine that is busy.
LONGEST_CALL_S = TIMEOUT_OF_CALLS_S + 3.0


@contextlib.asynccontextmanager
async def tier_at(url: str, access: Access = NO_ACCESS) -> AsyncIterator[RedisTier]:
    """Open a tier that is quick to come back."""
    timeout_s = TIMEOUT_OF_CALLS_S
    server = connect(url, redis_access(access), connect_timeout_s=timeout_s, timeout_s=timeout_s)
    tier = RedisTier(
        server, NoSealer(), Notes(), timeout_s=timeout_s, first_wait_s=0.1, longest_wait_s=0.5
    )
    try:
        yield tier
    finally:
        await tier.close()


async def attempt(work: Callable[[], Awaitable[Any]]) -> Any:
    """Return what ``work`` answers, or its TierUnavailable; it must not take long."""
    start = time.monotonic()
    try:
        return await work()
    except TierUnavailable as failure:
        return failure
    finally:
        assert time.monotonic() - start < LONGEST_CALL_S


async def stored_again(tier: RedisTier, one: Module) -> list[TierUnavailable]:
    """Write and read ``one`` until both succeed; return the failures on the way."""
    failures = []
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        put = await attempt(lambda: tier.put_module(one))
        got = await attempt(lambda: tier.get_module(one.sha256))
        failures += [each for each in (put, got) if isinstance(each, TierUnavailable)]
        if put is None and got == one:
            return failures
        assert time.monotonic() < deadline, failures[-1:]
        await asyncio.sleep(0.05)
