"""The way to Redis: the same commands and replies behind each URL, and what outages cost.

Everything goes through RedisLink, against real servers and some that hang or talk nonsense.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from structlog.testing import capture_logs
from upstash_redis.asyncio import Redis as UpstashRedis
from upstash_redis.errors import UpstashError
from wasmkilnd.errors import PartUnavailable, TierUnavailable
from wasmkilnd.model import TierUsage
from wasmkilnd.redis.servers import (
    WRITE_TIMEOUT_S,
    Command,
    RedisAccess,
    RedisLink,
    RedisServer,
    connect,
)

from tests.contract.redis_stores import open_link
from tests.servers.certificates import certificates
from tests.servers.cluster import Cluster, cluster
from tests.servers.deployments import (
    KINDS_OF_REDIS,
    NO_ACCESS,
    Access,
    Deployment,
)
from tests.servers.redis_server import (
    TIMEOUT_S,
    binary_of,
    redis_server,
)
from tests.servers.rest_service import RestService
from tests.servers.sentinels import Sentinels, sentinels

EVERY_BYTE = bytes(range(256)) * 2000
# In a cluster they lie on all three primaries.
KEYS = [b"wasm:key:{%d}" % number for number in range(12)]
CALL_S = 2.0
# Timing out is all that a call may do; the rest is for a machine that is busy.
LONGEST_CALL_S = CALL_S + 3.0


@contextlib.asynccontextmanager
async def link_to(
    url: str, access: Access = NO_ACCESS, *, timeout_s: float = CALL_S, retry_max_s: float = 0.3
) -> AsyncIterator[RedisLink]:
    link = open_link(url, access, timeout_s=timeout_s, retry_max_s=retry_max_s)
    try:
        yield link
    finally:
        await link.close()


async def attempt(link: RedisLink, *commands: Command) -> Any:
    """Return the replies, or the TierUnavailable; it must not take long."""
    start = time.monotonic()
    try:
        return await link.run(*commands)
    except TierUnavailable as failure:
        return failure
    finally:
        assert time.monotonic() - start < LONGEST_CALL_S


async def closed_again(link: RedisLink) -> None:
    await asyncio.wait_for(link.ready(), TIMEOUT_S)


# ---- Every kind of Redis


@pytest.mark.parametrize("deployment", KINDS_OF_REDIS, indirect=True, scope="session")
async def test_commands_have_the_same_replies_behind_every_url(deployment: Deployment) -> None:
    async with link_to(deployment.url, deployment.access, timeout_s=5) as link:
        await link.run(*(("UNLINK", key) for key in KEYS))
        one, two = KEYS[:2]
        for value in (b"", b"OK", b"text \xe2\x82\xac", b"\0", b"\xff", EVERY_BYTE):
            put: Command = ("SET", one, value, "EX", 60)
            assert await link.run(put, timeout_s=WRITE_TIMEOUT_S) == [b"OK"]
            told = await link.run(("GET", one), ("STRLEN", one), ("GETRANGE", one, 250, 260))
            assert told == [value, len(value), value[250:261]]
        [ttl] = await link.run(("TTL", one))
        assert 50 < ttl <= 60
        told = await link.run(
            ("SET", one, b"a\xff", "EX", 60),
            ("EXISTS", two),
            ("GET", one),
            ("SET", one, b"text", "EX", 60),
            ("GET", one),
            ("SET", one, b"\xff\xfe", "PX", 60_000),
            ("STRLEN", one),
            ("UNLINK", one),
            ("GET", one),
        )
        assert told == [b"OK", 0, b"a\xff", b"OK", b"text", b"OK", 2, 1, None]
        for first in (b"text", b"\xff"):
            alone: Command = ("SET", one, first, "EX", 60, "NX")
            assert await link.run(alone) == [b"OK"]
            assert await link.run(alone, ("EXPIRE", one, 60), ("UNLINK", one)) == [None, 1, 1]
        for _ in range(3):  # A refusal spoils nothing.
            with pytest.raises(TierUnavailable, match="Redis refuses"):
                await link.run(("EXPIRE", one, "soon"), ("GET", one), ("GET", two))
            assert await link.run(("GET", one)) == [None]
        assert link.up
        for number, key in enumerate(KEYS):
            await link.run(("SET", key, b"%d\xff" % number, "EX", 60))
        told = await link.run(*(("GET", key) for key in KEYS))
        assert told == [b"%d\xff" % number for number in range(len(KEYS))]
        assert await link.run() == []
        get = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end"
        assert await link.run(("EVAL", get, 1, KEYS[3], b"other")) == [None]
        assert await link.run(("EVAL", get, 1, KEYS[3], b"3\xff"), ("EXISTS", KEYS[3])) == [1, 0]


@pytest.mark.parametrize("deployment", KINDS_OF_REDIS, indirect=True, scope="session")
async def test_scan_finds_each_key_that_matches(deployment: Deployment) -> None:
    async with link_to(deployment.url, deployment.access, timeout_s=5) as link:
        # A server that replaces another takes over.
        link.replace(connect(deployment.url, RedisAccess(**asdict(deployment.access))))
        names = sorted(b"wasm:scan:%d:x" % number for number in range(2500))
        for start in range(0, 2500, 500):
            some = names[start : start + 500]
            await link.run(*(("SET", name, b"1", "EX", 60) for name in some))
        found = {key async for page in link.scan(b"wasm:scan:*:x") for key in page}
        assert found == {*names}
        # Each round is a page, an empty one too: it has its own time.
        pages = [page async for page in link.scan(b"wasm:nothing:*")]
        assert len(pages) > 1
        assert not any(pages)
        usage = await link.usage()
        assert usage.entries >= 2500
        assert usage.bytes > 0
        await link.run(*(("UNLINK", name) for name in names))
        await link.close()


# ---- The breaker


class Scripted(RedisServer):
    """A server that does what the test says, with a clock for the waits between questions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failure: Exception | None = None
        self.asked = self.probed = 0
        self.hangs = False
        self.waited: list[float] = []
        self.turn = asyncio.Semaphore(0)
        self.sleep = asyncio.sleep
        monkeypatch.setattr(asyncio, "sleep", self._wait)

    async def _wait(self, seconds: float) -> None:
        if seconds:
            self.waited.append(seconds)
            await self.turn.acquire()
        else:
            await self.sleep(0)

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure
        return [None for _ in commands]

    async def probe(self, timeout_s: float) -> None:
        self.probed += 1
        if self.failure:
            raise self.failure

    async def let_it_ask(self, times: int = 1) -> None:
        for _ in range(times):
            self.turn.release()
            for _ in range(8):
                await self.sleep(0)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    return Scripted(monkeypatch)


@pytest.fixture
async def guarded(scripted: Scripted) -> AsyncIterator[RedisLink]:
    link = RedisLink(scripted, timeout_s=0.5)
    yield link
    await link.close()


GET: Command = ("GET", b"key")


async def test_an_outage_opens_it_and_it_is_asked_again_waiting_longer_each_time(
    guarded: RedisLink, scripted: Scripted
) -> None:
    assert (guarded.up, guarded.is_down, guarded.why_down) == (False, False, "not asked yet")
    assert await guarded.run(GET) == [None]
    assert (guarded.up, guarded.is_down, guarded.why_down) == (True, False, "")
    scripted.failure = OSError(111, "Connection refused: secret")
    with capture_logs() as logs:
        for _ in range(10):
            with pytest.raises(TierUnavailable, match=r"^cannot reach Redis: the connection is re"):
                await guarded.run(GET)
        await scripted.let_it_ask(4)
        assert scripted.waited == [0.25, 0.5, 1.0, 2.0, 2.0]
        scripted.failure = None
        assert guarded.is_down
        assert guarded.why_down == "cannot reach Redis: the connection is refused"
        await scripted.let_it_ask()
    assert guarded.up
    await guarded.ready()
    assert (scripted.asked, scripted.probed) == (2, 5)
    assert await guarded.run(GET) == [None]
    assert [log["event"] for log in logs] == ["tier is down", "tier is up again"]
    assert "secret" not in str(logs)


async def test_one_that_flaps_is_asked_less_and_less(
    guarded: RedisLink, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> None:
        scripted.failure = OSError()
        with pytest.raises(TierUnavailable):
            await guarded.run(GET)

    for _ in range(3):
        await fails()
        scripted.failure = None
        await scripted.let_it_ask()
    assert scripted.waited == [0.25, 0.5, 1.0]
    later = time.monotonic() + 3  # Longer than the longest wait: that is another outage.
    monkeypatch.setattr(time, "monotonic", lambda: later)
    await fails()
    await scripted.sleep(0)
    assert scripted.waited == [0.25, 0.5, 1.0, 0.25]


class Slow(RedisServer):
    """A server of which nearly all is somebody else's: a scan takes many rounds."""

    def __init__(self) -> None:
        self.rounds = 0

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        if commands[0][0] == "GET":
            await asyncio.Event().wait()
        await asyncio.sleep(timeout_s / 20)
        self.rounds += 1
        if commands[0][0] == "SCAN":
            over = self.rounds % 40 == 0
            return [[b"0" if over else b"1", [b"the only one"] if over else []]]
        return [7, b"used_memory:8\r\n", None][: len(commands)]


async def test_a_scan_may_take_longer_than_one_answer() -> None:
    link = RedisLink(Slow(), timeout_s=0.2)
    assert [key async for page in link.scan(b"*") for key in page] == [b"the only one"]
    await link.close()


class Busy(RedisServer):
    """A server that answers each call in time, but so slowly that many calls wait for others."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(timeout_s * 0.7)
        self.now -= 1
        return [7]


async def test_calls_that_wait_for_others_of_this_daemon_open_nothing() -> None:
    server = Busy()
    link = RedisLink(server, timeout_s=1.0)
    told = await asyncio.gather(*(link.run(("EXISTS", b"key")) for _ in range(80)))
    assert told == [[7]] * 80
    assert link.up
    await link.close()
    assert server.most <= 32


@pytest.mark.parametrize("what", ["command", "scan", "usage"])
async def test_a_time_out_while_others_are_answered_opens_nothing(what: str) -> None:
    link = RedisLink(Slow(), timeout_s=0.5)

    async def ask() -> None:
        while True:
            if what == "usage":
                assert await link.usage() == TierUsage(entries=7, bytes=8)
            elif what == "command":
                assert await link.run(("EXISTS", b"key")) == [7]
            else:
                async for _ in link.scan(b"*"):
                    pass

    asking = asyncio.create_task(ask())
    with pytest.raises(TierUnavailable, match="does not answer in time"):
        await link.run(GET)
    assert not link.is_down
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    with pytest.raises(TierUnavailable):
        await link.run(GET)
    assert link.is_down
    await link.close()


# ---- One server that is killed, hangs, refuses or talks nonsense


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Run a server; return its host and port."""

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(each, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def speaking(answer: Callable[[bytes], Awaitable[bytes]]) -> AsyncIterator[str]:
    """Run a server that answers what it reads with what ``answer`` returns; return its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while read := await reader.read(1 << 20):
            greeted = b"+OK\r\n" * read.count(b"CLIENT")
            writer.write(greeted or await answer(read))

    async with listening(serve) as address:
        yield f"redis://{address}"


async def test_a_write_has_its_own_time_for_all_its_steps_together() -> None:
    """Longer than the link's time-out if the caller says so, and shorter too."""

    async def slowly(read: bytes) -> bytes:
        if b"SET" in read:
            await asyncio.sleep(0.6)
        return b"+OK\r\n"

    async with speaking(slowly) as url, link_to(url, timeout_s=0.2) as link:
        put: Command = ("SET", b"key", b"value", "EX", 60)
        assert await link.run(put, timeout_s=WRITE_TIMEOUT_S) == [b"OK"]
        with pytest.raises(TierUnavailable, match="does not answer in time"):
            await link.run(put)


async def test_a_write_whose_reply_is_lost_ends_when_the_server_is_asked_again() -> None:
    over = asyncio.Event()

    async def loses(read: bytes) -> bytes:
        if b"PING" in read:
            return b"+PONG\r\n"
        await over.wait()
        return b"$-1\r\n"

    async def write(link: RedisLink) -> None:
        with pytest.raises(TierUnavailable, match="cannot reach Redis"):
            await link.run(("SET", b"lost", b"x", "EX", 60), timeout_s=10 * WRITE_TIMEOUT_S)
        # So that its writer knows that it was no refusal.
        assert link.is_down

    async with speaking(loses) as url, link_to(url, timeout_s=0.5) as link:
        writing = asyncio.create_task(write(link))
        with pytest.raises(TierUnavailable, match="does not answer in time"):
            await link.run(GET)
        assert not writing.done()
        await asyncio.wait_for(writing, WRITE_TIMEOUT_S / 2)
        await closed_again(link)
        over.set()
        assert await link.run(GET) == [None]


NO_REPLIES = b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*1\r\n", b"$x\r\n"


@pytest.mark.parametrize("answer", [*NO_REPLIES, b":7\r\n", b"+\xff\r\n", b"*1\r\n:7\r\n"])
@pytest.mark.parametrize(
    "asked",
    [
        *(("GETRANGE", b"key", 0, 9), ("SET", b"key", b"value"), ("TTL", b"key"), ("SCAN", 0)),
        ("SRANDMEMBER", b"key", 9),
    ],
    ids=lambda c: c[0],
)
async def test_a_server_that_talks_something_else_is_down(answer: bytes, asked: Command) -> None:
    if answer == b"+\xff\r\n" and asked[0] == "GETRANGE":
        return  # A string is what GETRANGE returns.
    if answer == b":7\r\n" and asked[0] == "TTL":
        return  # A number is what TTL returns.
    if answer == b"*1\r\n:7\r\n" and asked[0] in ("SCAN", "SRANDMEMBER"):
        return  # So is a list for these, whatever is in it.
    if answer not in NO_REPLIES and asked[0] == "SET":
        return  # What the reply to a write says, its caller looks at.

    async def nonsense(read: bytes) -> bytes:
        return answer

    async with speaking(nonsense) as url, link_to(url, timeout_s=0.3) as link:
        with pytest.raises(TierUnavailable):
            await (anext(link.scan(b"*")) if asked[0] == "SCAN" else link.run(asked))
        assert link.is_down
        assert "\xff" not in link.why_down


async def test_a_user_who_may_little_is_enough(tmp_path: Path) -> None:
    with redis_server(binary_of("valkey"), tmp_path) as running:
        with redis.Redis.from_url(running.url) as raw:
            raw.execute_command("ACL", "SETUSER", "poor", "on", ">secret", "~*", "+set", "+get")
        url = running.url.replace("unix://", "unix://poor:secret@")
        async with link_to(url, retry_max_s=0.1) as link:
            assert await link.run(("SET", b"key", b"value"), GET) == [b"OK", b"value"]
            assert (await link.usage()).limit_bytes == 0  # Without DBSIZE, INFO and CLIENT.
            with pytest.raises(TierUnavailable, match=r"this user has no permission \(UNLINK\)"):
                await link.run(("UNLINK", b"key"))
            assert link.up
            running.process.send_signal(signal.SIGSTOP)
            await asyncio.gather(*(attempt(link, GET) for _ in range(2)))
            assert link.is_down
            running.process.send_signal(signal.SIGCONT)
            await closed_again(link)  # Without PING.


async def test_a_tls_server_that_hangs_is_left_for_good(tmp_path: Path) -> None:
    """Each connection is closed, though the server says no goodbye."""
    pems = certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pems.cert_file, pems.key_file)
    opened: set[asyncio.StreamWriter] = set()
    left = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.add(writer)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while await reader.read(65536):
                pass
        opened.discard(writer)
        left.set()
        writer.transport.abort()

    async with listening(hang, context) as address:
        access = Access(ca_file=str(pems.ca_file))
        async with link_to(f"rediss://{address}", access, timeout_s=0.5) as link:
            with pytest.raises(TierUnavailable, match="does not answer in time"):
                await link.run(GET)
        await asyncio.wait_for(left.wait(), TIMEOUT_S)
        wait = time.monotonic() + TIMEOUT_S
        while opened:
            assert time.monotonic() < wait, "a connection stayed open"
            await asyncio.sleep(0.02)


async def test_an_address_that_stands_for_another_server_is_asked_anew(tmp_path: Path) -> None:
    """As a name or a virtual address does after a failover, while the old primary lives on."""
    with (
        redis_server(binary_of("valkey"), tmp_path / "old") as old,
        redis_server(binary_of("valkey"), tmp_path / "new") as new,
    ):
        address = tmp_path / "address.sock"
        address.symlink_to(old.url.removeprefix("unix://"))
        async with link_to(f"unix://{address}") as link:
            await link.run(("SET", b"key", b"value"))
            with redis.Redis.from_url(old.url) as client:
                client.replicaof("127.0.0.1", 1)
            address.unlink()
            address.symlink_to(new.url.removeprefix("unix://"))
            with pytest.raises(TierUnavailable, match=r"read.?only"):
                await link.run(("SET", b"key", b"value"))
            assert link.up  # Reads go on.
            await link.run(("SET", b"key", b"value"))
            with redis.Redis.from_url(new.url) as client:
                assert client.dbsize() == 1


# ---- Sentinel


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with sentinels(binary_of("valkey"), tmp_path_factory.mktemp("sentinel")) as running:
        yield running


async def test_a_sentinel_that_refuses_is_told_and_one_that_hangs_holds_nobody_up(
    watched: Sentinels,
) -> None:
    async with link_to(watched.url_with("wrong")) as link:
        with pytest.raises(TierUnavailable, match=r"names a primary: .* the user or password$"):
            await link.run(GET)
    hung = watched.sentinels[0].process
    hung.send_signal(signal.SIGSTOP)
    try:
        async with link_to(watched.url) as link:
            assert await attempt(link, ("SET", b"key", b"value")) == [b"OK"]
    finally:
        hung.send_signal(signal.SIGCONT)


# ---- Cluster: slots that have no node leave those of the others served


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    partly = ["cluster-require-full-coverage no"]
    with cluster(binary_of("valkey"), tmp_path_factory.mktemp("cluster"), partly) as running:
        yield running


@pytest.fixture
async def spread(six: Cluster) -> AsyncIterator[RedisLink]:
    async with link_to(six.url) as link:
        yield link


async def stored_on_all_nodes(six: Cluster, link: RedisLink) -> tuple[bytes, list[bytes]]:
    """Store a key on each primary; return one, and those of the other nodes."""
    by_port: dict[int, bytes] = {}
    for tag in range(50):
        by_port.setdefault(six.owner_of(b"{key-%d}" % tag), b"{key-%d}" % tag)
    assert len(by_port) == 3
    for key in by_port.values():
        assert await link.run(("SET", key, key)) == [b"OK"]
    mine, *others = by_port.values()
    return mine, others


async def served(link: RedisLink, keys: Sequence[bytes]) -> None:
    for key in keys:
        assert await link.run(("GET", key)) == [key]


async def test_keys_are_followed_to_the_node_that_they_move_to(
    six: Cluster, spread: RedisLink
) -> None:
    key = b"{moving}"
    await spread.run(("SET", key, b"1"))
    # Several idle connections: what is asked for one key must stay on one of them.
    await asyncio.gather(*(spread.run(("GET", key)) for _ in range(8)))
    with six.moving(key) as move_keys:
        # The key is still at its old node, then on its way, then at its new one.
        assert await spread.run(("GET", key)) == [b"1"]
        move_keys()
        for _ in range(10):
            assert await spread.run(("GET", key)) == [b"1"]
        assert await spread.run(("SET", key, b"2"), ("GET", key)) == [b"OK", b"2"]
    assert await spread.run(("GET", key)) == [b"2"]
    assert spread.up


async def test_a_killed_primary_leaves_the_other_slots_served(
    six: Cluster, spread: RedisLink
) -> None:
    await asyncio.to_thread(six.wait_until_whole)
    mine, others = await stored_on_all_nodes(six, spread)
    port = six.owner_of(mine)
    with capture_logs() as logs:
        six.kill(port)
        assert isinstance(await attempt(spread, ("GET", mine)), PartUnavailable)
        with pytest.raises(PartUnavailable):
            async for _ in spread.scan(b"*"):
                pass
        assert (await spread.usage()).entries > 0
        deadline = time.monotonic() + TIMEOUT_S
        while isinstance(await attempt(spread, ("SET", mine, mine)), TierUnavailable):
            await served(spread, others)
            assert spread.up
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        await served(spread, [mine])
        assert {key async for page in spread.scan(b"{key-*") for key in page} >= {mine, *others}
    told = [(log["event"], log.get("node")) for log in logs]
    node = f"127.0.0.1:{port}"
    assert told == [("cluster node is down", node), ("cluster node was replaced", node)]
    async with link_to(six.url) as anew:  # Its URL names the dead one, too.
        await served(anew, [mine, *others])
    # Nor does a shard that is gone for good take anything else with it, but the last one.
    for gone in six.shard_of(mine):
        six.kill(gone)
    await attempt(spread, ("GET", mine))
    for _ in range(10):
        with pytest.raises(PartUnavailable):
            await spread.run(("GET", mine))
        await served(spread, others)
        await asyncio.sleep(0.1)
    assert spread.up
    for gone in six.nodes:
        six.kill(gone)
    for tag in range(20):
        assert isinstance(await attempt(spread, ("GET", b"%d" % tag)), TierUnavailable)
    assert spread.is_down
    async with link_to(six.url) as anew:
        assert "no primary of the Redis cluster answers" in str(await attempt(anew, GET))


# ---- Upstash over REST


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
    """So the service that stands for Upstash here speaks as Upstash does."""
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


async def test_a_service_that_refuses_is_down_until_it_does_not(
    rest: Deployment, service: RestService, tmp_path: Path
) -> None:
    for status, why in (
        (403, "Redis refuses the user or password"),
        (404, "Redis over REST fails with HTTP status 404"),
        (400, "the server does not speak the Redis protocol (JSONDecodeError)"),
    ):
        service.refuse_with = status
        async with link_to(rest.url, rest.access) as link:
            assert isinstance(await attempt(link, GET), TierUnavailable)
            assert link.why_down == why
    service.refuse_with = 0
    file = tmp_path / "token"
    file.write_text("an-old-one")
    access = replace(rest.access, password="", password_file=str(file))
    async with link_to(rest.url, access) as link:
        assert isinstance(await attempt(link, GET), TierUnavailable)
        file.write_text(f"{rest.access.password}\n")
        await closed_again(link)
        assert await link.run(GET) == [None]


async def test_a_service_that_is_gone_or_hangs_is_told(rest: Deployment) -> None:
    async with link_to("https://127.0.0.1:1", rest.access) as link:
        with pytest.raises(TierUnavailable, match="cannot reach Redis"):
            await link.run(GET)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with (
        listening(hang) as address,
        link_to(f"http://{address}", rest.access, timeout_s=0.5) as link,
    ):
        with pytest.raises(TierUnavailable, match=r"^Redis does not answer in time$"):
            await link.run(GET)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def test_a_service_that_answers_nonsense_over_rest_is_down() -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"Content-Length: 5000000\r\n\r\n" + b"[" * 5_000_000)
        await reader.read()

    async with (
        listening(lie) as address,
        link_to(f"http://{address}", Access(password="t"), retry_max_s=60) as link,
    ):
        with pytest.raises(TierUnavailable):
            await link.run(GET)
        assert link.is_down
