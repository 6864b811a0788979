"""The object store, in a directory: what it keeps when all else is lost, and what it costs nobody.

Of the store no more is known here than that an object's name holds its module's digest. Buckets
and their servers: ``tests/contract``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from wasmkiln import Artifact, Client, ModuleNotLoaded
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, TWO_ENGINES, Daemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND, Installed, without_settings
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import flipped, names_of, rejected
from tests.e2e.tenancy import house
from tests.servers.redis_server import binary_of, redis_server

OBJECTS, REDIS, COMPILED, MEMORY = (
    types_pb2.ORIGIN_OBJECT_STORE,
    types_pb2.ORIGIN_REDIS,
    types_pb2.ORIGIN_COMPILED,
    types_pb2.ORIGIN_MEMORY,
)
ONE, TWO = wasm.adder(1), wasm.adder(2)
LARGE = wasm.many_functions(8000)
[ENGINE] = ONE_ENGINE


@pytest.fixture
def store(engines: Installed, tmp_path: Path) -> Path:
    """An empty directory."""
    folder = tmp_path / "objects"
    folder.mkdir()
    return folder


@contextmanager
def running(
    store: Path, name: str = "state", **settings: object
) -> Iterator[tuple[Daemon, Client]]:
    """Run a daemon with the store alone, and a state directory of this name."""
    given: dict[str, object] = {
        "object_store_url": f"file://{store}",
        "redis_url": "none",
        "host_store_dir": "none",
        **settings,
    }
    command = given.pop("command", (WASMKILND,))
    engines = given.pop("engines", ONE_ENGINE)
    environ = {f"WASMKILN_{each.upper()}": str(value) for each, value in given.items()}
    state = fresh_state(store.parent / name, engines=engines)  # type: ignore[arg-type]
    more: dict[str, Any] = {"environ": environ, "command": command}
    with Daemon(state, **more) as daemon, daemon.client() as client:
        yield daemon, client


def settled(client: Client) -> None:
    """Wait until nothing waits to be written."""

    def is_written() -> bool:
        stats = client.stats()
        return not stats.pending_object_writes and not stats.pending_writes

    eventually(is_written, "writes wait")


def objects_of(store: Path, module: bytes) -> list[Path]:
    """Return the objects of a module: its own, then those of its artifacts."""
    digest = wasm.digest(module)
    found = [path for path in store.rglob("*") if path.is_file() and digest in str(path)]
    return sorted(found, key=lambda path: path.name != digest)


def filled(store: Path, *modules: bytes, **settings: object) -> dict[bytes, Artifact]:
    """Have a daemon compile modules; return what it made, once all of it is in the store."""
    with running(store, "filler", **settings) as (_, client):
        return {module: client.compile(module) for module in modules}


def compiles(daemon: Daemon) -> float:
    return daemon.metric("compiles_total", engine=ENGINE, outcome="ok")


def cache_command(code: int, *words: str, **settings: object) -> str:
    """Run `wasmkilnd cache`, which has to end with ``code``; return what it says."""
    environ = {f"WASMKILN_{each.upper()}": str(value) for each, value in settings.items()}
    done = subprocess.run(
        [WASMKILND, "cache", *words],
        env={**without_settings(), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def test_a_fleet_that_lost_redis_and_its_host_stores_compiles_nothing(store: Path) -> None:
    with redis_server(binary_of("valkey"), store.parent / "server") as server:
        fleet = {"redis_url": server.url, "host_store_dir": ""}
        made = filled(store, ONE, TWO, LARGE, **fleet)
        with redis.Redis.from_url(server.url) as direct:
            direct.flushall()
            key = store.parent / "keys" / "trusted"
            with (
                running(store, "b", **fleet) as (daemon, _),
                daemon.client(trusted_keys=key) as client,
            ):
                for module, first in made.items():
                    again = client.compile(wasm.digest(module))
                    assert again.header.origin == OBJECTS
                    assert again.bytes == first.bytes
                    assert again.verify().claims.module_sha256 == wasm.digest(module)
                assert client.compile(ONE).header.origin == MEMORY
                # It is back in Redis, and in the host store.
                settled(client)
                assert all(names_of(direct, wasm.digest(module)) for module in made)
                assert client.host_file(ONE)
                assert compiles(daemon) == 0
                stats = client.stats()
                [tier] = [each for each in stats.tiers if each.tier == "object_store"]
                assert (tier.hits, tier.errors, stats.object_store_up) == (3, 0, True)
                assert stats.hit_ratio == 1
                assert daemon.metric("served_total", origin="object_store") == 3
            with running(store, "c", **{**fleet, "host_store_dir": "none"}) as (daemon, client):
                assert client.compile(wasm.digest(ONE)).header.origin == REDIS


def test_what_redis_has_and_a_bucket_lost_is_written_there_again(store: Path) -> None:
    with redis_server(binary_of("valkey"), store.parent / "server") as server:
        fleet = {"redis_url": server.url, "host_store_dir": "none"}
        filled(store, ONE, **fleet)
        for path in objects_of(store, ONE):
            path.unlink()
        with running(store, "b", **fleet) as (_, client):
            assert client.compile(wasm.digest(ONE)).header.origin == REDIS
            assert client.load(ONE).already_loaded
            settled(client)
            assert len(objects_of(store, ONE)) == 2


def test_a_daemon_alone_with_it_finds_all_after_a_restart(store: Path) -> None:
    made = filled(store, ONE, LARGE)
    assert len(objects_of(store, ONE)) == 2
    with running(store) as (daemon, client):
        # It pins what nothing else has, and what nobody here has seen, it does not look for.
        assert client.pin(wasm.digest(LARGE)).pin.module_sha256 == wasm.digest(LARGE)
        assert len(client.find_missing([wasm.digest(ONE)])) == 1
        for module, first in made.items():
            assert client.compile(wasm.digest(module)).bytes == first.bytes
        client.evict(all=True, tier="memory")
        assert client.find_missing([wasm.digest(ONE)]) == []
        assert client.compile(ONE).header.origin == OBJECTS
        # A module alone comes back, too.
        client.load(TWO)
        settled(client)
        client.evict(all=True, tier="memory")
        assert client.load(TWO).already_loaded
        assert compiles(daemon) == 0


def test_evict_reaches_it_by_module_by_engine_and_as_a_whole(store: Path) -> None:
    wasmer, wasmtime = TWO_ENGINES
    with running(store, engines=TWO_ENGINES) as (_, client):
        for engine in TWO_ENGINES:
            for module in (ONE, TWO):
                client.compile(module, engine=engine)
        settled(client)
        sizes = sum(path.stat().st_size for path in objects_of(store, ONE))
        gone = client.evict(wasm.digest(ONE), tier="object_store")
        assert (gone.artifacts, gone.modules, gone.bytes) == (2, 1, sizes)
        assert not objects_of(store, ONE)
        gone = client.evict(engine=wasmtime)
        assert not gone.unreachable_tiers
        assert [path.parent.name for path in objects_of(store, TWO)[1:]] == [wasmer]
        assert client.compile(TWO, engine=wasmtime).header.origin == COMPILED
        settled(client)
        client.pin(wasm.digest(TWO))
        assert client.evict(all=True, tier="object_store").pinned == 3
        client.unpin(wasm.digest(TWO))
        client.evict(all=True)
        assert not [path for path in store.rglob("*") if path.is_file()]
        with pytest.raises(ModuleNotLoaded):
            client.compile(wasm.digest(TWO))


@pytest.mark.parametrize("mode", ["read-only", "write-only"])
def test_a_mode_bounds_what_a_daemon_does(store: Path, mode: str) -> None:
    filled(store, ONE)
    _, bad = objects_of(store, ONE)
    with running(store, object_store_mode=mode) as (daemon, client):
        reads = mode == "read-only"
        artifact = client.compile(ONE)
        assert artifact.header.origin == (OBJECTS if reads else COMPILED)
        client.compile(TWO)
        settled(client)
        assert bool(objects_of(store, TWO)) is not reads
        assert client.stats().object_store_mode == mode
        gone = client.evict(wasm.digest(ONE))
        assert list(gone.unreachable_tiers) == (["object_store"] if reads else [])
        assert bool(objects_of(store, ONE)) is reads
        if reads:
            # What is bad stays, and is neither used nor read again and again.
            bad.write_bytes(value := flipped(bad.read_bytes(), 40))
            for _ in range(3):
                client.evict(all=True, tier="memory")
                assert client.compile(ONE).header.origin == COMPILED
            assert sum(rejected(daemon).values()) == 1
            assert bad.read_bytes() == value


@pytest.mark.parametrize("mode", ["read-only", "write-only"])
def test_redis_has_modes_too(store: Path, mode: str) -> None:
    with redis_server(binary_of("valkey"), store.parent / "server") as server:
        filled(store, ONE, redis_url=server.url, object_store_url="")
        with (
            redis.Redis.from_url(server.url) as direct,
            running(store, redis_url=server.url, redis_mode=mode) as (_, client),
        ):
            origin = REDIS if mode == "read-only" else COMPILED
            assert client.compile(ONE).header.origin == origin
            client.compile(TWO)
            settled(client)
            assert len(objects_of(store, TWO)) == 2
            assert bool(names_of(direct, wasm.digest(TWO))) is (mode == "write-only")
            gone = client.evict(wasm.digest(ONE))
            expected = ["redis"] if mode == "read-only" else []
            assert list(gone.unreachable_tiers) == expected


def test_a_tenant_never_gets_what_another_stored(store: Path) -> None:
    off = {"REDIS_URL": "none", "HOST_STORE_DIR": "none"}
    about: dict[str, Any] = {"OBJECT_STORE_URL": f"file://{store}", **off}
    with house(store.parent / "state", **about) as one:
        one.client("a").compile(ONE)
        one.client("ops").compile(TWO)
        settled(one.client("a"))
        settled(one.client("ops"))
    with house(store.parent / "state", **about) as two:
        with pytest.raises(ModuleNotLoaded):
            two.client("b").compile(wasm.digest(ONE))
        with pytest.raises(ModuleNotLoaded):
            two.client("ops").compile(wasm.digest(ONE))
        two.client("ops").evict(all=True)
        assert not objects_of(store, TWO)
        assert two.client("a").compile(wasm.digest(ONE)).header.origin == OBJECTS


def test_what_was_altered_or_swapped_is_a_miss_and_goes(store: Path) -> None:
    filled(store, ONE, TWO)
    module, artifact = objects_of(store, ONE)
    others, good = objects_of(store, TWO), artifact.read_bytes()
    bad = {
        "altered": flipped(good, len(good) // 3),
        "its last byte": flipped(good, len(good) - 1),
        "cut": good[:-1],
        "longer": b"\0" + good,
        "empty": b"",
        "swapped": others[1].read_bytes(),
        "a module": module.read_bytes(),
    }
    with running(store) as (daemon, client):
        for number, (what, value) in enumerate(bad.items(), 1):
            artifact.write_bytes(value)
            made = client.compile(ONE)
            assert made.header.origin == COMPILED, what
            assert sum(rejected(daemon).values()) == number, what
            settled(client)
            assert artifact.read_bytes() not in (*bad.values(), b""), what
            client.evict(all=True, tier="memory")
            assert client.compile(ONE).header.origin == OBJECTS
            client.evict(all=True, tier="memory")
        # What is no file, too.
        artifact.unlink()
        artifact.symlink_to(others[1])
        assert client.compile(ONE).header.origin == COMPILED
        settled(client)
        assert artifact.is_file()
        assert not artifact.is_symlink()
        assert others[1].exists()


def test_what_a_stranger_signed_stays_until_its_key_is_revoked(store: Path) -> None:
    filled(store, ONE)
    values = {path: path.read_bytes() for path in objects_of(store, ONE)}
    ours, others = (KeyDirectory(store.parent / name) for name in ("keys", "others"))
    with running(store, keys_dir=others.folder) as (daemon, client):
        for _ in range(2):
            assert client.compile(ONE).header.origin == COMPILED
            settled(client)
            client.evict(all=True, tier="memory")
        assert rejected(daemon) == {"stranger": 2}
        assert not [path for path in values if path.read_bytes() != values[path]]
    others.run("revoke", ours.public.id)
    with running(store, keys_dir=others.folder) as (daemon, client):
        assert client.compile(ONE).header.origin == COMPILED
        assert rejected(daemon) == {"revoked": 2}
        settled(client)
        assert not [path for path in values if path.read_bytes() == values[path]]
        client.evict(all=True, tier="memory")
        assert client.compile(ONE).header.origin == OBJECTS


def test_a_directory_that_goes_and_comes_back_fails_no_call(store: Path) -> None:
    filled(store, ONE)
    away = store.with_name("away")
    with running(store, memory_bytes=0) as (daemon, client):
        store.rename(away)
        assert client.compile(ONE).header.origin == COMPILED
        daemon.wait_for_log("tier is down")
        stats = client.stats()
        assert not stats.object_store_up
        assert str(store) in stats.object_store_detail
        client.compile(TWO)
        away.rename(store)
        daemon.wait_for_log("tier is up again")
        # What waited meanwhile is written; until then it is served from memory.
        settled(client)
        assert len(objects_of(store, TWO)) == 2
        assert client.compile(ONE).header.origin == OBJECTS
    shutil.rmtree(store)
    with running(store) as (daemon, client):
        assert "does not answer yet" in daemon.banner
        assert client.compile(ONE).header.origin == COMPILED
        store.mkdir()
        daemon.wait_for_log("tier is up again")
        eventually(lambda: len(objects_of(store, ONE)) == 2, "it is not written")


@pytest.mark.parametrize(
    ("what", "option", "words"),
    [("tmpfs", "size=16k", "No space left"), ("tmpfs", "ro", "Read-only file system")],
)
def test_a_directory_that_takes_no_writes_fails_no_call(
    store: Path, what: str, option: str, words: str
) -> None:
    mount = f'mount -t {what} -o {option} none "$0" && exec "$@"'
    apart = ["unshare", "--mount", "sh", "-c", mount, str(store)]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot make a mount namespace")
    with running(store, command=(*apart, WASMKILND)) as (daemon, client):
        assert client.compile(LARGE).header.origin == COMPILED
        line = daemon.wait_for_log("tier refuses writes")
        assert words in line
        stats = client.stats()
        # A full one may have room for the module.
        assert option != "ro" or words in stats.object_store_detail
        assert stats.object_store_up
        assert client.compile(LARGE).header.origin == MEMORY


def test_commands_list_remove_verify_and_move_its_values(store: Path) -> None:
    filled(store, ONE, TWO)
    state = store.parent / "filler"
    about = {"state_dir": state, "object_store_url": f"file://{store}"}
    assert cache_command(0, "ls", "--tier", "object_store", **about).count("artifact") == 2
    told = cache_command(0, "scrub", "--tier", "object_store", **about)
    assert "artifacts=2, modules=2" in told
    # Into another store, and from there into a Redis.
    other = store.with_name("other")
    other.mkdir()
    url = f"file://{other}"
    told = cache_command(0, "export", url, "--tier", "object_store", **about)
    assert "artifacts=2, modules=2" in told
    assert [path.name for path in objects_of(other, ONE)] == [
        path.name for path in objects_of(store, ONE)
    ]
    assert "kept=4" in cache_command(0, "export", url, "--tier", "object_store", **about)
    with redis_server(binary_of("valkey"), store.parent / "server") as server:
        cache_command(0, "import", url, redis_url=server.url, **about)
        with running(store, redis_url=server.url, object_store_url="") as (_, client):
            assert client.compile(wasm.digest(ONE)).header.origin == REDIS
    bad, good = objects_of(store, TWO)
    bad.write_bytes(flipped(bad.read_bytes(), 3))
    assert "bad" in cache_command(3, "scrub", "--tier", "object_store", **about)
    assert not bad.exists()
    assert good.exists()
    words = "rm", "--module", wasm.digest(ONE), "--tier", "object_store"
    assert "artifacts=1, modules=1" in cache_command(0, *words, **about)
    assert not objects_of(store, ONE)
    cache_command(0, "rm", "--all", "--yes", "--tier", "object_store", **about)
    cache_command(0, "import", url, "--tier", "object_store", **about)
    assert [path.name for path in objects_of(store, TWO)] == [bad.name, good.name]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://user:secret@bucket/prefix", "environment variables"),
        ("s3://bucket/prefix?token=secret", "environment variables"),
        ("ftp://secret/", "write one of s3://, gs://, az://, file://"),
        ("file://secret/path", "write file:///path"),
        ("file:///secret/../etc", "write file:///path"),
        ("s3://secret\\bucket", "write s3://bucket/prefix"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_a_sentence(
    tmp_path: Path, url: str, words: str
) -> None:
    done = subprocess.run(
        [WASMKILND, "serve", "--state-dir", str(tmp_path)],
        env={**without_settings(), "WASMKILN_OBJECT_STORE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert words in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
