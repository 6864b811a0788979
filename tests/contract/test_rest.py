"""Upstash's REST protocol: what another client writes is ours to read, and how it fails."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.exceptions import DataError
from structlog.testing import capture_logs
from upstash_redis.asyncio import Redis as UpstashRedis
from upstash_redis.errors import UpstashError
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.server import RedisServer
from wasmkilnd.errors import TierUnavailable

from tests.contract.outage import tier_at
from tests.contract.redis_access import redis_access
from tests.contract.values import module
from tests.servers.deployments import KINDS_OF_REDIS, Deployment
from tests.servers.rest_service import RestService

BINARY = bytes(range(256)) * 500


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with KINDS_OF_REDIS["rest"](tmp_path_factory.mktemp("rest")) as running:
        yield running


@pytest.fixture
def service(rest: Deployment) -> Iterator[RestService]:
    service = rest.parts
    assert isinstance(service, RestService)
    yield service
    service.refuse_with = 0
    service.requests.clear()


@pytest.fixture
async def server(rest: Deployment) -> AsyncIterator[RedisServer]:
    opened = connect(rest.url, redis_access(rest.access))
    yield opened
    await opened.close()


@pytest.fixture
async def upstashs(
    rest: Deployment, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[UpstashRedis]:
    """The client that Upstash publishes, which trusts our authority here."""
    client = httpx.AsyncClient(verify=ssl.create_default_context(cafile=rest.access.ca_file))
    opened = UpstashRedis(rest.url, rest.access.password, rest_retries=0)
    await opened._http._client.aclose()
    monkeypatch.setattr(opened._http, "_client", client)
    yield opened
    await opened.close()


async def test_upstashs_own_client_finds_what_it_expects(upstashs: UpstashRedis) -> None:
    assert await upstashs.set("text", "größe", ex=60)
    assert await upstashs.get("text") == "größe"
    assert not await upstashs.set("text", "other", nx=True)
    pipeline = upstashs.pipeline()
    pipeline.incr("count")
    pipeline.ttl("text")
    pipeline.get("nothing")
    answers: list[Any] = await pipeline.exec()
    assert answers[0] == 1
    assert 50 < answers[1] <= 60
    assert answers[2] is None
    assert await upstashs.eval("return {1, ARGV[1]}", args=["x"]) == [1, "x"]
    with pytest.raises(UpstashError, match="WRONGTYPE"):
        await upstashs.lpush("text", "x")
    assert sorted((await upstashs.scan(0))[1]) == ["count", "text"]
    await upstashs.delete("text", "count")


async def test_text_is_exchanged_with_upstashs_client(
    upstashs: UpstashRedis, server: RedisServer
) -> None:
    await upstashs.set("theirs", "größe")
    await server.run([("SET", b"ours", "größe".encode(), "EX", 60)])
    assert await server.run([("GET", b"theirs")]) == ["größe".encode()]
    assert await upstashs.get("ours") == "größe"
    await server.run([("UNLINK", b"ours"), ("UNLINK", b"theirs")])


async def test_values_are_the_same_over_both_protocols(
    rest: Deployment, server: RedisServer, service: RestService
) -> None:
    [raw] = rest.raw
    key = b"wasm:{a/b c?&%}\xc3\xa9"
    with raw() as client:
        await server.run([("SET", key, BINARY, "EX", 60)])
        assert client.get(key) == BINARY
        assert 50 < client.ttl(key) <= 60
        client.set(key, BINARY[::-1])
        assert await server.run([("GET", key)]) == [BINARY[::-1]]
        client.delete(key)
    assert any(path.endswith("?EX=60") for path in service.requests)


async def test_commands_of_text_go_in_one_request(
    server: RedisServer, service: RestService
) -> None:
    await server.run([("GET", b"a"), ("EXISTS", b"b"), ("TTL", "c"), ("STRLEN", b"d")])
    assert service.requests == ["/pipeline"]


async def test_two_binary_arguments_are_refused_here(server: RedisServer) -> None:
    with pytest.raises(DataError, match="two binary arguments"):
        await server.run([("SET", b"\xff", b"\xff")])


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (401, "Redis refuses the user or password"),
        (403, "Redis refuses the user or password"),
        (302, "Redis over REST fails with HTTP status 302"),
        (404, "Redis over REST fails with HTTP status 404"),
        (429, "Redis over REST refuses: too many requests (HTTP status 429)"),
        (503, "Redis over REST fails with HTTP status 503"),
        (200, "the server does not speak the Redis protocol (InvalidResponse)"),
        (400, "the server does not speak the Redis protocol (InvalidResponse)"),
    ],
)
async def test_a_service_that_serves_nobody_is_left_alone_until_it_does(
    rest: Deployment, service: RestService, status: int, detail: str
) -> None:
    with capture_logs() as logs:
        async with tier_at(rest.url, rest.access) as tier:
            service.refuse_with = status
            with pytest.raises(TierUnavailable):
                await tier.get_module(module(1).sha256)
            assert tier.breaker.open
            assert tier.breaker.detail == detail
            service.requests.clear()
            for _ in range(20):
                with pytest.raises(TierUnavailable):
                    await tier.get_module(module(1).sha256)
            assert service.requests == []
            service.refuse_with = 0
            await asyncio.wait_for(tier.breaker.wait_closed(), 60)
            await tier.put_module(module(1))
            assert await tier.get_module(module(1).sha256) == module(1)
    assert rest.access.password not in f"{logs}"


async def test_a_wrong_token_is_told_without_it(rest: Deployment) -> None:
    async with tier_at(rest.url, replace(rest.access, password="wrong-token")) as tier:
        assert not await tier.start()
        assert tier.breaker.detail == "Redis refuses the user or password"


async def test_a_new_token_in_its_file_is_taken(rest: Deployment, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("an-old-one")
    access = replace(rest.access, password="", password_file=str(file))
    async with tier_at(rest.url, access) as tier:
        assert not await tier.start()
        file.write_text(f"{rest.access.password}\n")
        await asyncio.wait_for(tier.breaker.wait_closed(), 60)
        assert await tier.start()


async def test_a_service_that_is_gone_or_hangs_is_told(rest: Deployment) -> None:
    async with tier_at("https://127.0.0.1:1", rest.access) as tier:
        assert not await tier.start()
        assert "cannot reach Redis" in tier.breaker.detail

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    hung = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with hung:
        port = hung.sockets[0].getsockname()[1]
        async with tier_at(f"http://127.0.0.1:{port}", rest.access) as tier:
            assert not await tier.start()
            assert tier.breaker.detail == "Redis does not answer in time"


async def test_what_the_plan_does_not_allow_any_more_is_an_outage(rest: Deployment) -> None:
    """The server refuses everything until the month is over: no reason to go on asking."""
    [raw] = rest.raw
    with raw() as client:
        client.set("wasm:x", "1")
        refusal = "return redis.error_reply('ERR max requests limit exceeded. Limit: 500000')"
        async with tier_at(rest.url, rest.access) as tier:
            with pytest.raises(TierUnavailable, match="the plan are used up"):
                await tier.link._each(bool, [("EVAL", refusal, 1, "wasm:x")])
            assert tier.breaker.open
        client.delete("wasm:x")
