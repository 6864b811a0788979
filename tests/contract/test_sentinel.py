"""Primaries that die or are demoted while a tier uses them, and their successors."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs
from wasmkilnd.errors import TierUnavailable

from tests.contract.outage import attempt, stored_again, tier_at
from tests.contract.values import module
from tests.servers.deployments import Access
from tests.servers.redis_server import binary_of, redis_server, wait_until
from tests.servers.sentinels import Sentinels, sentinels


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with sentinels(binary_of("valkey"), tmp_path_factory.mktemp("sentinel")) as running:
        yield running


def access_of(running: Sentinels) -> Access:
    """Return what it takes to be let in by the Sentinels."""
    return Access(sentinel_user=running.sentinel_user, sentinel_password=running.sentinel_password)


async def test_who_is_not_let_in_by_the_sentinels_is_told_so(running: Sentinels) -> None:
    async with tier_at(running.url, Access(sentinel_password="wrong")) as tier:
        assert not await tier.start()
        assert tier.breaker.detail == "the Sentinels refuse the user or password"
    access = access_of(running)
    async with tier_at(f"{running.url}-other", access) as tier:
        assert not await tier.start()
        assert tier.breaker.detail == "the Sentinels know no primary of that name"


async def test_a_sentinel_that_hangs_holds_nobody_up(running: Sentinels) -> None:
    access = access_of(running)
    hung = running.sentinels[0].process
    hung.send_signal(signal.SIGSTOP)
    try:
        async with tier_at(running.url, access) as tier:
            assert await tier.start()
            assert await attempt(lambda: tier.put_module(module(3))) is None
    finally:
        hung.send_signal(signal.SIGCONT)


async def test_a_demoted_primary_is_left_for_the_new_one(running: Sentinels) -> None:
    access = access_of(running)
    await asyncio.to_thread(running.wait_until_ready)
    async with tier_at(running.url, access) as tier:
        await tier.put_module(module(1))
        old = running.primary_port
        with running.sentinel() as client:
            client.execute_command("SENTINEL", "FAILOVER", "main")
        await asyncio.to_thread(wait_until, lambda: running.primary_port != old, "it stayed")
        await stored_again(tier, module(2))
        assert await tier.get_module(module(1).sha256) == module(1)  # It was replicated.
        assert tier.breaker.up


async def test_a_killed_primary_is_replaced_without_a_restart(tmp_path: Path) -> None:
    with sentinels(binary_of("valkey"), tmp_path) as running:
        await killed(running)


async def killed(running: Sentinels) -> None:
    """Kill the primary under a tier that uses it."""
    access = access_of(running)
    await asyncio.to_thread(running.wait_until_ready)
    with capture_logs() as logs:
        async with tier_at(running.url, access) as tier:
            await tier.put_module(module(1))
            old = running.kill_primary()
            failures = await stored_again(tier, module(2))
            assert failures
            assert await tier.get_module(module(1).sha256) == module(1)
    await asyncio.to_thread(running.wait_until_replaced, old)
    events = [log["event"] for log in logs]
    assert events[0] == "tier is down"
    assert events[-1] == "tier is up again"
    assert len(events) < 10  # Told when it happens, not for each call.
    assert running.sentinel_password not in f"{logs}{failures}"


async def test_an_address_that_stands_for_another_server_is_asked_anew(tmp_path: Path) -> None:
    """As a name or a virtual address does after a failover, while the old primary lives on."""
    with (
        redis_server(binary_of("valkey"), tmp_path / "old") as old,
        redis_server(binary_of("valkey"), tmp_path / "new") as new,
    ):
        address = tmp_path / "address.sock"
        address.symlink_to(old.url.removeprefix("unix://"))
        async with tier_at(f"unix://{address}") as tier:
            await tier.put_module(module(1))
            with redis.Redis.from_url(old.url) as client:
                client.replicaof("127.0.0.1", 1)
            address.unlink()
            address.symlink_to(new.url.removeprefix("unix://"))
            with pytest.raises(TierUnavailable, match=r"read.?only"):
                await tier.put_module(module(2))
            assert tier.breaker.up  # Reads go on.
            assert tier.write_refusal
            await tier.put_module(module(2))
            assert not tier.write_refusal
            with redis.Redis.from_url(new.url) as client:
                assert client.dbsize() == 1
