"""The embedded server: daemons of one state directory share it, and it ends with the last."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from wasmkiln import Client, ModuleNotLoaded

from tests.e2e import wasm
from tests.e2e.daemon import RedisDaemon
from tests.e2e.processes import embedded, eventually, within
from tests.e2e.test_cache import COMPILED, REDIS, settled


def is_stored(client: Client, digest: str) -> bool:
    """Whether the embedded server has what was compiled of a module."""
    client.evict(digest, tier="memory")
    try:
        return client.compile(digest).header.origin == REDIS
    except ModuleNotLoaded:
        return False


def stored(client: Client, tag: int) -> str:
    """Compile a module; return its digest when it is in the server's file too."""
    digest = client.compile(wasm.adder(tag)).header.module_sha256
    settled(client)
    time.sleep(1.2)  # The server writes its file every second.
    return digest


def check_nothing_is_left(state: Path) -> None:
    eventually(lambda: not within(state), "something outlived the daemons", 30)


def test_it_is_shared_by_daemons_that_come_and_are_killed(lean_state_dir: Path) -> None:
    state = lean_state_dir
    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(RedisDaemon, [state, state])
    with one, two:
        with one.client() as client:
            digest = stored(client, 1)
        with two.client() as client:
            assert client.compile(digest).header.origin == REDIS
            one.kill()
            eventually(partial(is_stored, client, digest), "what was stored is gone")
            another = stored(client, 2)
        with RedisDaemon(state) as three, three.client() as client:
            eventually(partial(is_stored, client, another), "it is not shared")
            check_only_the_owner_gets_in(state)
            with RedisDaemon(state) as four:
                assert four.stop() == 0
            assert is_stored(client, another)  # Who left did not keep the server.
            assert two.stop() == 0
            eventually(partial(is_stored, client, another), "nobody started the server again")
            os.kill(embedded(state), signal.SIGKILL)
            # Meanwhile nobody notices.
            assert client.compile(wasm.adder(1)).bytes
            assert client.compile(wasm.adder(3)).header.origin == COMPILED
            eventually(partial(is_stored, client, another), "the killed server is not replaced")
            three.kill()
    check_nothing_is_left(state)
    with RedisDaemon(state) as again, again.client() as client:
        for each in (digest, another):
            eventually(partial(is_stored, client, each), "it did not outlive the daemons")
    check_nothing_is_left(state)


def check_only_the_owner_gets_in(state: Path) -> None:
    """No other user can reach the server, or read its password from a process."""
    folder = state / "redis"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600
    password = (folder / "password").read_bytes().strip()
    assert password
    processes = within(state)
    assert processes
    for pid in processes:
        for kind in ("cmdline", "environ"):
            assert password not in Path(f"/proc/{pid}/{kind}").read_bytes()


def test_what_cannot_be_used_is_told_and_used_when_it_can(lean_state_dir: Path) -> None:
    in_the_way = lean_state_dir / "redis"
    in_the_way.write_text("where its folder is to be")
    with RedisDaemon(lean_state_dir) as daemon, daemon.client() as client:
        assert "which does not answer yet" in daemon.banner
        client.compile(wasm.adder(1))
        stats = client.stats()
        assert (stats.redis_up, stats.redis_mode) == (False, "embedded")
        assert "the embedded server does not start" in stats.redis_detail
        in_the_way.unlink()
        eventually(lambda: client.stats().redis_up, "the server does not come up")
        settled(client)
        assert is_stored(client, wasm.digest(wasm.adder(1)))
    check_nothing_is_left(lean_state_dir)
    # Data that the server cannot read are set aside.
    files = [file for file in (in_the_way / "data").rglob("*") if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(b"*3\r\n$3\r\nSET\r\n$garbage\r\n" * 1000)
    with RedisDaemon(lean_state_dir) as again, again.client() as client:
        eventually(lambda: client.stats().redis_up, "the server does not come up", 90)
        digest = stored(client, 2)
        assert is_stored(client, digest)
        assert (in_the_way / "broken").is_dir()
        # Where the whole folder goes, what is open is used, and the end costs no traceback.
        shutil.rmtree(lean_state_dir)
        assert is_stored(client, digest)
        again.wait_for_log("the folder of the embedded server is gone")
        assert again.stop() == 0
        assert "Traceback" not in again.log
    check_nothing_is_left(lean_state_dir)
