"""`wasmkilnd cache`, as people run it, on what real daemons stored."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from wasmkiln import Artifact
from wasmkilnd import model, wire
from wasmkilnd.cache.value.format import HEADER_OFFSET
from wasmkilnd.model import CacheKey
from wasmkilnd.signing.private import PrivateKey
from wasmkilnd.signing.store import KeyStore
from wasmkilnd.wire import CHUNK_BYTES

from tests.contract.sealing import sealer
from tests.doubles.shelf import read, stored
from tests.e2e import wasm
from tests.e2e.daemon import TWO_ENGINES, RedisDaemon, fresh_state
from tests.e2e.processes import embedded
from tests.e2e.programs import WASMKILND, Installed
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.servers.redis_server import binary_of, redis_server

LARGE = wasm.many_functions(8000)
"""Its artifact has several pieces."""


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
    def key(self) -> PrivateKey:
        """What its daemons sign with."""
        return KeyStore(self.state / "keys").ensure()

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
        done = self("scrub", "--json", "--orphans-older-than", "1s", *words)
        assert done.returncode == code, done.stderr
        *findings, last = [json.loads(line) for line in done.stdout.splitlines()]
        return findings, last["summary"]


@dataclass(frozen=True)
class Warm:
    """What a real daemon compiled and stored."""

    made: Mapping[str, Artifact]
    values: Mapping[bytes, bytes]
    keys: Path


@pytest.fixture(scope="module")
def warm(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Warm:
    """Four artifacts and their three modules."""
    folder = tmp_path_factory.mktemp("warm")
    with redis_server(binary_of("valkey"), folder / "server") as server:
        site = Site(fresh_state(folder / "state", own_keys=True, engines=TWO_ENGINES), server.url)
        with site.daemon() as daemon, daemon.client() as client:
            made = {
                "wasmer": client.compile(wasm.adder(1), engine="wasmer"),
                "wasmtime": client.compile(wasm.adder(1), engine="wasmtime"),
                "other": client.compile(wasm.adder(2), engine="wasmtime"),
                "large": client.compile(LARGE, engine="wasmtime"),
            }
            settled(client)
        assert made["large"].header.size_bytes > 2 * CHUNK_BYTES
        with direct(site) as client:
            values = {name: value_of(client, name) for name in client.scan_iter()}
    return Warm(made, values, site.state / "keys")


@pytest.fixture
def site(warm: Warm, tmp_path: Path) -> Iterator[Site]:
    """A site with a Valkey that holds what was made, and the keys that signed it."""
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        site = Site(fresh_state(tmp_path / "site", own_keys=True, engines=TWO_ENGINES), running.url)
        shutil.copytree(warm.keys, site.state / "keys")
        refill(site, warm)
        yield site


def refill(site: Site, warm: Warm) -> None:
    """Put back all that was made."""
    with direct(site) as client:
        for name, value in warm.values.items():
            client.set(name, value, ex=7 * 24 * 3600)


@contextmanager
def direct(site: Site) -> Iterator[redis.Redis]:
    """A client that talks to a site's server directly."""
    with redis.Redis.from_url(site.url) as client:
        yield client


def value_name(artifact: Artifact) -> str:
    header = artifact.header
    return f"wasm:compiled:{{{header.module_sha256}}}:{header.fingerprint}"


def value_of(client: redis.Redis, name: str | bytes) -> bytes:
    value = client.get(name)
    assert isinstance(value, bytes)
    return value


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
        server = embedded(state_dir)["server"]
        os.kill(server, signal.SIGSTOP)
        began_s = time.monotonic()
        try:
            told = site("du")
        finally:
            os.kill(server, signal.SIGCONT)
    assert told.returncode == 1
    assert b"embedded Valkey: Redis does not answer in time" in told.stderr
    # One time-out of 10 s, where loading is given a minute.
    assert time.monotonic() - began_s < 45


def test_scrub_finds_each_kind_of_tampering(site: Site, warm: Warm) -> None:
    wasmer, wasmtime, other, large = (value_name(one) for one in warm.made.values())
    module = f"wasm:module:{{{warm.made['other'].header.module_sha256}}}"
    stranger = sealer(PrivateKey.generate())
    real = stored_artifact(site, warm, "other")

    def scrubbed_after(changes: Mapping[str, bytes]) -> dict[str, str]:
        """Tamper with values; return what scrub found, by name."""
        with direct(site) as client:
            for name, value in changes.items():
                client.set(name, value)
            findings, summary = site.scrub(3)
            assert not client.exists(*(finding["name"] for finding in findings))
        assert all(finding["deleted"] for finding in findings)
        assert summary["deleted"] == len(findings)
        refill(site, warm)
        return {finding["name"]: finding["cause"] for finding in findings}

    value = {name: warm.values[name.encode()] for name in (wasmer, wasmtime, other, module)}
    [part, *_] = sorted(name.decode() for name in warm.values if b":part:" in name)
    assert scrubbed_after(
        {
            wasmer: flipped(value[wasmer], -1),
            wasmtime: value[other],
            other: stored(stranger.seal(real), stranger)[other.encode()],
            part: flipped(warm.values[part.encode()], 1000),
            module: value[module][:-1],
        }
    ) == {
        wasmer: "digest",
        wasmtime: "wrong_key",
        other: "stranger",
        large: "digest",
        module: "truncated",
    }
    assert scrubbed_after(
        {
            wasmer: flipped(value[wasmer], HEADER_OFFSET - 9),
            wasmtime: flipped(value[wasmtime], 300),
            other: stored(real, stranger)[other.encode()],
            module: b"hello",
        }
    ) == {wasmer: "mismatch", wasmtime: "digest", other: "stranger", module: "format"}
    with direct(site) as client:
        client.delete(part)
    assert [finding["cause"] for finding in site.scrub(3)[0]] == ["incomplete"]
    done = site("scrub", "--orphans-older-than", "1s")
    assert done.returncode == 0
    assert b"3 artifacts and 3 modules are good" in done.stdout


def stored_artifact(site: Site, warm: Warm, which: str) -> model.Artifact:
    """Return what a daemon reads of one of the values."""
    header = warm.made[which].header
    key = CacheKey(header.module_sha256, header.fingerprint)
    found, _ = read(warm.values, key, sealer(site.key))
    assert isinstance(found, model.Artifact)
    return found


def flipped(value: bytes, at: int) -> bytes:
    changed = bytearray(value)
    changed[at] ^= 1
    return bytes(changed)


def test_recompiling_finds_code_that_a_trusted_key_signed_and_no_engine_made(
    site: Site, warm: Warm
) -> None:
    sample = site.scrub(0, "--recompile", "--sample", "3")[1]["recompiled"]
    assert sample == {"same": 3, "other": 0, "unchecked": {}}
    thief, code = sealer(site.key), warm.made["other"].bytes
    evil = replace(
        stored_artifact(site, warm, "wasmtime"),
        sha256=warm.made["other"].header.artifact_sha256,
        size_bytes=len(code),
        frames=wire.to_frames(code),
    )
    # And one that names a level at which nobody would look for it.
    honest = stored_artifact(site, warm, "wasmer")
    hidden = replace(honest, spec=replace(honest.spec, cpu="baseline"))
    names = {value_name(warm.made[which]) for which in ("wasmtime", "wasmer")}
    with direct(site) as client:
        for lie in (evil, hidden):
            for name, value in stored(thief.seal(lie), thief).items():
                client.set(name, value, ex=1000)
    assert site.scrub(0)[1]["artifacts"] == 4  # To a daemon, they are as good as any.
    findings, summary = site.scrub(3, "--recompile")
    assert {finding["name"] for finding in findings} == names
    assert all(finding["cause"] == "other_code" for finding in findings)
    assert all(site.key.public.id in finding["why"] for finding in findings)
    assert (summary["artifacts"], summary["bad"]) == (2, {"other_code": 2})
    assert summary["recompiled"] == {"same": 2, "other": 2, "unchecked": {}}
    with site.daemon() as daemon, daemon.client() as caller:
        again = caller.compile(wasm.adder(1), engine="wasmtime")
        assert (again.header.origin, again.bytes) == (COMPILED, warm.made["wasmtime"].bytes)


def test_what_cannot_be_compiled_again_here_is_counted_with_the_reason(
    site: Site, warm: Warm, engines: Installed, tmp_path: Path
) -> None:
    with direct(site) as client:
        client.delete(f"wasm:module:{{{warm.made['other'].header.module_sha256}}}")
    fewer = tmp_path / "fewer"
    (fewer / "engines").mkdir(parents=True)
    for engine in engines:
        if engine.name == "wasmtime":
            (fewer / "engines" / engine.path.name).symlink_to(engine.path)
    (fewer / "keys").symlink_to(site.state / "keys")
    recompiled = Site(fewer, site.url).scrub(0, "--recompile")[1]["recompiled"]
    assert recompiled["same"] == 2
    assert recompiled["unchecked"] == {
        "wasmer-1.1.0 is not installed here": 1,
        "its module is not in the cache": 1,
    }


def test_a_warm_cache_moves_to_another_site(
    site: Site, warm: Warm, engines: Installed, tmp_path: Path
) -> None:
    file = tmp_path / "warm.tar"
    done = site("export", str(file))
    assert done.returncode == 0, done.stderr
    assert b"exported 4 artifacts and 3 modules" in done.stdout
    public = site.key.public.hex
    assert public.encode() in done.stderr
    there = Site(fresh_state(tmp_path / "there", own_keys=True, engines=TWO_ENGINES))
    own = there.key.public
    refused = there("import", str(file))
    assert refused.returncode == 3
    assert b"7 stranger" in refused.stderr
    assert b"wasmkilnd keys trust" in refused.stderr
    assert site.key.public.id.encode() in refused.stderr
    KeyStore(there.state / "keys").trust(site.key.public)
    done = there("import", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["imported"]["artifacts"] == 4
    assert {row["signed_by"] for row in there.rows()} == {site.key.public.id} != {own.id}
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
    folder = tmp_path / "out"
    folder.mkdir()
    for number in (signal.SIGINT, signal.SIGTERM):
        running = begin(site, "export", str(folder / "x.tar"), "--rate", "10KB")
        wait_until(lambda: list(folder.glob(".x.tar.*.tmp")))
        time.sleep(0.1)
        running.send_signal(number)
        assert running.wait(120) == 130
        assert list(folder.iterdir()) == []


def test_an_interrupted_import_leaves_whole_values_only(
    site: Site, engines: Installed, tmp_path: Path
) -> None:
    file = tmp_path / "warm.tar"
    assert site("export", str(file)).returncode == 0
    with redis_server(binary_of("valkey"), tmp_path / "second") as second:
        there = Site(site.state, second.url)
        running = begin(there, "import", str(file), "--rate", "500KB")
        with direct(there) as client:
            wait_until(lambda: list(client.scan_iter("wasm:part:*")))
            running.send_signal(signal.SIGINT)
            assert running.wait(120) == 130
            names = [name.decode() for name in client.scan_iter()]
        assert any(":part:" in name for name in names)
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


def test_a_terminal_shows_progress_and_the_time_left(site: Site) -> None:
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        site.command("cache", "scrub", "--rate", "300KB"),
        env=site.clean({"TERM": "xterm", "COLUMNS": "100"}),
        stdout=subprocess.PIPE,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    assert running.stdout
    answer = running.stdout.read()
    assert running.wait(120) == 0
    running.stdout.close()
    assert b"verifying" in shown
    assert b"/7" in shown
    assert b"0:00:0" in shown
    assert answer.startswith(b"4 artifacts and 3 modules are good")


def test_an_export_whose_reader_is_gone_has_failed(site: Site) -> None:
    running = begin(site, "export", "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout
    running.stdout.close()
    _, told = running.communicate(timeout=60)
    assert (running.returncode, told) == (
        1,
        b"error: cannot write to standard output: Broken pipe\n",
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
