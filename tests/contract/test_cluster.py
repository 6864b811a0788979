"""A cluster whose nodes die, hang and trade slots while a tier uses it.

Slots that have no node leave those of the others served.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial

import pytest
from structlog.testing import capture_logs
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.errors import PartUnavailable, TierUnavailable
from wasmkilnd.model import Module

from tests.contract.outage import TIMEOUT_OF_CALLS_S, attempt, stored_again, tier_at
from tests.contract.values import module
from tests.servers.cluster import Cluster, cluster
from tests.servers.redis_server import TIMEOUT_S, binary_of


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    partly = ["cluster-require-full-coverage no"]
    with cluster(binary_of("valkey"), tmp_path_factory.mktemp("cluster"), partly) as running:
        yield running


@pytest.fixture
async def tier(running: Cluster) -> AsyncIterator[RedisTier]:
    async with tier_at(running.url) as tier:
        assert await tier.start()
        yield tier


async def test_keys_are_followed_to_the_node_that_they_move_to(
    running: Cluster, tier: RedisTier
) -> None:
    mine, other = key_of(module(1)), module(1)
    await tier.put_module(other)
    with running.moving(mine) as move_keys:
        # The key is still at its old node, then on its way, then at its new one.
        assert await tier.get_module(other.sha256) == other
        move_keys()
        assert await tier.get_module(other.sha256) == other
        await tier.put_module(other)
    assert await tier.get_module(other.sha256) == other
    assert tier.breaker.up


async def test_a_hung_primary_costs_its_own_keys_one_time_out(
    running: Cluster, tier: RedisTier
) -> None:
    mine, others = await stored_on_all_nodes(running, tier)
    port = running.owner_of(key_of(mine))
    hung = running.nodes[port].process
    hung.send_signal(signal.SIGSTOP)
    try:
        assert isinstance(await attempt(lambda: tier.get_module(mine.sha256)), PartUnavailable)
        with contextlib.suppress(PartUnavailable):  # It is back already, or refused at once.
            await asyncio.wait_for(tier.get_module(mine.sha256), TIMEOUT_OF_CALLS_S / 2)
        await served(tier, others)
        await asyncio.to_thread(running.wait_until_replaced, port)
        await stored_again(tier, mine)
        await served(tier, others)
    finally:
        hung.send_signal(signal.SIGCONT)


async def test_a_killed_primary_leaves_the_other_slots_served(
    running: Cluster, tier: RedisTier
) -> None:
    await asyncio.to_thread(running.wait_until_whole)
    mine, others = await stored_on_all_nodes(running, tier)
    port = running.owner_of(key_of(mine))
    with capture_logs() as logs:
        running.kill(port)
        failure = await attempt(lambda: tier.get_module(mine.sha256))
        assert isinstance(failure, PartUnavailable)
        assert tier.usage().entries > 0
        deadline = time.monotonic() + TIMEOUT_S
        while isinstance(await attempt(lambda: tier.put_module(mine)), TierUnavailable):
            await served(tier, others)
            assert tier.breaker.up
            assert not tier.write_refusal
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert await tier.get_module(mine.sha256) == mine
    told = [(log["event"], log.get("node")) for log in logs]
    node = f"127.0.0.1:{port}"
    assert told == [("cluster node is down", node), ("cluster node was replaced", node)]


async def test_a_shard_that_is_gone_for_good_takes_nothing_else_with_it(
    running: Cluster, tier: RedisTier
) -> None:
    mine, others = await stored_on_all_nodes(running, tier)
    for port in running.shard_of(key_of(mine)):
        running.kill(port)
    await attempt(lambda: tier.get_module(mine.sha256))
    for _ in range(20):
        with pytest.raises(PartUnavailable):
            await tier.get_module(mine.sha256)
        await served(tier, others)
        await asyncio.sleep(0.1)
    assert tier.breaker.up


async def test_a_cluster_without_a_node_is_down(running: Cluster, tier: RedisTier) -> None:
    for port in running.nodes:
        running.kill(port)
    for tag in range(20):
        assert isinstance(
            await attempt(partial(tier.get_module, module(tag).sha256)), TierUnavailable
        )
    assert tier.breaker.open


def key_of(one: Module) -> bytes:
    """Return under which key a module is stored, as far as its slot goes."""
    return b"{%b}" % one.sha256.encode()


async def stored_on_all_nodes(running: Cluster, tier: RedisTier) -> tuple[Module, list[Module]]:
    """Store a module on each primary; return one, and those of the other nodes."""
    by_port: dict[int, Module] = {}
    for tag in range(50):
        by_port.setdefault(running.owner_of(key_of(module(tag))), module(tag))
    assert len(by_port) == 3
    for one in by_port.values():
        await tier.put_module(one)
    mine, *others = by_port.values()
    return mine, others


async def served(tier: RedisTier, modules: Sequence[Module]) -> None:
    """Assert that each of ``modules`` is found."""
    for one in modules:
        assert await tier.get_module(one.sha256) == one
