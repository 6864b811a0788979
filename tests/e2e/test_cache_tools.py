"""`wasmkilnd cache`, as people run it, on what real daemons stored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from wasmkiln import Artifact

from tests.e2e import wasm
from tests.e2e.daemon import TWO_ENGINES, RedisDaemon, fresh_state
from tests.e2e.processes import embedded
from tests.e2e.programs import WASMKILND, Installed
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import flipped, names_of, value_of
from tests.e2e.test_cache import REDIS, settled
from tests.servers.redis_server import binary_of, redis_server

LARGE = wasm.many_functions(8000)
"""Its artifact is large."""


@dataclass
class Site:
    """A state directory, and the server that its daemons use, if not the embedded one."""

    state: Path
    url: str = ""

    @property
    def environ(self) -> dict[str, str]:
        """The variables that daemons and tools of this site need."""
        return {"WASMKILN_STATE_DIR": str(self.state)} | (
            {"WASMKILN_REDIS_URL": self.url} if self.url else {}
        )

    @property
    def keys(self) -> KeyDirectory:
        """What its daemons sign with, and whom they trust."""
        return KeyDirectory.of(self.state)

    def daemon(self) -> RedisDaemon:
        """Return a daemon that runs."""
        return RedisDaemon(self.state, environ=self.environ)

    def command(self, *words: str) -> list[str]:
        """Return a command line."""
        return [WASMKILND, *words]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run `wasmkilnd cache`."""
        return subprocess.run(
            self.command("cache", *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.clean(),
            timeout=120,
            check=False,
        )

    def clean(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return an environment without the variables of the user who runs the tests."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WASMKILN_")}
        return {**inherited, **self.environ, **(environ or {})}

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """Return what `ls` lists."""
        done = self("ls", "--json", *words)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def scrub(self, code: int, *words: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Scrub; return what was found, and the summary."""
        done = self("scrub", "--json", *words)
        assert done.returncode == code, done.stderr
        *findings, last = [json.loads(line) for line in done.stdout.splitlines()]
        return sorted(findings, key=lambda each: str(each["name"])), last["summary"]


@dataclass(frozen=True)
class Warm:
    """What a real daemon compiled and stored."""

    made: Mapping[str, Artifact]
    values: Mapping[bytes, bytes]
    """Each key of its Redis as DUMP returns it."""
    name: Mapping[str, bytes]
    """The name of the value of each artifact, and of a module."""
    keys: Path


@pytest.fixture(scope="module")
def warm(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Warm:
    """Four artifacts and their three modules."""
    return made_in(tmp_path_factory.mktemp("warm"))


def made_in(folder: Path) -> Warm:
    """Have a daemon compile and store in ``folder``; return what it made."""
    with redis_server(binary_of("valkey"), folder / "server") as server:
        site = Site(fresh_state(folder / "state", own_keys=True, engines=TWO_ENGINES), server.url)
        made: dict[str, Artifact] = {}
        name: dict[str, bytes] = {}
        with site.daemon() as daemon, daemon.client() as client, direct(site) as redis_client:

            def compiled(what: str, module: bytes, engine: str) -> None:
                before = names_of(redis_client, wasm.digest(module))
                made[what] = client.compile(module, engine=engine)
                settled(client)
                if what != "large":
                    [name[what]] = names_of(redis_client, wasm.digest(module)) - before

            client.load(wasm.adder(1))
            client.load(wasm.adder(2))
            settled(client)
            [name["module"]] = names_of(redis_client, wasm.digest(wasm.adder(2)))
            compiled("wasmer", wasm.adder(1), "wasmer")
            compiled("wasmtime", wasm.adder(1), "wasmtime")
            compiled("other", wasm.adder(2), "wasmtime")
            compiled("large", LARGE, "wasmtime")
            values = {each: dumped(redis_client, each) for each in redis_client.scan_iter()}
        assert made["large"].header.size_bytes > 2**20
    return Warm(made, values, name, site.state / "keys")


def dumped(client: redis.Redis, name: bytes) -> bytes:
    value = client.dump(name)
    assert value
    return value


@pytest.fixture
def site(warm: Warm, tmp_path: Path) -> Iterator[Site]:
    """A site with a Valkey that holds what was made, and the keys that signed it."""
    with filled(tmp_path, warm) as site:
        yield site


@contextmanager
def filled(folder: Path, warm: Warm) -> Iterator[Site]:
    """Run a Valkey that holds what was made; return a site with the keys that signed it."""
    with redis_server(binary_of("valkey"), folder / "server") as running:
        site = Site(fresh_state(folder / "site", own_keys=True, engines=TWO_ENGINES), running.url)
        shutil.copytree(warm.keys, site.state / "keys")
        refill(site, warm)
        yield site


def refill(site: Site, warm: Warm) -> None:
    """Put back all that was made."""
    with direct(site) as client:
        for name, value in warm.values.items():
            client.restore(name, 7 * 24 * 3600 * 1000, value, replace=True)


@contextmanager
def direct(site: Site) -> Iterator[redis.Redis]:
    """A client that talks to a site's server directly."""
    with redis.Redis.from_url(site.url) as client:
        yield client


def test_the_embedded_cache_is_seen_whether_a_daemon_runs_or_not(state_dir: Path) -> None:
    site = Site(state_dir)
    never = site("ls")
    assert never.returncode == 1
    assert b"no daemon has run with the state directory" in never.stderr
    assert not (state_dir / "redis").exists()
    with site.daemon() as daemon, daemon.client() as client:
        for engine in ("wasmer", "wasmtime"):
            client.compile(wasm.adder(1), engine=engine)
        client.compile(wasm.adder(1), engine="wasmtime", settings={"consume_fuel": "true"})
        settled(client)
        beside = site.rows()
        assert client.stats().redis_up
    alone = site.rows()
    for row in beside + alone:
        row.pop("expires_in_s")
    assert beside == alone
    assert [row["what"] for row in alone] == ["module", "artifact", "artifact", "artifact"]
    assert [row["engine"] for row in alone] == [
        *(None, "wasmer-1.1.0", "wasmtime-50.0.1", "wasmtime-50.0.1"),
    ]
    assert {"consume_fuel": "true"} in [row["changed_settings"] for row in alone]
    assert {row["trust"] for row in alone} == {"trusted"}
    assert not (state_dir / "redis" / "valkey.sock").exists()  # As it was found: not running.
    with site.daemon() as daemon, daemon.client() as client:
        assert client.compile(wasm.adder(1), engine="wasmtime").header.origin == REDIS


def test_an_embedded_server_that_hangs_is_not_waited_for_as_one_that_loads(
    state_dir: Path,
) -> None:
    site = Site(state_dir)
    with site.daemon():
        server = embedded(state_dir)
        os.kill(server, signal.SIGSTOP)
        began_s = time.monotonic()
        try:
            told = site("ls")
        finally:
            os.kill(server, signal.SIGCONT)
    assert told.returncode == 1
    assert b"embedded Valkey: Redis does not answer in time" in told.stderr
    # One time-out of 10 s, where loading is given a minute.
    assert time.monotonic() - began_s < 45


def test_scrub_finds_each_kind_of_tampering(site: Site, warm: Warm, tmp_path: Path) -> None:
    wasmer, wasmtime, other, module = (
        warm.name[what] for what in ("wasmer", "wasmtime", "other", "module")
    )
    stranger = Site(
        fresh_state(tmp_path / "stranger", own_keys=True, engines=TWO_ENGINES), site.url
    )
    with (
        RedisDaemon(stranger.state, ("--redis-prefix", "theirs:"), stranger.environ) as daemon,
        daemon.client() as client,
    ):
        client.compile(wasm.adder(2), engine="wasmtime")
        settled(client)
    with direct(site) as server:
        value = {name: value_of(server, name) for name in (wasmer, wasmtime, other, module)}
        theirs = value_of(server, other.replace(b"wasm:", b"theirs:", 1))

    def scrubbed_after(changes: Mapping[bytes, bytes]) -> dict[bytes, str]:
        """Tamper with values; return what scrub found, by name."""
        with direct(site) as client:
            for name, value in changes.items():
                client.set(name, value)
            findings, summary = site.scrub(3)
            assert not client.exists(*changes)
        assert all(finding["deleted"] for finding in findings)
        assert summary["deleted"] == len(findings) == sum(summary["bad"].values())
        refill(site, warm)
        return {finding["name"].encode(): finding["cause"] for finding in findings}

    found = scrubbed_after(
        {
            wasmer: flipped(value[wasmer], -1),
            wasmtime: value[other],
            other: theirs,
            module: value[module][:-1],
        }
    )
    assert found.keys() == {wasmer, wasmtime, other, module}
    assert (found[wasmtime], found[other]) == ("wrong_key", "stranger")
    half = len(value[wasmtime]) // 2
    damaged = {
        wasmer: flipped(value[wasmer], 9),
        wasmtime: flipped(value[wasmtime], half),
        other: value[other] + b"x",
        module: b"hello",
    }
    assert scrubbed_after(damaged).keys() == damaged.keys()
    with direct(site) as server:
        server.set(module, b"hello")
        [found_only], summary = site.scrub(3, "--dry-run")
        assert (found_only["name"].encode(), found_only["deleted"]) == (module, False)
        assert summary["deleted"] == 0
        assert server.get(module) == b"hello"
    refill(site, warm)
    done = site("scrub")
    assert done.returncode == 0
    assert done.stdout.startswith(b"summary: artifacts=4, modules=3, bytes_read=")


def test_values_are_chosen_sorted_and_added_up(site: Site, warm: Warm) -> None:
    """The answers are about what users know: modules, engines, sizes, keys."""
    rows = site.rows()
    assert [row["module"] for row in rows] == sorted(row["module"] for row in rows)
    assert {row["signed_by"] for row in rows} == {site.keys.public.id}
    artifacts = {
        (row["module"], row["engine"]): row["raw_bytes"]
        for row in rows
        if row["what"] == "artifact"
    }
    assert artifacts == {
        (made.header.module_sha256, made.header.engine.id): made.header.size_bytes
        for made in warm.made.values()
    }
    modules = {row["module"]: row["raw_bytes"] for row in rows if row["what"] == "module"}
    sent = (wasm.adder(1), wasm.adder(2), LARGE)
    assert modules == {wasm.digest(module): len(module) for module in sent}
    first = wasm.digest(wasm.adder(1))
    chosen = site.rows("--module", first[:10], "--engine", "wasmtime")
    assert [(row["module"], row["engine"]) for row in chosen] == [(first, "wasmtime-50.0.1")]
    done = site("ls", "--totals", "--json")
    assert done.returncode == 0, done.stderr
    total = json.loads(done.stdout)["total"]
    assert total["values"] == 7
    assert total["raw_bytes"] == sum(row["raw_bytes"] for row in rows)
    assert total["stored_bytes"] == sum(row["stored_bytes"] for row in rows)


def test_what_is_chosen_is_removed_and_pins_stay(
    site: Site, warm: Warm, engines: Installed
) -> None:
    first, other = wasm.digest(wasm.adder(1)), wasm.digest(wasm.adder(2))
    with site.daemon() as daemon, daemon.client() as client:
        client.pin(other)
        wait_until(lambda: {row["expires_in_s"] for row in site.rows("--module", other)} == {None})
    done = site("rm", "--engine", "wasmer", "--json")
    assert json.loads(done.stdout)["removed"]["artifacts"] == 1
    assert not site.rows("--engine", "wasmer")
    assert b"removed: artifacts=1, modules=1, bytes=" in site("rm", "--module", first[:12]).stdout
    assert not site.rows("--module", first)
    assert site("rm", "--all").returncode == 2
    done = site("rm", "--all", "--yes", "--json")
    gone = json.loads(done.stdout)["removed"]
    assert (gone["artifacts"], gone["modules"], gone["pinned"]) == (1, 1, 2)
    assert {row["module"] for row in site.rows()} == {other}
    assert site("rm", "--module", other, "--pinned").returncode == 0
    assert site.rows() == []


def test_a_wrong_command_line_has_its_exit_code(site: Site) -> None:
    done = site("ls", "--tier", "colour")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    done = site("import", str(site.state / "nothing.tar"))
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


def test_a_scrub_with_the_wrong_keys_deletes_nothing(site: Site, tmp_path: Path) -> None:
    lost = Site(fresh_state(tmp_path / "lost", own_keys=True, engines=TWO_ENGINES), site.url)
    assert lost.keys.pair()
    findings, _ = lost.scrub(3)
    assert len(findings) == 7
    assert {(each["cause"], each["deleted"]) for each in findings} == {("stranger", False)}
    assert site.scrub(0)[1]["artifacts"] == 4


def test_a_damaged_value_is_not_exported(site: Site, warm: Warm, tmp_path: Path) -> None:
    file = tmp_path / "warm.tar"
    with direct(site) as client:
        for name in names_of(client, wasm.digest(LARGE)):
            client.set(name, flipped(value_of(client, name), -1))
    done = site("export", str(file), "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["exported"]["artifacts"] == 3
    there = Site(fresh_state(tmp_path / "there", own_keys=True, engines=TWO_ENGINES))
    (there.state / "keys").symlink_to(site.state / "keys")
    done = there("import", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert wasm.digest(LARGE) not in {row["module"] for row in there.rows()}


def test_a_warm_cache_moves_to_another_site(
    site: Site, warm: Warm, engines: Installed, tmp_path: Path
) -> None:
    file = tmp_path / "warm.tar"
    done = site("export", str(file))
    assert done.returncode == 0, done.stderr
    assert b"exported: artifacts=4, modules=3, " in done.stdout
    public = site.keys.public.hex
    assert public.encode() in done.stderr
    there = Site(fresh_state(tmp_path / "there", own_keys=True, engines=TWO_ENGINES))
    own = there.keys.public
    refused = there("import", str(file))
    assert refused.returncode == 3
    assert b"7 stranger" in refused.stderr
    assert b"wasmkilnd keys trust" in refused.stderr
    assert site.keys.public.id.encode() in refused.stderr
    there.keys.run("trust", site.keys.public.hex)
    done = there("import", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["imported"]["artifacts"] == 4
    assert {row["signed_by"] for row in there.rows()} == {site.keys.public.id} != {own.id}
    with there.daemon() as daemon, daemon.client() as client:
        for name, code in (("wasmer", 1), ("wasmtime", 1), ("other", 2)):
            engine = "wasmer" if name == "wasmer" else "wasmtime"
            served = client.compile(wasm.adder(code), engine=engine)
            assert (served.header.origin, served.bytes) == (REDIS, warm.made[name].bytes)
        # The modules came along: nothing has to be uploaded for another level.
        digest = warm.made["other"].header.module_sha256
        assert client.compile(digest, engine="wasmtime", cpu="baseline").header.size_bytes


def test_a_cache_moves_through_a_pipe(site: Site, warm: Warm, tmp_path: Path) -> None:
    there = Site(fresh_state(tmp_path / "there", own_keys=True, engines=TWO_ENGINES))
    (there.state / "keys").symlink_to(site.state / "keys")
    take = begin(site, "export", "-", "--engine", "wasmer", stdout=subprocess.PIPE)
    put = begin(there, "import", "-", stdin=take.stdout)
    assert take.stdout
    take.stdout.close()
    assert (take.wait(60), put.wait(60)) == (0, 0)
    digest = warm.made["wasmer"].header.module_sha256
    assert [(row["what"], row["module"]) for row in there.rows()] == [
        ("module", digest),
        ("artifact", digest),
    ]


def test_without_a_server_one_sentence_says_so(site: Site, tmp_path: Path) -> None:
    nobody = Site(site.state, f"unix://:hidden@{tmp_path}/nobody.sock")
    done = nobody("export", str(tmp_path / "x.tar"))
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"error: Redis at unix://")
    assert b"cannot reach Redis" in done.stderr
    assert b"hidden" not in done.stderr
    assert not (tmp_path / "x.tar").exists()


def test_an_interrupted_export_leaves_no_file(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "x.tar"
    with direct(site) as client:
        server: int = client.info()["process_id"]
    os.kill(server, signal.SIGSTOP)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            running = begin(site, "export", str(file))
            wait_until(file.exists)
            running.send_signal(number)
            assert running.wait(60) == 130
            assert not file.exists()
    finally:
        os.kill(server, signal.SIGCONT)


def test_an_interrupted_import_leaves_whole_values_only(
    site: Site, engines: Installed, tmp_path: Path
) -> None:
    file = tmp_path / "warm.tar"
    assert site("export", str(file)).returncode == 0
    with redis_server(binary_of("valkey"), tmp_path / "second") as second:
        there = Site(site.state, second.url)
        running = begin(there, "import", "-", stdin=subprocess.PIPE)
        assert running.stdin
        with direct(there) as client:
            # The last value is not whole, and the rest of it never comes.
            running.stdin.write(file.read_bytes()[:-1000])
            running.stdin.flush()
            wait_until(client.dbsize)
            running.send_signal(signal.SIGINT)
            assert running.wait(120) == 130
            running.stdin.close()
            assert client.dbsize()
        assert there.scrub(0)[1]["bad"] == {}
        assert there("import", str(file)).returncode == 0
        assert there.scrub(0)[1]["artifacts"] == 4


def begin(site: Site, *words: str, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        site.command("cache", *words),
        env=site.clean(),
        **{
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            **streams,
        },
    )


def wait_until(happened: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_export_whose_reader_is_gone_has_failed(site: Site) -> None:
    running = begin(site, "export", "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout
    running.stdout.close()
    _, told = running.communicate(timeout=60)
    assert (running.returncode, told) == (
        1,
        b"error: cannot write -: Broken pipe\n",
    )


def test_whoever_reads_enough_may_stop(site: Site) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{' '.join(site.command('cache', 'ls', '--json'))} | head -c 10"],
        env=site.clean(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == b""
