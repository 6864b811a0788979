"""`wasmkilnd cache` on a real server: what it prints, and how it ends."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
from click.testing import CliRunner, Result
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.cli import command
from wasmkilnd.commands.cache.session import BadValuesFound, CacheCommandFailed
from wasmkilnd.wire import CHUNK_BYTES

from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import artifact, module
from tests.doubles.shelf import stored
from tests.servers.redis_server import RedisServer, binary_of, redis_server

SEALER = sealer(OURS)
NAMES = KeyNames("wasm:")

MODULE, LARGE = module(1), module(2, CHUNK_BYTES + 10)
WASMER = SEALER.seal(artifact(3, 100, "wasmer", of=MODULE))
OLDER = artifact(4, 2 * CHUNK_BYTES + 10, "wasmtime", of=MODULE)
WASMTIME = SEALER.seal(
    replace(
        OLDER,
        spec=replace(OLDER.spec, changed_settings={"consume_fuel": "true"}),
    )
)
VALUES = {
    name: value
    for one in (MODULE, LARGE, WASMER, WASMTIME)
    for name, value in stored(one, SEALER).items()
}


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def server(valkey: RedisServer) -> Iterator[redis.Redis]:
    """The server, with the values in it and nothing else."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        for name, value in VALUES.items():
            client.set(name, value, ex=3 * 86400 + 3600 + 30)
        yield client


class Command:
    """Runs `wasmkilnd cache` in this process."""

    def __init__(self, url: str, state: Path) -> None:
        self.environ = {
            "WASMKILN_REDIS_URL": url,
            "WASMKILN_STATE_DIR": str(state),
            "WASMKILN_TRUSTED_KEYS": OURS.public.hex,
        }

    def __call__(self, *words: str, **environ: str) -> Result:
        return CliRunner().invoke(
            command, ["cache", *words], env=self.environ | environ, standalone_mode=False
        )

    def good(self, *words: str) -> Result:
        """Run it, and see that it ended well."""
        result = self(*words)
        if result.exception:
            raise result.exception
        return result

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """Return what `ls` lists."""
        return [json.loads(line) for line in self.good("ls", "--json", *words).stdout.splitlines()]

    def refusal(self, *words: str, **environ: str) -> str:
        """Run it, and return the one sentence why it did not do its work."""
        with pytest.raises(CacheCommandFailed) as failure:
            raise self(*words, **environ).exception or AssertionError
        assert "\n" not in str(failure.value)
        return str(failure.value)


@pytest.fixture
def cache(server: redis.Redis, valkey: RedisServer, tmp_path: Path) -> Iterator[Command]:
    root = logging.getLogger()
    handler, structured = signal.getsignal(signal.SIGTERM), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield Command(valkey.url, tmp_path / "state")
    # What a command sets up for its own process stays here.
    signal.signal(signal.SIGTERM, handler)
    structlog.configure(**structured)
    root.handlers[:] = handlers
    root.setLevel(level)
    assert not (tmp_path / "state").exists()  # Looking makes neither keys nor anything else.


def test_a_row_says_what_there_is_to_say(cache: Command) -> None:
    rows = cache.rows("--module", MODULE.sha256[:8])
    [row] = [row for row in rows if row["engine"] == "wasmtime-1.0"]
    [name] = [
        name for name in VALUES if NAMES.value_at(name) and row["fingerprint"].encode() in name
    ]
    assert row == {
        "what": "artifact",
        "module": MODULE.sha256,
        "fingerprint": WASMTIME.spec.fingerprint,
        "kind": "core",
        "engine": "wasmtime-1.0",
        "target": "x86_64-unknown-linux-gnu",
        "cpu": "baseline",
        "changed_settings": {"consume_fuel": "true"},
        "raw_bytes": WASMTIME.size_bytes,
        "stored_bytes": len(VALUES[name]) + CHUNK_BYTES + 10,
        "expires_in_s": row["expires_in_s"],
        "finished_on": "2023-11-14T22:13:20Z",
        "signed_by": OURS.public.id,
        "trust": "trusted",
        "unreadable": None,
    }
    assert 3 * 86400 < row["expires_in_s"] < 3 * 86400 + 3631


def test_values_are_chosen_and_sorted(cache: Command) -> None:
    whats = [row["engine"] or row["what"] for row in cache.rows("--module", MODULE.sha256)]
    assert whats == ["module", "wasmer-1.0", "wasmtime-1.0"]
    assert [row["engine"] for row in cache.rows("--engine", "wasmtime")] == ["wasmtime-1.0"]
    assert len(cache.rows("--engine", "wasmer-1.0")) == 1
    assert cache.rows("--engine", "wasm") == []
    sizes = [row["stored_bytes"] for row in cache.rows("--sort", "size")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(cache.rows("--sort", "age")) == len(cache.rows("--sort", "expiry")) == 4


def test_the_table_is_for_people(cache: Command, server: redis.Redis) -> None:
    server.set(NAMES.module("9" * 64), "\x1b[2Jwhatever it is")
    stranger = sealer(THEIRS)
    for name, value in stored(stranger.seal(artifact(8)), stranger).items():
        server.set(name, value)
    page = cache.good("ls").stdout
    assert page.splitlines()[0].split()[:3] == ["MODULE", "WHAT", "KIND"]
    assert len(page.splitlines()) == 7
    for words in (
        *(MODULE.sha256[:12], "wasmer-1.0", "consume_fuel=true", "1.0 MiB", "3 d 1 h", "never"),
        f"{THEIRS.public.id[:12]}, stranger",
        "unreadable: format: the value has another magic",
    ):
        assert words in page
    assert "\x1b" not in page


def test_sums_are_those_of_the_server(cache: Command, server: redis.Redis) -> None:
    added = json.loads(cache.good("du", "--json").stdout)
    assert added["total"]["stored_bytes"] == sum(map(len, VALUES.values()))
    assert (added["total"]["values"], added["parts"], added["orphans"]) == (4, 3, 0)
    assert [(row["what"], row["kind"], row["values"]) for row in added["values"]] == [
        ("module", "core", 2),
        ("wasmer-1.0", "core", 1),
        ("wasmtime-1.0", "core", 1),
    ]
    server.delete(NAMES.artifact(WASMTIME.key))
    server.set(NAMES.lease(WASMTIME.key), "me")
    server.set("wasm:what", "x")
    page = cache.good("du").stdout
    assert "2 of them are orphans" in page
    assert "1 leases, 0 strikes, 0 marks\n0 keys in another version's format" in page
    assert "1 unknown keys" in page


def test_a_good_scrub_says_so(cache: Command) -> None:
    result = cache.good("scrub", "--rate", "100MiB")
    assert result.stdout.startswith("2 artifacts and 2 modules are good (1.")
    assert result.stdout.count("\n") == 1


def test_a_bad_value_is_told_and_decides_the_exit(cache: Command, server: redis.Redis) -> None:
    name = NAMES.module(MODULE.sha256).decode()
    server.set(name, b"hello, whoever reads this")
    server.delete(NAMES.artifact(WASMTIME.key))
    for flags, done in ((["--dry-run"], "kept"), ([], "deleted")):
        result = cache("scrub", "--orphans-older-than", "1s", *flags)
        assert isinstance(result.exception, BadValuesFound)
        assert str(result.exception) == "bad values: 1 format"
        lines = result.stdout.splitlines()
        assert lines[0] == f"BAD ({done}) {name}: format: the value has another magic"
        assert "1 bad" in result.stdout
        assert "2 orphaned pieces" in result.stdout
    assert cache.good("scrub").stdout.startswith("1 artifacts and 1 modules are good")
    assert server.dbsize() == 3


def test_with_the_wrong_keys_nothing_is_deleted(cache: Command, server: redis.Redis) -> None:
    before = server.dbsize()
    for words in (["scrub"], ["export", "-"], ["import", "-"]):
        assert "no key is trusted here" in cache.refusal(*words, WASMKILN_TRUSTED_KEYS="")
    result = cache("scrub", WASMKILN_TRUSTED_KEYS=THEIRS.public.hex)
    assert isinstance(result.exception, BadValuesFound)
    assert "check that these are the right keys" in str(result.exception)
    assert server.dbsize() == before
    assert {row["trust"] for row in cache.rows()} == {"trusted"}


def test_an_archive_goes_out_and_comes_in(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "warm.tar"
    result = cache.good("export", str(file), "--engine", "wasmer")
    assert "exported 1 artifacts and 1 modules" in result.stdout
    assert OURS.public.hex in result.stderr
    assert file.stat().st_size < 20_000
    assert "it exists already (see --force)" in cache.refusal("export", str(file))
    assert cache.good("export", "--force", "--json", str(file)).stdout
    assert file.stat().st_size > sum(map(len, VALUES.values()))
    assert [path.name for path in tmp_path.iterdir()] == ["warm.tar"]
    assert "4 existed already, and were kept" in cache.good("import", str(file)).stdout
    server.flushall()
    assert "imported 2 artifacts and 2 modules" in cache.good("import", str(file)).stdout
    assert {name: server.get(name) for name in server.scan_iter()} == VALUES
    life = 3 * 86400 + 3600
    assert life - 60 < server.ttl(NAMES.module(MODULE.sha256)) <= life + 30
    assert all(server.ttl(name) > life + 3000 for name in server.scan_iter("wasm:part:*"))
    again = json.loads(cache.good("import", "--replace", "--json", "--ttl", "90", str(file)).stdout)
    assert again["imported"]["artifacts"] == 2
    assert server.ttl(NAMES.module(MODULE.sha256)) <= 90


def test_what_is_left_out_is_told_with_advice(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "warm.tar"
    cache.good("export", str(file))
    server.flushall()
    result = cache("import", str(file), WASMKILN_TRUSTED_KEYS=THEIRS.public.hex)
    assert isinstance(result.exception, BadValuesFound)
    assert "4 stranger; trust their key with `wasmkilnd keys trust`" in str(result.exception)
    assert result.stderr.count("left out: ") == 4
    assert OURS.public.id in result.stderr
    assert server.dbsize() == 0
    for name, value in VALUES.items():
        server.set(name, value[:-1])
    result = cache("export", "--force", str(file))
    assert isinstance(result.exception, BadValuesFound)
    assert "left out bad values: 4 truncated" in str(result.exception)


def test_a_server_that_is_full_is_told_with_what_was_done(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "warm.tar"
    cache.good("export", str(file))
    server.flushall()
    server.config_set("maxmemory", "1mb")
    try:
        told = cache.refusal("import", str(file))
    finally:
        server.config_set("maxmemory", "0")
    assert "Redis refuses: it is full: it has reached its maxmemory" in told
    assert told.endswith("0 values were imported before")


def test_values_in_another_format_are_left_out_without_blame(
    cache: Command, server: redis.Redis, tmp_path: Path
) -> None:
    name = NAMES.module(MODULE.sha256)
    server.set(name, VALUES[name][:4] + b"\x03" + VALUES[name][5:])
    result = cache.good("export", str(tmp_path / "x.tar"))
    assert "left out" in result.stderr
    assert "exported 2 artifacts and 1 modules" in result.stdout
    assert "1 in another version's format: left alone" in cache.good("scrub").stdout


def test_whatever_is_wrong_is_one_sentence(cache: Command, tmp_path: Path) -> None:
    file = tmp_path / "warm.tar"
    cache.good("export", str(file))
    (tmp_path / "cut.tar").write_bytes(file.read_bytes()[:-2000])
    (tmp_path / "nonsense").write_bytes(b"PK" * 5000)
    for words, sentence in (
        (["export", f"{tmp_path}/no/where"], f"cannot write {tmp_path}/no/where: No such file"),
        (["import", f"{tmp_path}/nothing"], f"cannot read {tmp_path}/nothing: No such file"),
        (["import", str(tmp_path)], f"cannot read {tmp_path}: Is a directory"),
        (["import", f"{tmp_path}/cut.tar"], "it is cut off; 0 values were imported before"),
        (["import", f"{tmp_path}/nonsense"], "not what `wasmkilnd cache export` writes"),
        (["ls", "--redis-url", "none"], "WASMKILN_REDIS_URL is none"),
        (["ls", "--redis-url", ""], "no daemon has run with the state directory"),
    ):
        assert sentence in cache.refusal(*words)
    for words in (["ls"], ["du"], ["scrub"], ["export", "-"], ["import", str(file)]):
        url = f"unix://:hidden@{tmp_path}/nobody.sock"
        told = cache.refusal(*words, "--redis-url", url)
        assert "cannot reach Redis" in told
        assert "hidden" not in told


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        (["ls", "--module", "xyz"], "4 to 64 lowercase hexadecimal digits"),
        (["scrub", "--rate", "fast"], "is not a size"),
        (["scrub", "--sample", "3"], "needs --recompile"),
        (["scrub", "--orphans-older-than", "long"], "is not a duration"),
        (["import", "x", "--ttl", "99999d"], "expected 1 s to 10 years"),
        (["import", "x", "--ttl", "0.5"], "expected 1 s to 10 years"),
    ],
)
def test_a_wrong_command_line_is_told(cache: Command, words: list[str], mistake: str) -> None:
    assert mistake in str(cache(*words).exception)
