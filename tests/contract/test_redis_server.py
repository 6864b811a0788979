"""One suite for every kind of Redis: commands and answers are the same behind each URL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ResponseError
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.server import RedisServer

from tests.contract.redis_access import redis_access
from tests.servers.deployments import KINDS_OF_REDIS, Deployment

pytestmark = pytest.mark.parametrize("deployment", KINDS_OF_REDIS, indirect=True, scope="session")

EVERY_BYTE = bytes(range(256)) * 2000
# In a cluster they lie on all three primaries.
KEYS = [b"wasm:key:{%d}" % number for number in range(12)]


@pytest.fixture
async def server(deployment: Deployment) -> AsyncIterator[RedisServer]:
    opened = connect(
        deployment.url, redis_access(deployment.access), connect_timeout_s=5, timeout_s=5
    )
    await opened.run([("UNLINK", key) for key in KEYS])
    yield opened
    await opened.close()


@pytest.mark.parametrize(
    "value", [b"", b"OK", b"text \xe2\x82\xac", b"\0", b"\xff", EVERY_BYTE], ids=len
)
async def test_a_value_comes_back_byte_for_byte(server: RedisServer, value: bytes) -> None:
    [stored] = await server.run([("SET", KEYS[0], value, "EX", 60)])
    assert stored in (True, b"OK")
    assert await server.run([("GET", KEYS[0])]) == [value]
    [ttl] = await server.run([("TTL", KEYS[0])])
    assert 50 < ttl <= 60


async def test_answers_come_in_the_order_of_the_commands(server: RedisServer) -> None:
    for number, key in enumerate(KEYS):
        await server.run([("SET", key, b"%d\xff" % number, "EX", 60)])
    told = await server.run([("GET", key) for key in KEYS])
    assert told == [b"%d\xff" % number for number in range(len(KEYS))]


async def test_commands_on_one_key_are_executed_in_order(server: RedisServer) -> None:
    one, two = KEYS[:2]
    told = await server.run(
        [
            ("SET", one, b"a\xff", "EX", 60),
            ("EXISTS", two),
            ("GET", one),
            ("SET", one, b"text", "EX", 60),
            ("GET", one),
            ("SET", one, b"\xff\xfe", "PX", 60_000),
            ("STRLEN", one),
            ("UNLINK", one),
            ("GET", one),
        ]
    )
    assert told[1:3] == [0, b"a\xff"]
    assert told[4] == b"text"
    assert told[6:] == [2, 1, None]


@pytest.mark.parametrize("value", [b"text", b"\xff"])
async def test_only_the_first_of_two_that_want_to_be_the_first_is(
    server: RedisServer, value: bytes
) -> None:
    first = ("SET", KEYS[0], value, "EX", 60, "NX")
    assert (await server.run([first]))[0] in (True, b"OK")
    assert await server.run([first, ("EXPIRE", KEYS[0], 60)]) == [None, 1]


async def test_scripts(server: RedisServer) -> None:
    script = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end"
    await server.run([("SET", KEYS[3], b"token", "PX", 60_000, "NX")])
    assert await server.run([("EVAL", script, 1, KEYS[3], b"other")]) == [None]
    assert await server.run([("EVAL", script, 1, KEYS[3], b"token")]) == [1]
    assert await server.run([("EXISTS", KEYS[3])]) == [0]


async def test_parts_of_values(server: RedisServer) -> None:
    await server.run([("SET", KEYS[0], EVERY_BYTE, "EX", 60)])
    told = await server.run([("GETRANGE", KEYS[0], 250, 260), ("STRLEN", KEYS[0])])
    assert told == [EVERY_BYTE[250:261], len(EVERY_BYTE)]


async def test_the_servers_no_is_raised_and_spoils_nothing(server: RedisServer) -> None:
    for _ in range(3):
        with pytest.raises(ResponseError, match="integer"):
            await server.run([("EXPIRE", KEYS[0], "soon"), ("GET", KEYS[0]), ("GET", KEYS[1])])
        assert await server.run([("GET", KEYS[0])]) == [None]


async def test_scan_finds_each_key_that_matches(server: RedisServer) -> None:
    names = {b"wasm:scan:%d:x" % number for number in range(2500)}
    for start in range(0, 2500, 500):
        some = sorted(names)[start : start + 500]
        await server.run([("SET", name, b"1", "EX", 60) for name in some])
    found = {key async for page in server.scan(b"wasm:scan:*:x") for key in page}
    assert found == names
    # Each round is a page, an empty one too: it has its own time.
    pages = [page async for page in server.scan(b"wasm:nothing:*")]
    assert len(pages) > 1
    assert not any(pages)
    usage = await server.usage()
    assert usage.entries >= 2500
    assert usage.bytes > 0
    await server.run([("UNLINK", name) for name in names])


async def test_a_probe_succeeds_and_closing_twice_does_no_harm(server: RedisServer) -> None:
    await server.probe()
    assert await server.run([("EXISTS", KEYS[0])]) == [0]
    await server.close()
    await server.close()
