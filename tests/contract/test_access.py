"""Who is let in: certificates, users, and what they have to be allowed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs
from wasmkilnd.cache.fleet.lease import TOKEN_BYTES
from wasmkilnd.cache.fleet.lease_commands import LeaseCommands
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.server import SingleServer
from wasmkilnd.errors import TierUnavailable

from tests.contract.outage import tier_at
from tests.contract.redis_access import redis_access
from tests.contract.values import module
from tests.servers.deployments import KINDS_OF_REDIS, Deployment
from tests.servers.redis_server import KINDS, binary_of, free_ports, redis_server


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with KINDS_OF_REDIS["rediss"](tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.fixture
async def link(deployment: Deployment) -> AsyncIterator[GuardedRedis]:
    opened = GuardedRedis(
        connect(deployment.url, redis_access(deployment.access), timeout_s=5), timeout_s=5
    )
    yield opened
    await opened.close()


def denials(deployment: Deployment) -> list[object]:
    """Return what the servers refused to anybody so far."""
    found: list[object] = []
    for raw in deployment.raw:
        with raw() as client:
            try:
                found += client.acl_log()
            except redis.ConnectionError:
                continue  # Killed.
    return found


@pytest.mark.parametrize("deployment", KINDS_OF_REDIS, indirect=True, scope="session")
async def test_the_documented_commands_are_enough_for_all_that_is_asked(
    deployment: Deployment, link: GuardedRedis
) -> None:
    one, two = b"wasm:{a}1", b"wasm:{a}2"
    await link.set(one, b"\xffvalue", 60)
    assert not await link.add(one, b"\xffother", 60)
    assert await link.exists([one, two]) == [True, False]
    assert await link.lengths([one]) == [6]
    assert await link.beginnings([one, two], [3, 3]) == [b"\xffva", b""]
    [(value, ttl_s), nothing] = await link.beginnings_with_ttls([one, two], 9)
    assert (value, 50 < ttl_s <= 60, nothing) == (b"\xffvalue", True, (b"", -2))
    await link.prolong([one], 100)
    assert (await link.ages([one, two]))[1] == -2
    leases = LeaseCommands(link)
    mine, other = b"m" * TOKEN_BYTES, b"o" * TOKEN_BYTES
    assert await leases.take(two, mine + b"1", 60_000, one) == (True, mine + b"1", True)
    assert await leases.take(two, other, 60_000, one) == (False, mine + b"1", True)
    assert await leases.look(two, one) == (mine + b"1", True)
    assert not await leases.replace(two, other, other, 60_000)
    assert await leases.replace(two, mine, mine + b"2", 60_000)
    assert await link.beginnings([two], [100]) == [mine + b"2"]
    await leases.release(two, other)
    assert await link.exists([two]) == [True]
    await leases.release(two, mine)
    assert await link.delete([one, two]) == [True, False]
    assert [key async for page in link.scan(b"wasm:{a}*") for key in page] == []
    assert (await link.usage()).bytes > 0
    await link._probe()
    assert denials(deployment) == []


async def test_a_certificate_of_an_unknown_authority_is_refused(tls: Deployment) -> None:
    async with tier_at(tls.url) as tier:
        assert not await tier.start()
        assert tier.breaker.detail.startswith("the certificate of Redis is not trusted: ")


async def test_a_certificate_of_another_host_is_refused(tls: Deployment) -> None:
    async with tier_at(tls.url.replace("127.0.0.1", "localhost"), tls.access) as tier:
        assert not await tier.start()
        assert tier.breaker.detail.startswith("the certificate of Redis is not trusted: ")
        assert "ostname mismatch" in tier.breaker.detail


async def test_certificates_are_not_looked_at_where_the_url_says_so(tls: Deployment) -> None:
    async with tier_at(f"{tls.url}?ssl_cert_reqs=none") as tier:
        assert await tier.start()


async def test_a_connection_to_a_server_of_tls_that_hangs_is_closed(tmp_path: Path) -> None:
    with KINDS_OF_REDIS["rediss"](tmp_path) as running:
        server = connect(
            running.url, redis_access(running.access), connect_timeout_s=5, timeout_s=5
        )
        assert isinstance(server, SingleServer)
        await server.probe()
        [connection] = server._client.connection_pool._available_connections
        connection.socket_connect_timeout = 0.2
        assert connection._writer
        transport = connection._writer.get_extra_info("socket")
        with running.raw[0]() as other:
            pid = other.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            await server.close()
            await asyncio.sleep(0)
            assert transport.fileno() == -1
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_plain_text_to_a_server_of_tls_fails_with_a_sentence(tls: Deployment) -> None:
    async with tier_at(tls.url.replace("rediss", "redis")) as tier:
        assert not await tier.start()
        assert "Redis" in tier.breaker.detail


@pytest.mark.parametrize("deployment", KINDS_OF_REDIS, indirect=True, scope="session")
async def test_no_secret_is_told_when_one_is_wrong(deployment: Deployment) -> None:
    if deployment.stranger is None:
        return  # Nobody is asked for one.
    with capture_logs() as logs:
        async with tier_at(*deployment.stranger) as tier:
            with pytest.raises(TierUnavailable) as raised:
                await tier.get_module(module(1).sha256)
            told = f"{raised.value!r} {raised.value.__cause__!r} {logs} {tier.breaker.detail}"
            assert "the user or password" in told
            assert "wrong-secret" not in told
            assert not tier.breaker.up


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_quotes_the_password_back_is_not_quoted(
    kind: str, tmp_path: Path
) -> None:
    [port] = free_ports(1)
    renamed = ['rename-command AUTH ""']
    with redis_server(binary_of(kind), tmp_path, port=port, config=renamed), capture_logs() as logs:
        async with tier_at(f"redis://app:hunter2@127.0.0.1:{port}") as tier:
            assert not await tier.start()
            with pytest.raises(TierUnavailable) as raised:
                await tier.put_module(module(1))
            told = f"{raised.value!r} {logs} {tier.breaker.detail} {tier.write_refusal}"
    assert "the user or password" in told
    assert "hunter2" not in told
