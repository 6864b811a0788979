"""`wasmkilnd cache` on a real server: what it believes of what it reads there, and in a store.

What people do with it every day is in tests/e2e/test_cache_tools.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click
import pytest
import redis
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.cache.value import written
from wasmkilnd.commands.cache import BadValuesFound
from wasmkilnd.model import Artifact, ExternType, Module
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wire import CHUNK_BYTES

from tests.contract.cache_command import (
    MODULE,
    SEALER,
    STRANGER,
    WASMER,
    Command,
    removed,
    row_of,
)
from tests.contract.sealing import THEIRS
from tests.contract.values import artifact, module
from tests.doubles.shelf import name_of
from tests.servers.redis_server import RedisServer

DAYS_S = 3 * 86400 + 3600 + 30

LARGE = module(2, CHUNK_BYTES + 10)
OLDER = artifact(4, 2 * CHUNK_BYTES + 10, "wasmtime", of=MODULE)
WASMTIME = SEALER.seal(
    replace(OLDER, spec=replace(OLDER.spec, changed_settings={"consume_fuel": "true"}))
)
SET = b"wasm:3:of:{%b}" % MODULE.sha256.encode()


def bytes_of(what: Artifact | Module, signing: Sealer = SEALER) -> bytes:
    """Return a value of ``what``, which a daemon writes with other bytes each time."""
    return b"".join(written(what, signing))


VALUES = {name_of(what): bytes_of(what) for what in (MODULE, LARGE, WASMER, WASMTIME)}


@pytest.fixture
def server(server: redis.Redis) -> redis.Redis:
    """The server, with the values in it and nothing else."""
    put_all(server)
    return server


def put_all(server: redis.Redis) -> None:
    for name, value in VALUES.items():
        server.set(name, value, ex=DAYS_S)
    for what in (WASMER, WASMTIME):
        server.sadd(SET, f"{what.spec.engine.id}:{what.spec.fingerprint}")
    server.expire(SET, DAYS_S)


def values_in(server: redis.Redis) -> dict[bytes, bytes]:
    """Return every key that is a string."""
    strings = [name for name in server.scan_iter() if server.type(name) == b"string"]
    return {name: cast("bytes", server.get(name)) for name in strings}


@pytest.fixture
def cache(
    server: redis.Redis, valkey: RedisServer, tmp_path: Path, kept_as_it_was: None
) -> Command:
    return Command(valkey.url, tmp_path / "state")


def flipped(value: bytes, at: int) -> bytes:
    at %= len(value)
    return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]


# ---- What is there


def test_a_row_says_what_there_is_to_say(cache: Command, server: redis.Redis) -> None:
    rows = cache.rows("--module", MODULE.sha256[:8])
    assert [row["engine"] for row in rows] == [None, "wasmer-1.0", "wasmtime-1.0"]
    expected = row_of(WASMTIME, len(VALUES[name_of(WASMTIME)]), rows[2]["expires_in_s"])
    assert rows[2] == expected | {"changed_settings": {"consume_fuel": "true"}}
    assert 3 * 86400 < rows[2]["expires_in_s"] < 3 * 86400 + 3631
    assert cache.rows("--engine", "wasm") == []
    rows = cache.rows()
    assert [row["module"] for row in rows] == sorted(row["module"] for row in rows)
    total = json.loads(cache.good("ls", "--totals", "--json").stdout)["total"]
    for size in ("raw_bytes", "stored_bytes"):
        assert total[size] == sum(row[size] for row in rows)
    server.set(name_of(MODULE), flipped(VALUES[name_of(MODULE)], -1))
    [forged, *_] = cache.rows("--module", MODULE.sha256)
    assert (forged["trust"], forged["raw_bytes"], forged["unreadable"]) == ("forged", 100, None)


def test_the_table_is_for_people(cache: Command, server: redis.Redis) -> None:
    server.set(name_of(module(9)), "\x1b[2Jwhatever it is " + "x" * 200)
    theirs = artifact(8)
    spec = replace(theirs.spec, changed_settings={"\x1b[2J": "\x1b[2J"})
    theirs = STRANGER.seal(replace(theirs, spec=spec))
    server.set(name_of(theirs), bytes_of(theirs, STRANGER))
    server.lpush(name_of(module(10)).decode(), "x")
    page = cache.good("ls").stdout
    listed, _, totals = page.partition("\n\n")
    assert listed.splitlines()[0].split()[:3] == ["WHAT", "MODULE", "FINGERPRINT"]
    assert len(listed.splitlines()) == 8
    for words in (
        *(MODULE.sha256[:12], "wasmer-1.0", "consume_fuel=true", "1.0 MiB", "73 h 0 min"),
        f"{THEIRS.public.id[:12]}  stranger",
        "cause=format, why=the value has another magic",
        "cause=truncated, why=the value has 0 bytes",
    ):
        assert words in listed
    assert "\x1b" not in page
    assert totals.splitlines()[0].split() == ["WHAT", "KIND", "VALUES", "RAW", "STORED"]
    assert totals.splitlines()[-1].split()[:3] == ["total", "-", "7"]
    assert "\n\n" not in cache.good("ls", "--totals").stdout
    assert len(cache.good("ls", "--engine", "none").stdout.splitlines()) == 2
    added = json.loads(cache.good("ls", "--totals", "--json").stdout)["values"]
    assert ("unreadable", "truncated") in [(row["what"], row["kind"]) for row in added]


def test_huge_keys_under_our_names_are_not_read_whole(cache: Command, server: redis.Redis) -> None:
    server.setrange(name_of(module(7)).decode(), 100 * 1024**2, "x")
    server.config_resetstat()
    assert len(cache.rows()) == 5
    assert server.info("stats")["total_net_output_bytes"] < 100_000
    _, summary = cache.scrub()
    assert summary["bad"] == {"format": 1}
    assert summary["bytes_read"] < 16 * 1024**2


def test_a_namespace_has_its_own_values(cache: Command, server: redis.Redis) -> None:
    theirs = name_of(MODULE).replace(b"wasm:", b"wasm:ns:blue:")
    server.set(theirs, VALUES[name_of(MODULE)])
    assert [row["what"] for row in cache.rows("--namespace", "blue")] == ["module"]
    assert len(cache.rows()) == 4
    cache.good("rm", "--all", "--yes")
    assert [*values_in(server)] == [theirs]


def test_what_is_pinned_stays_unless_that_is_asked_for(cache: Command, server: redis.Redis) -> None:
    server.persist(name_of(MODULE))
    gone = removed(cache.good("rm", "--all", "--yes", "--json"))
    assert (gone["artifacts"], gone["modules"], gone["pinned"]) == (0, 1, 3)
    assert {*values_in(server)} == {*VALUES} - {name_of(LARGE)}
    told = cache.good("rm", "--module", MODULE.sha256[:12], "--pinned").stdout
    assert "removed: artifacts=2, modules=1, bytes=" in told
    assert cache.rows() == []


# ---- Scrub


def test_a_scrub_with_the_wrong_keys_deletes_nothing(cache: Command, server: redis.Redis) -> None:
    findings, _ = cache.scrub(WASMKILN_TRUSTED_KEYS=THEIRS.public.hex)
    assert {(each["cause"], each["deleted"]) for each in findings.values()} == {("stranger", False)}
    assert values_in(server) == VALUES


def test_each_kind_of_fraud_is_named(cache: Command, server: redis.Redis) -> None:
    whole, moved, other_engine = (SEALER.seal(artifact(tag)) for tag in (15, 18, 19))
    renamed = name_of(other_engine).replace(b":wasmtime-1.0:", b":wasmer-9.9:")
    middle, a_list = SEALER.seal(artifact(21, 3 * CHUNK_BYTES)), name_of(module(20))
    bad: dict[bytes, tuple[str, bytes]] = {
        name_of(what): (cause, bytes_of(what))
        for what, cause in (
            (artifact(12), "unsigned"),
            (replace(artifact(13), attestation=SEALER.seal(artifact(5)).attestation), "mismatch"),
            (STRANGER.seal(artifact(14)), "stranger"),
            (replace(whole, frames=artifact(16).frames), "mismatch"),
            (replace(module(17), sha256="7" * 64), "wrong_key"),
        )
    }
    bad[name_of(artifact(11))] = "stranger", bytes_of(STRANGER.seal(artifact(11)), STRANGER)
    bad[name_of(moved)] = "wrong_key", VALUES[name_of(WASMER)]
    bad[renamed] = "wrong_key", bytes_of(other_engine)
    bad[name_of(middle)] = "digest", flipped(bytes_of(middle), CHUNK_BYTES + 9)
    for name, (_, value) in bad.items():
        server.set(name, value)
    server.lpush(a_list.decode(), "x")
    findings, summary = cache.scrub()
    expected = {name: cause for name, (cause, _) in bad.items()} | {a_list: "truncated"}
    assert {name: each["cause"] for name, each in findings.items()} == expected
    assert (summary["artifacts"], summary["modules"], summary["deleted"]) == (2, 2, 10)
    assert values_in(server) == VALUES


def test_a_bad_value_is_told_and_decides_the_exit(cache: Command, server: redis.Redis) -> None:
    name = name_of(MODULE).decode()
    server.set(name, b"hello, whoever reads this" * 20)
    for flags, done in ((["--dry-run"], ""), ([], ", deleted=True")):
        result = cache("scrub", *flags)
        assert isinstance(result.exception, BadValuesFound)
        assert str(result.exception) == "bad values: 1 format"
        lines = result.stdout.splitlines()
        assert lines[0] == f"bad: name={name}, cause=format, why=the value has another magic{done}"
    assert cache.good("scrub").stdout.startswith("summary: artifacts=2, modules=1, bytes_read=")


def test_another_version_of_the_format_is_left_alone(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    name, value = name_of(MODULE), VALUES[name_of(MODULE)]
    at = len(value) - 137 + 4
    server.set(name, value[:at] + b"\x04" + value[at + 1 :])
    findings, summary = cache.scrub()
    assert (findings, summary["other_format"], summary["modules"]) == ({}, 1, 1)
    assert "other_format=1" in cache.good("scrub").stdout
    result = cache.good("export", folder(tmp_path / "x"))
    assert "left out" in result.stderr
    assert "exported: artifacts=2, modules=1, stored_bytes=" in result.stdout


# ---- Export and import


def folder(path: Path) -> str:
    """Make a directory, and return it as the URL of an object store."""
    path.mkdir()
    return path.as_uri()


def files_in(path: Path) -> dict[str, bytes]:
    """Return every file below a directory, by its name in Redis."""
    found = (each for each in path.rglob("*") if each.is_file())
    return {"/".join(each.relative_to(path).parts): each.read_bytes() for each in found}


def object_of(what: Artifact | Module) -> str:
    """Return the name of a value in an object store."""
    if isinstance(what, Module):
        return f"wasm/3/module/{what.sha256}"
    return f"wasm/3/compiled/{what.module_sha256}/{what.spec.engine.id}/{what.spec.fingerprint}"


OBJECTS = {object_of(what): VALUES[name_of(what)] for what in (MODULE, LARGE, WASMER, WASMTIME)}


def test_a_directory_goes_out_and_comes_in(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    url = folder(tmp_path / "warm")
    cache.good("export", url, "--module", LARGE.sha256)
    assert files_in(tmp_path / "warm") == {object_of(LARGE): VALUES[name_of(LARGE)]}
    done = json.loads(cache.good("export", "--json", url).stdout)["exported"]
    assert (done["modules"], done["artifacts"], done["kept"]) == (1, 2, 1)
    assert files_in(tmp_path / "warm") == OBJECTS
    assert [path.name for path in tmp_path.iterdir()] == ["warm"]
    assert cache.good("import", url).stdout == "imported: kept=4\n"
    for words, ttl_s in (([], 7 * 86400), (["--cache-ttl-s", "90"], 90)):
        server.flushall()
        cache.good("import", *words, url)
        assert values_in(server) == VALUES
        assert all(ttl_s - 60 < server.ttl(name) <= ttl_s for name in server.scan_iter())
        assert server.scard(SET) == 2
    # What is pinned here does not expire here, nor what comes to it.
    server.delete(name_of(WASMER), name_of(LARGE))
    pinned = (name_of(MODULE), name_of(WASMTIME), SET)
    for name in pinned:
        server.persist(name)
    cache.good("import", "--cache-ttl-s", "90", url)
    assert {server.ttl(name) for name in (*pinned, name_of(WASMER))} == {-1}
    assert server.ttl(name_of(LARGE)) <= 90


def test_a_server_that_is_full_is_told_with_what_was_done(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    url = folder(tmp_path / "warm")
    cache.good("export", url)
    server.flushall()
    server.config_set("maxmemory", "1mb")
    try:
        told = cache.refusal("import", url)
    finally:
        server.config_set("maxmemory", "0")
    assert told.startswith(f"cannot import {url}: ")
    assert "Redis refuses: it is full: it has reached its maxmemory" in told
    assert told.endswith("0 values were imported before")


def test_what_in_a_store_does_not_verify_is_never_stored(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    name, value = object_of(WASMTIME), VALUES[name_of(WASMTIME)]
    by_stranger = bytes_of(STRANGER.seal(artifact(8)), STRANGER)
    relabelled = bytes_of(replace(SEALER.seal(artifact(15)), frames=artifact(16).frames))
    bad = [flipped(value, at) for at in (0, CHUNK_BYTES, -150, -130, -97, -1)]
    bad += [value[:-1], value[1:], value + b"x", b"", b"x", b"hello" * 99, by_stranger, relabelled]
    bad += [VALUES[name_of(WASMER)], bytes(3_000_000)]
    url = folder(tmp_path / "bad")
    cache.good("export", url)
    good = {each: of for each, of in VALUES.items() if each != name_of(WASMTIME)}
    for each in bad:
        server.flushall()
        (tmp_path / "bad" / name).write_bytes(each)
        result = cache("import", url, "--json")
        assert isinstance(result.exception, BadValuesFound)
        done = json.loads(result.stdout)["imported"]
        assert (sum(done["refused"].values()), done["modules"], done["artifacts"]) == (1, 2, 1)
        assert result.stderr.startswith(f"left out: {name}: ")
        assert values_in(server) == good
    (tmp_path / "bad" / name).unlink()
    for tag in range(100):
        (tmp_path / "bad" / object_of(module(tag))).write_bytes(b"x" * 200)
    result = cache("import", url)
    assert str(result.exception) == "bad values: 100 format"
    assert result.stderr.count("left out: wasm/3/module/") == 20


@pytest.mark.parametrize("command", ["export", "import"])
@pytest.mark.parametrize("name", ["-", "warm.cache", ""])
def test_who_names_an_archive_hears_what_to_use_instead(
    cache: Command, tmp_path: Path, command: str, name: str
) -> None:
    refused = cache(command, name)
    assert isinstance(refused.exception, click.UsageError)
    told = refused.exception.format_message()
    assert "\n" not in told
    assert "archives" in told
    assert "`tar`" in told
    # What it says works.
    [url] = re.findall(r"file:///DIR", told)
    cache.good(command, url.replace("/DIR", str(tmp_path)))


def test_heads_of_any_length_are_read(cache: Command, server: redis.Redis, tmp_path: Path) -> None:
    many = tuple(ExternType("env", f"function {i}", "function", "()") for i in range(30_000))
    long = SEALER.seal(replace(artifact(40, 3 * CHUNK_BYTES), imports=many))
    value = bytes_of(long)
    assert len(value) - long.size_bytes > 1024**2
    server.set(name_of(long), value)
    [row] = cache.rows("--module", long.module_sha256)
    assert (row["trust"], row["raw_bytes"]) == ("trusted", long.size_bytes)
    assert cache.scrub()[1]["artifacts"] == 3
    url = folder(tmp_path / "long")
    cache.good("export", "--module", long.module_sha256, url)
    server.flushall()
    cache.good("import", url)
    assert values_in(server) == {name_of(long): value}


# ---- Beside daemons


def between(monkeypatch: pytest.MonkeyPatch, nth: int, happens: Callable[[], object]) -> None:
    """Have something happen before the tool looks at its values for the nth time."""
    looks, count = RedisStore.look, iter(range(10**6))

    async def look(store: RedisStore, *asked: Any) -> Any:
        if next(count) == nth:
            happens()
        return await looks(store, *asked)

    monkeypatch.setattr(RedisStore, "look", look)


def test_what_is_replaced_or_goes_meanwhile_is_nothing_bad(
    cache: Command, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, value = name_of(WASMTIME), VALUES[name_of(WASMTIME)]
    for number, words in enumerate((["scrub"], ["export"])):
        urls = [folder(tmp_path / f"{number}")] if words == ["export"] else []
        put_all(server)
        server.set(name, value[:-1])
        with monkeypatch.context() as patched:
            between(patched, 1, lambda: server.set(name, value))
            cache.good(*words, *urls)
        with monkeypatch.context() as patched:
            between(patched, 0, server.flushall)
            told = cache.good(*words, *urls, "--json").stdout
        [summary] = json.loads(told).values()
        assert summary["gone"] == 4

    again = bytes_of(WASMTIME)
    put_all(server)
    server.set(name, flipped(value, 5))
    # After all have been read, and the bad one twice.
    between(monkeypatch, len(VALUES) + 1, lambda: server.set(name, again))
    findings, summary = cache.scrub()
    assert (findings[name]["deleted"], summary["deleted"]) == (False, 0)
    assert server.get(name) == again


# ---- Whatever is wrong


def test_whatever_is_wrong_is_one_sentence(cache: Command, tmp_path: Path) -> None:
    for words, sentence in (
        (["export", f"file://{tmp_path}/no"], f"{tmp_path}/no: there is no such directory"),
        (["import", f"file://{tmp_path}/no"], f"{tmp_path}/no: there is no such directory"),
        (["import", "ftp://there/"], "it has no known scheme: write one of s3://"),
        (["ls", "--redis-url", "none"], "WASMKILN_REDIS_URL is none"),
    ):
        assert sentence in cache.refusal(*words)
    url = f"file://{tmp_path}"
    for words in (["scrub"], ["export", url], ["import", url]):
        assert "no key is trusted here" in cache.refusal(*words, WASMKILN_TRUSTED_KEYS="")
    for words in (["ls"], ["rm", "--engine", "x"], ["scrub"], ["export", url]):
        nobody = f"unix://:hidden@{tmp_path}/nobody.sock"
        told = cache.refusal(*words, "--redis-url", nobody)
        assert "cannot reach Redis" in told
        assert "hidden" not in told


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        ("rm", "choose one of --module, --engine, and --all"),
        ("rm --engine wasmer --module abcd", "choose one of --module, --engine, and --all"),
        ("rm --all", "--all with --yes"),
        ("rm --all --yes --engine wasmer", "choose one of --module, --engine, and --all"),
        ("ls --module xyz", "expected 4 to 64 hexadecimal digits"),
        ("ls --namespace No", "expected 1 to 63 lowercase letters"),
        ("ls --tier memory", "'memory' is not one of 'redis', 'object_store', 'host_store'"),
        ("du", "No such command 'du'"),
    ],
)
def test_a_wrong_command_line_is_told_and_removes_nothing(
    cache: Command, server: redis.Redis, words: str, mistake: str
) -> None:
    assert mistake in str(cache(*words.split()).exception)
    assert values_in(server) == VALUES
