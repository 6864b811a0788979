"""`wasmkilnd cache` on a real server: what it prints, what it does there, and how it ends."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import redis
from click.testing import CliRunner
from wasmkiln.cli.text import size
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.cache.value import written
from wasmkilnd.cli import command
from wasmkilnd.commands.cache import BadValuesFound
from wasmkilnd.commands.shared import CommandFailed
from wasmkilnd.model import CHUNK_BYTES, Artifact, ExternType, Module
from wasmkilnd.signing.sealer import Sealer

from tests.contract.cache_command import MODULE, SEALER, STRANGER, WASMER, Command, removed, row_of
from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import artifact, module
from tests.servers.redis_server import RedisServer, binary_of, redis_server

DAYS_S = 3 * 86400 + 3600 + 30

LARGE = module(2, CHUNK_BYTES + 10)
OLDER = artifact(4, 2 * CHUNK_BYTES + 10, "wasmtime", of=MODULE)
WASMTIME = SEALER.seal(
    replace(OLDER, spec=replace(OLDER.spec, changed_settings={"consume_fuel": "true"}))
)
ALL = (MODULE, LARGE, WASMER, WASMTIME)


WRITTEN: dict[tuple[int, int], tuple[Artifact | Module, bytes]] = {}


def bytes_of(what: Artifact | Module, signing: Sealer = SEALER) -> bytes:
    """Return the value of one object, which a daemon writes with other bytes each time."""
    at = id(what), id(signing)
    if at not in WRITTEN:
        WRITTEN[at] = what, b"".join(written(what, signing))
    return WRITTEN[at][1]


def name_of(what: Artifact | Module, prefix: str = "wasm:") -> bytes:
    if isinstance(what, Module):
        return f"{prefix}3:module:{{{what.sha256}}}".encode()
    of = f"{{{what.module_sha256}}}:{what.spec.engine.id}:{what.spec.fingerprint}"
    return f"{prefix}3:compiled:{of}".encode()


def set_of(what: Artifact | Module, prefix: str = "wasm:") -> bytes:
    digest = what.sha256 if isinstance(what, Module) else what.module_sha256
    return f"{prefix}3:of:{{{digest}}}".encode()


def put(
    server: redis.Redis,
    *whats: Artifact | Module,
    prefix: str = "wasm:",
    ttl_s: int | None = DAYS_S,
    signing: Sealer = SEALER,
) -> None:
    """Store values as a daemon does."""
    for what in whats:
        server.set(name_of(what, prefix), bytes_of(what, signing), ex=ttl_s)
        if isinstance(what, Artifact):
            member = f"{what.spec.engine.id}:{what.spec.fingerprint}"
            server.sadd(set_of(what, prefix), member)
            if ttl_s:
                server.expire(set_of(what, prefix), ttl_s)


VALUES = {name_of(what): bytes_of(what) for what in ALL}


@pytest.fixture
def server(server: redis.Redis) -> redis.Redis:
    """The server, with the values in it and nothing else."""
    put(server, *ALL)
    return server


def values_in(server: redis.Redis) -> dict[bytes, bytes]:
    """Return every key that is a string."""
    strings = [name for name in server.scan_iter() if server.type(name) == b"string"]
    return {name: cast("bytes", server.get(name)) for name in strings}


@pytest.fixture
def cache(
    server: redis.Redis, valkey: RedisServer, tmp_path: Path, kept_as_it_was: None
) -> Command:
    return Command(valkey.url, tmp_path / "state")


# ---- ls


def test_a_row_says_what_there_is_to_say(cache: Command) -> None:
    rows = cache.rows("--module", MODULE.sha256[:8])
    [row] = [row for row in rows if row["engine"] == "wasmtime-1.0"]
    expected = row_of(WASMTIME, len(VALUES[name_of(WASMTIME)]), row["expires_in_s"])
    assert row == expected | {"changed_settings": {"consume_fuel": "true"}}
    assert 3 * 86400 < row["expires_in_s"] < 3 * 86400 + 3631


def test_values_are_chosen_and_sorted(cache: Command) -> None:
    whats = [row["engine"] or row["what"] for row in cache.rows("--module", MODULE.sha256)]
    assert whats == ["module", "wasmer-1.0", "wasmtime-1.0"]
    assert [row["engine"] for row in cache.rows("--engine", "wasmtime")] == ["wasmtime-1.0"]
    assert len(cache.rows("--engine", "wasmer-1.0")) == 1
    assert cache.rows("--engine", "wasm") == []
    modules = [row["module"] for row in cache.rows()]
    assert modules == sorted(modules)


def test_the_table_is_for_people(cache: Command, server: redis.Redis) -> None:
    server.set(name_of(module(9)), "\x1b[2Jwhatever it is " + "x" * 200)
    theirs = artifact(8)
    spec = replace(theirs.spec, changed_settings={"\x1b[2J": "\x1b[2J"})
    put(server, STRANGER.seal(replace(theirs, spec=spec)), ttl_s=None, signing=STRANGER)
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


def test_forged_and_revoked_heads_are_listed_as_such(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    value = VALUES[name_of(MODULE)]
    server.set(name_of(MODULE), value[:-1] + bytes([value[-1] ^ 1]))
    [row] = cache.rows("--module", MODULE.sha256)[:1]
    assert (row["trust"], row["raw_bytes"], row["unreadable"]) == ("forged", 100, None)


def test_sums_are_those_of_the_server(cache: Command, server: redis.Redis) -> None:
    added = json.loads(cache.good("ls", "--totals", "--json").stdout)
    assert added["total"] == {
        "values": 4,
        "raw_bytes": sum(row["raw_bytes"] for row in cache.rows()),
        "stored_bytes": sum(map(len, VALUES.values())),
    }
    assert [(row["what"], row["kind"], row["values"]) for row in added["values"]] == [
        ("module", "core", 2),
        ("wasmer-1.0", "core", 1),
        ("wasmtime-1.0", "core", 1),
    ]
    server.set(name_of(MODULE), "hello")
    added = json.loads(cache.good("ls", "--totals", "--json").stdout)
    assert ("unreadable", "truncated") in [(row["what"], row["kind"]) for row in added["values"]]


def test_only_the_ends_of_values_are_read_for_a_list(cache: Command, server: redis.Redis) -> None:
    server.set(name_of(LARGE), VALUES[name_of(LARGE)])
    server.setrange(name_of(module(7)).decode(), 100 * 1024**2, "x")
    server.config_resetstat()
    assert len(cache.rows()) == 5
    assert server.info("stats")["total_net_output_bytes"] < 100_000


def test_a_namespace_has_its_own_values(cache: Command, server: redis.Redis) -> None:
    put(server, MODULE, prefix="wasm:ns:blue:")
    assert [row["what"] for row in cache.rows("--namespace", "blue")] == ["module"]
    assert len(cache.rows()) == 4
    cache.good("rm", "--all", "--yes")
    assert [*values_in(server)] == [name_of(MODULE, "wasm:ns:blue:")]


# ---- rm


def test_a_module_is_removed_with_its_artifacts(cache: Command, server: redis.Redis) -> None:
    size_bytes = sum(len(VALUES[name_of(each)]) for each in (MODULE, WASMER, WASMTIME))
    gone = removed(cache.good("rm", "--module", MODULE.sha256[:10], "--json"))
    assert gone == {"artifacts": 2, "modules": 1, "bytes": size_bytes, "pinned": 0}
    assert [*server.scan_iter()] == [name_of(LARGE)]
    assert cache.good("rm", "--module", "abcd").stdout == "removed: nothing\n"


def test_an_engine_is_removed_in_all_versions_or_one(cache: Command, server: redis.Redis) -> None:
    assert removed(cache.good("rm", "--engine", "wasmtime-2.0", "--json"))["artifacts"] == 0
    assert removed(cache.good("rm", "--engine", "wasmtime", "--json"))["artifacts"] == 1
    told = cache.good("rm", "--engine", "wasmer-1.0").stdout
    assert told == f"removed: artifacts=1, bytes={size(len(VALUES[name_of(WASMER)]))}\n"
    assert set(values_in(server)) == {name_of(MODULE), name_of(LARGE)}


@pytest.mark.parametrize("words", [("--all", "--yes"), ("--engine", "wasmtime"), ("--module",)])
def test_what_is_pinned_stays_unless_it_is_named(
    cache: Command, server: redis.Redis, words: tuple[str, ...]
) -> None:
    if words == ("--module",):
        words = ("--module", MODULE.sha256)
    for name in (name_of(MODULE), name_of(WASMER), name_of(WASMTIME), set_of(WASMER)):
        server.persist(name)
    gone = removed(cache.good("rm", *words, "--json"))
    assert gone["artifacts"] == 0
    assert gone["pinned"] > 0
    assert {name_of(MODULE), name_of(WASMER), name_of(WASMTIME)} <= set(values_in(server))
    assert f"pinned={gone['pinned']}" in cache.good("rm", *words).stdout
    assert removed(cache.good("rm", *words, "--pinned", "--json"))["artifacts"] > 0
    assert name_of(WASMTIME) not in values_in(server)


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        ((), "choose one of --module, --engine, and --all"),
        (("--engine", "wasmer", "--module", "abcd"), "choose one of --module, --engine, and --all"),
        (("--all",), "--all with --yes"),
        (("--all", "--yes", "--engine", "wasmer"), "choose one of --module, --engine, and --all"),
    ],
)
def test_nothing_is_removed_by_mistake(
    cache: Command, server: redis.Redis, words: tuple[str, ...], mistake: str
) -> None:
    before = server.dbsize()
    assert mistake in str(cache("rm", *words).exception)
    assert server.dbsize() == before


# ---- scrub


def flipped(value: bytes, at: int) -> bytes:
    at %= len(value)
    return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]


def test_a_good_scrub_says_so(cache: Command) -> None:
    result, stored_bytes = cache.good("scrub"), sum(map(len, VALUES.values()))
    assert result.stdout == f"summary: artifacts=2, modules=2, bytes_read={size(stored_bytes)}\n"


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
    assert set(values_in(server)) == {name_of(each) for each in ALL[1:]}


def test_damage_at_each_place_is_found(cache: Command, server: redis.Redis) -> None:
    name, value = name_of(WASMTIME), VALUES[name_of(WASMTIME)]
    one_frame = CHUNK_BYTES
    places = (0, one_frame - 1, one_frame, 2 * one_frame + 3, 2 * one_frame + 10, len(value) - 200)
    for at in (*places, len(value) - 130, -97, -1):
        server.set(name, flipped(value, at))
        findings, summary = cache.scrub()
        assert findings.keys() == {name}, at
        assert summary["deleted"] == 1
        assert not server.exists(name)
    for changed in (value[:-1], value[1:], b"x" + value, value + b"x", value[:70], b"x", b""):
        server.set(name, changed)
        assert cache.scrub()[0].keys() == {name}
        assert not server.exists(name)


def test_each_kind_of_fraud_is_named(cache: Command, server: redis.Redis) -> None:
    by_stranger = STRANGER.seal(artifact(11))
    put(server, by_stranger, signing=STRANGER)
    not_attested = artifact(12)
    borrowed = replace(artifact(13), attestation=SEALER.seal(artifact(5)).attestation)
    attested_by_stranger = STRANGER.seal(artifact(14))
    whole = SEALER.seal(artifact(15))
    code_of_another = replace(whole, frames=artifact(16).frames)
    wrong_kind = replace(module(17), sha256="7" * 64)
    put(server, not_attested, borrowed, attested_by_stranger, code_of_another, wrong_kind)
    moved, other_engine = SEALER.seal(artifact(18)), SEALER.seal(artifact(19))
    server.set(name_of(moved), VALUES[name_of(WASMER)])
    renamed = name_of(other_engine).replace(b":wasmtime-1.0:", b":wasmer-9.9:")
    server.set(renamed, bytes_of(other_engine))
    a_list = name_of(module(20))
    server.lpush(a_list.decode(), "x")
    findings, summary = cache.scrub()
    assert {name: each["cause"] for name, each in findings.items()} == {
        name_of(by_stranger): "stranger",
        name_of(not_attested): "unsigned",
        name_of(borrowed): "mismatch",
        name_of(attested_by_stranger): "stranger",
        name_of(code_of_another): "mismatch",
        name_of(wrong_kind): "wrong_key",
        name_of(moved): "wrong_key",
        renamed: "wrong_key",
        a_list: "truncated",
    }
    assert (summary["artifacts"], summary["modules"], summary["deleted"]) == (2, 2, 9)
    assert values_in(server) == VALUES


def test_with_the_wrong_keys_nothing_is_deleted(cache: Command, server: redis.Redis) -> None:
    server.set(name_of(LARGE), VALUES[name_of(LARGE)][:-1])
    before = server.dbsize()
    for words in (["scrub"], ["export", "-"], ["import", "-"]):
        assert "no key is trusted here" in cache.refusal(*words, WASMKILN_TRUSTED_KEYS="")
    result = cache("scrub", WASMKILN_TRUSTED_KEYS=THEIRS.public.hex)
    assert isinstance(result.exception, BadValuesFound)
    assert "check that these are the right keys" in str(result.exception)
    assert server.dbsize() == before - 1  # Damage in the head is seen without a key.
    assert {row["trust"] for row in cache.rows()} == {"trusted"}


def test_another_version_of_the_format_is_left_alone(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    name, value = name_of(MODULE), VALUES[name_of(MODULE)]
    at = len(value) - 137 + 4
    server.set(name, value[:at] + b"\x04" + value[at + 1 :])
    findings, summary = cache.scrub()
    assert (findings, summary["other_format"], summary["modules"]) == ({}, 1, 1)
    assert "other_format=1" in cache.good("scrub").stdout
    result = cache.good("export", str(tmp_path / "x"))
    assert "left out" in result.stderr
    assert "exported: artifacts=2, modules=1, stored_bytes=" in result.stdout


def test_huge_keys_under_our_names_are_not_read_whole(cache: Command, server: redis.Redis) -> None:
    server.setrange(name_of(module(7)).decode(), 100 * 1024**2, "x")
    _, summary = cache.scrub()
    assert summary["bad"] == {"format": 1}
    assert summary["bytes_read"] < 16 * 1024**2


def test_what_took_the_place_of_a_bad_value_stays(
    cache: Command, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, again = (
        name_of(WASMTIME),
        bytes_of(sealer(OURS).seal(replace(WASMTIME, compile_time_s=9))),
    )
    server.set(name, flipped(VALUES[name], 5))
    delete = RedisStore.delete_if

    async def replaced_first(store: RedisStore, name: bytes, tail: bytes) -> bool:
        server.set(name, again)
        return await delete(store, name, tail)

    monkeypatch.setattr(RedisStore, "delete_if", replaced_first)
    findings, summary = cache.scrub()
    assert (findings[name]["deleted"], summary["deleted"]) == (False, 0)
    assert server.get(name) == again
    assert cache.scrub()[1]["artifacts"] == 2


# ---- export and import


def test_an_archive_goes_out_and_comes_in(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "warm"
    result = cache.good("export", str(file), "--engine", "wasmer")
    assert "exported: artifacts=1, modules=1, stored_bytes=" in result.stdout
    assert OURS.public.hex in result.stderr
    assert file.stat().st_size < 20_000
    assert f"cannot write {file}: File exists" in cache.refusal("export", str(file))
    assert file.stat().st_size > 1000
    file.unlink()
    assert cache.good("export", "--json", str(file)).stdout
    assert sum(map(len, VALUES.values())) < file.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["warm"]
    assert cache.good("import", str(file)).stdout == "imported: kept=4\n"
    server.flushall()
    assert (
        "imported: artifacts=2, modules=2, stored_bytes=" in cache.good("import", str(file)).stdout
    )
    assert values_in(server) == VALUES
    week_s = 7 * 86400
    assert all(week_s - 60 < server.ttl(name) <= week_s for name in VALUES)
    assert server.scard(set_of(WASMER)) == 2
    server.flushall()
    again = cache.good("import", "--json", "--cache-ttl-s", "90", str(file)).stdout
    assert json.loads(again)["imported"]["artifacts"] == 2
    assert all(0 < server.ttl(name) <= 90 for name in server.scan_iter())


def test_what_is_pinned_here_does_not_expire_here(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "warm"
    cache.good("export", str(file))
    server.delete(name_of(WASMER))
    pinned = (name_of(MODULE), name_of(WASMTIME), set_of(WASMER))
    for name in pinned:
        server.persist(name)
    server.delete(name_of(LARGE))
    cache.good("import", "--cache-ttl-s", "90", str(file))
    assert {server.ttl(name) for name in (*pinned, name_of(WASMER))} == {-1}
    assert server.ttl(name_of(LARGE)) <= 90


def test_what_is_left_out_is_told_with_advice(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "warm"
    cache.good("export", str(file))
    server.flushall()
    result = cache("import", str(file), WASMKILN_TRUSTED_KEYS=THEIRS.public.hex)
    assert isinstance(result.exception, BadValuesFound)
    assert "4 stranger; trust their key with `wasmkilnd keys trust`" in str(result.exception)
    assert result.stderr.count("left out: ") == 4
    assert OURS.public.id in result.stderr
    assert server.dbsize() == 0
    put(server, MODULE)
    for name, value in VALUES.items():
        server.set(name, flipped(value, 0))
    result = cache("export", f"{file}2")
    assert isinstance(result.exception, BadValuesFound)
    assert "bad values: 4 digest" in str(result.exception)
    assert result.stdout == "exported: refused=digest=4\n"


def test_a_server_that_is_full_is_told_with_what_was_done(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "warm"
    cache.good("export", str(file))
    server.flushall()
    server.config_set("maxmemory", "1mb")
    try:
        told = cache.refusal("import", str(file))
    finally:
        server.config_set("maxmemory", "0")
    assert "Redis refuses: it is full: it has reached its maxmemory" in told
    assert told.endswith("0 values were imported before")


def length(size_bytes: int) -> bytes:
    return size_bytes.to_bytes(8)


def archive(*values: bytes, end: bytes = length(0)) -> bytes:
    """Write an archive by hand."""
    records = b"".join(length(len(value)) + value for value in values)
    return b"wasmkiln cache archive 2\n" + records + end


def test_the_format_of_an_archive_is_this(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "warm"
    cache.good("export", str(file), "--module", LARGE.sha256)
    assert file.read_bytes() == archive(VALUES[name_of(LARGE)])


@pytest.mark.parametrize("piped", [False, True])
def test_what_in_an_archive_does_not_verify_is_never_stored(
    cache: Command, server: redis.Redis, tmp_path: Path, piped: bool
) -> None:
    server.flushall()
    value = VALUES[name_of(WASMTIME)]
    by_stranger = bytes_of(STRANGER.seal(artifact(8)), STRANGER)
    relabelled = bytes_of(replace(SEALER.seal(artifact(15)), frames=artifact(16).frames))
    bad = [flipped(value, at) for at in (0, CHUNK_BYTES, -150, -130, -97, -1)]
    bad += [value[:-1], value[1:], value + b"x", b"x", b"hello" * 99, by_stranger, relabelled]
    bad.append(bytes(3_000_000))
    file = tmp_path / "bad"
    file.write_bytes(archive(*bad, VALUES[name_of(MODULE)], VALUES[name_of(MODULE)]))
    result = (
        CliRunner().invoke(
            command,
            ["cache", "import", "-", "--json"],
            env=cache.environ,
            input=file.read_bytes(),
            standalone_mode=False,
        )
        if piped
        else cache("import", str(file), "--json")
    )
    assert isinstance(result.exception, BadValuesFound)
    done = json.loads(result.stdout)["imported"]
    assert sum(done["refused"].values()) == len(bad)
    assert (done["modules"], done["artifacts"], done["duplicates"]) == (1, 0, 1)
    assert values_in(server) == {name_of(MODULE): VALUES[name_of(MODULE)]}


def test_many_bad_values_are_not_told_one_by_one(cache: Command, tmp_path: Path) -> None:
    file = tmp_path / "bad"
    file.write_bytes(archive(*[b"x" * 200] * 100))
    result = cache("import", str(file))
    assert str(result.exception) == "bad values: 100 format"
    assert result.stderr.count("left out: value") == 20


def test_whatever_is_wrong_with_a_file_is_one_sentence(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    good = archive(*VALUES.values())
    server.flushall()
    hostile: dict[bytes, str] = {
        b"": "`wasmkilnd cache export` of this version has not",
        b"PK" * 5000: "`wasmkilnd cache export` of this version has not",
        b"wasmkiln-cache.json\0".ljust(512, b"\0"): "of this version has not written it",
        good.replace(b" 2\n", b" 3\n", 1): "of this version has not written it",
        good[:25]: "it is cut off; 0 values were imported before",
        good[:30]: "it is cut off; 0 values were imported before",
        good[:-5]: "it is cut off; 4 values were imported before",
        good[:-500]: "it is cut off; ",
        good[:25] + length(2**64 - 1) + b"x" * 100: "it has a value of 18446744073709551615 bytes",
        good[:25] + length(10**8) + b"x" * 10**6: "it is cut off",
    }
    file = tmp_path / "hostile"
    for content, sentence in hostile.items():
        file.write_bytes(content)
        told = cache.refusal("import", str(file))
        assert told.startswith(f"cannot import {file}: ")
        assert sentence in told


def test_an_archive_of_garbage_ends_in_a_sentence_whatever_it_is(
    cache: Command, tmp_path: Path
) -> None:
    file = tmp_path / "garbage"
    for number in range(1, 30):
        rest = hashlib.shake_128(bytes([number])).digest(40 * number + 1)
        file.write_bytes(archive(end=length(8 * number) + rest))
        result = cache("import", str(file))
        assert isinstance(result.exception, CommandFailed | BadValuesFound)


def test_no_mutated_archive_has_anything_stored_that_was_not_exported(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    small = (MODULE, WASMER, SEALER.seal(artifact(6, 3000)))
    stored = {name_of(each): bytes_of(each) for each in small}
    good, random, file = archive(*stored.values()), Random(7), tmp_path / "mutated"
    for _ in range(60):
        changed = bytearray(good)
        for _ in range(random.randint(1, 3)):
            at, length = random.randrange(len(changed)), random.choice([0, 1, 1, 40])
            changed[at : at + length] = random.randbytes(random.choice([0, 1, 1, 40]))
        file.write_bytes(changed)
        server.flushall()
        result = cache("import", str(file))
        assert isinstance(result.exception, CommandFailed | BadValuesFound | None)
        assert values_in(server).items() <= stored.items()


def test_a_bad_first_copy_does_not_hide_the_good_one(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    server.flushall()
    value, file = VALUES[name_of(WASMTIME)], tmp_path / "twice"
    file.write_bytes(archive(flipped(value, 5), value))
    assert isinstance(cache("import", str(file)).exception, BadValuesFound)
    assert values_in(server) == {name_of(WASMTIME): value}


# ---- Beside daemons, and many values


def test_heads_of_any_length_are_read(cache: Command, server: redis.Redis, tmp_path: Path) -> None:
    many = tuple(ExternType("env", f"function {i}", "function", "()") for i in range(30_000))
    long = SEALER.seal(replace(artifact(40, 3 * CHUNK_BYTES), imports=many))
    value = bytes_of(long)
    assert len(value) - long.size_bytes > 1024**2
    put(server, long)
    [row] = cache.rows("--module", long.module_sha256)
    assert (row["trust"], row["raw_bytes"]) == ("trusted", long.size_bytes)
    assert cache.scrub()[1]["artifacts"] == 3
    file = tmp_path / "long"
    cache.good("export", "--module", long.module_sha256, str(file))
    server.flushall()
    cache.good("import", str(file))
    assert values_in(server) == {name_of(long): value}


def test_thousands_of_values_are_listed_each_once(cache: Command, server: redis.Redis) -> None:
    names = {f"wasm:3:module:{{{number:064x}}}" for number in range(3000)}
    server.mset(dict.fromkeys(names, "x" * 200))
    rows = cache.rows()
    assert len(rows) == len({row["module"] for row in rows if row["what"] == "module"}) + 2 == 3004


def between(monkeypatch: pytest.MonkeyPatch, nth: int, happens: Callable[[], object]) -> None:
    """Have something happen before the tool looks at its values for the nth time."""
    looks, count = RedisStore.look, iter(range(10**6))

    async def look(store: RedisStore, *asked: Any) -> Any:
        if next(count) == nth:
            happens()
        return await looks(store, *asked)

    monkeypatch.setattr(RedisStore, "look", look)


def test_a_value_that_is_replaced_meanwhile_is_judged_anew(
    cache: Command, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.flushall()
    name, value = name_of(WASMTIME), VALUES[name_of(WASMTIME)]
    for words in (("scrub", "--json"), ("export", "--json", str(tmp_path / "warm"))):
        server.set(name, value[:-1])
        with monkeypatch.context() as patched:
            between(patched, 1, lambda: server.set(name, value))
            assert json.loads(cache.good(*words).stdout)


def test_what_goes_meanwhile_is_nothing_bad(
    cache: Command, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        between(patched, 0, server.flushall)
        assert cache.scrub()[1]["gone"] == 4
    put(server, *ALL)
    with monkeypatch.context() as patched:
        between(patched, 0, server.flushall)
        done = cache.good("export", "--json", str(tmp_path / "warm")).stdout
    assert json.loads(done)["exported"]["gone"] == 4


# ---- Whatever is wrong


def test_whatever_is_wrong_is_one_sentence(cache: Command, tmp_path: Path) -> None:
    file = tmp_path / "warm"
    cache.good("export", str(file))
    for words, sentence in (
        (["export", f"{tmp_path}/no/where"], f"cannot write {tmp_path}/no/where: No such file"),
        (["import", f"{tmp_path}/nothing"], f"cannot import {tmp_path}/nothing: No such file"),
        (["import", str(tmp_path)], f"cannot import {tmp_path}: Is a directory"),
        (["ls", "--redis-url", "none"], "WASMKILN_REDIS_URL is none"),
        (["ls", "--redis-url", ""], "no daemon has run with the state directory"),
    ):
        assert sentence in cache.refusal(*words)
    for words in (
        *(["ls"], ["rm", "--engine", "x"], ["scrub"], ["export", "-"], ["import", str(file)]),
    ):
        url = f"unix://:hidden@{tmp_path}/nobody.sock"
        told = cache.refusal(*words, "--redis-url", url)
        assert "cannot reach Redis" in told
        assert "hidden" not in told


def test_an_outage_is_an_outage_and_no_finding(tmp_path: Path) -> None:
    with redis_server(binary_of("valkey"), tmp_path) as running:
        with redis.Redis.from_url(running.url) as client:
            put(client, *ALL)
        cache = Command(running.url, tmp_path / "state")
        killed: Callable[[], None] = running.process.kill
        with pytest.MonkeyPatch.context() as patched:
            look = RedisStore.look

            async def dies(store: RedisStore, *asked: Any) -> Any:
                found = await look(store, *asked)
                killed()
                running.process.wait()
                return found

            patched.setattr(RedisStore, "look", dies)
            told = cache.refusal("scrub")
        assert re.match(r"Redis at unix://.*: ", told)
        result = cache("ls")
        assert isinstance(result.exception, CommandFailed)


def test_a_user_who_may_little_is_enough(
    cache: Command, server: redis.Redis, valkey: RedisServer, tmp_path: Path
) -> None:
    allowed = "+set +append +renamenx +unlink +exists +getrange +strlen +scan +ttl +eval +expire"
    allowed += " +persist +sadd +srandmember"
    server.execute_command(  # type: ignore[no-untyped-call]
        "ACL", "SETUSER", "tool", "on", ">secret", "~*", "-@all", *allowed.split()
    )
    url = valkey.url.replace("unix://", "unix://tool:secret@")
    with_it = ("--redis-url", url)
    server.set(name_of(MODULE), VALUES[name_of(MODULE)][:-1])
    server.lpush(name_of(module(20)).decode(), "x")
    assert len(cache.rows(*with_it)) == 5
    findings, summary = cache.scrub(*with_it)
    assert (len(findings), summary["deleted"]) == (2, 2)
    file = tmp_path / "warm"
    cache.good("export", str(file), *with_it)
    assert removed(cache.good("rm", "--all", "--yes", "--json", *with_it))["artifacts"] == 2
    cache.good("import", str(file), *with_it)
    assert len(values_in(server)) == 3


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        (["ls", "--module", "xyz"], "expected 4 to 64 hexadecimal digits"),
        (["ls", "--namespace", "No"], "expected 1 to 63 lowercase letters"),
        (["ls", "--tier", "memory"], "'memory' is not one of 'redis', 'host_store'"),
        (["du"], "No such command 'du'"),
        (["scrub", "--recompile"], "No such option"),
    ],
)
def test_a_wrong_command_line_is_told(cache: Command, words: list[str], mistake: str) -> None:
    assert mistake in str(cache(*words).exception)


def test_the_embedded_server_is_run_for_as_long_as_it_is_needed(
    cache: Command, tmp_path: Path
) -> None:
    file, state = tmp_path / "warm", tmp_path / "state"
    cache.good("export", str(file))
    own = ("--redis-url", "")
    assert (
        "imported: artifacts=2, modules=2, stored_bytes="
        in cache.good("import", str(file), *own).stdout
    )
    assert not (state / "redis" / "valkey.sock").exists()
    assert len(cache.rows(*own)) == 4
    assert not (state / "redis" / "valkey.sock").exists()
    assert not (state / "keys").exists()
    shutil.rmtree(state)
