"""`wasmkilnd cache`, as people run it, on what real daemons stored."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from wasmkiln import Artifact

from tests.architecture.imports import ROOT
from tests.e2e import wasm
from tests.e2e.console import Shell
from tests.e2e.daemon import TWO_ENGINES, RedisDaemon, fresh_state
from tests.e2e.processes import embedded, eventually
from tests.e2e.programs import WASMKILND, Installed, without_settings
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import flipped, names_of, value_of
from tests.e2e.test_cache import REDIS, settled
from tests.faults.proxy import Line, Proxy
from tests.servers.redis_server import binary_of, redis_server

ONE, TWO = wasm.adder(1), wasm.adder(2)
LARGE = wasm.many_functions(8000)
"""Its artifact is large."""
MADE = ((ONE, "wasmer"), (ONE, "wasmtime"), (TWO, "wasmtime"), (LARGE, "wasmtime"))


@dataclass
class Site:
    """A state directory, and the server that its daemons use, if not the embedded one."""

    state: Path
    url: str = ""

    @property
    def environ(self) -> dict[str, str]:
        """The environment of daemons and tools, without what the user of the tests has set."""
        url = {"WASMKILN_REDIS_URL": self.url} if self.url else {}
        return {**without_settings(), **url, "WASMKILN_STATE_DIR": str(self.state)}

    @property
    def keys(self) -> KeyDirectory:
        """What its daemons sign with, and whom they trust."""
        return KeyDirectory.of(self.state)

    def daemon(self, *flags: str) -> RedisDaemon:
        """Return a daemon that runs."""
        return RedisDaemon(self.state, flags, self.environ)

    def begin(self, *words: str, **streams: Any) -> subprocess.Popen[bytes]:
        """Start `wasmkilnd cache`."""
        nothing = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        command = [WASMKILND, "cache", *words]
        return subprocess.Popen(command, env=self.environ, **{**nothing, **streams})

    def __call__(self, code: int, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run `wasmkilnd cache`, which has to end with ``code``."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.begin(*words, **pipes) as running:
            told = running.communicate(timeout=120)
        assert running.returncode == code, told
        return subprocess.CompletedProcess(running.args, running.returncode, *told)

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """Return what `ls` lists."""
        return [json.loads(line) for line in self(0, "ls", "--json", *words).stdout.splitlines()]

    def scrub(self, code: int, *words: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Scrub; return what was found, and the summary."""
        told = self(code, "scrub", "--json", *words).stdout
        *findings, last = [json.loads(line) for line in told.splitlines()]
        return findings, last["summary"]

    def direct(self) -> redis.Redis:
        """Return a client of the server; the caller closes it."""
        return redis.Redis.from_url(self.url)


@dataclass(frozen=True)
class Warm:
    """What a real daemon compiled and stored: four artifacts and their three modules."""

    site: Site
    made: Mapping[tuple[bytes, str], Artifact]
    dumps: Mapping[bytes, bytes]
    """Each key of its Redis as DUMP returns it."""

    def refill(self) -> None:
        """Leave in the server what was made, and nothing else."""
        with self.site.direct() as client:
            client.flushall()
            for name, value in self.dumps.items():
                client.restore(name, 7 * 24 * 3600 * 1000, value, replace=True)


@pytest.fixture(scope="module")
def warm(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    folder = tmp_path_factory.mktemp("warm")
    with redis_server(binary_of("valkey"), folder / "server") as server:
        site = Site(fresh_state(folder / "state", own_keys=True, engines=TWO_ENGINES), server.url)
        made: dict[tuple[bytes, str], Artifact] = {}
        with site.daemon() as daemon, daemon.client() as client, site.direct() as direct:
            for module, engine in MADE:
                made[module, engine] = client.compile(module, engine=engine)
            settled(client)
            dumps = {each: direct.dump(each) or b"" for each in direct.scan_iter()}
        assert made[LARGE, "wasmtime"].header.size_bytes > 2**20
        yield Warm(site, made, dumps)


@pytest.fixture
def site(warm: Warm) -> Site:
    """A site with a Valkey that holds what was made, and the keys that signed it."""
    warm.refill()
    return warm.site


def test_the_embedded_cache_is_seen_whether_a_daemon_runs_or_not(state_dir: Path) -> None:
    site = Site(state_dir)
    assert b"no daemon has run with the state directory" in site(1, "ls").stderr
    assert not (state_dir / "redis").exists()
    with site.daemon() as daemon, daemon.client() as client:
        for engine in ("wasmer", "wasmtime"):
            client.compile(ONE, engine=engine)
        client.compile(ONE, engine="wasmtime", settings={"consume_fuel": "true"})
        settled(client)
        beside = site.rows()
        server = embedded(state_dir)
        os.kill(server, signal.SIGSTOP)
        began_s = time.monotonic()
        try:
            told = site(1, "ls").stderr
        finally:
            os.kill(server, signal.SIGCONT)
        # One time-out of 10 s, where loading is given a minute.
        assert b"embedded Valkey: Redis does not answer in time" in told
        assert time.monotonic() - began_s < 45
    alone = site.rows()
    for row in beside + alone:
        row.pop("expires_in_s")
    assert beside == alone
    assert [(row["what"], row["engine"]) for row in alone] == [
        ("module", None),
        *(("artifact", engine) for engine in ("wasmer-1.1.0", *["wasmtime-50.0.1"] * 2)),
    ]
    assert {"consume_fuel": "true"} in [row["changed_settings"] for row in alone]
    assert {row["trust"] for row in alone} == {"trusted"}
    assert not (state_dir / "redis" / "valkey.sock").exists()  # As it was found: not running.
    with site.daemon() as daemon, daemon.client() as client:
        assert client.compile(ONE, engine="wasmtime").header.origin == REDIS


PAGE = (ROOT / "docs" / "how-to" / "cache.md").read_text()


def shell_at(site: Site, there: Site, folder: Path) -> Shell:
    """Return a terminal at a site, where `ssh there` runs in a folder ``far`` of the other one."""
    ssh, far = folder / "bin" / "ssh", folder / "far"
    for each in (ssh.parent, far):
        each.mkdir()
    state = f"WASMKILN_STATE_DIR={there.state}"
    ssh.write_text(f'#!/bin/sh\nshift; cd {far}; exec env -u WASMKILN_REDIS_URL {state} sh -c "$*"')
    ssh.chmod(0o755)
    path = f"{ssh.parent}:{Path(WASMKILND).parent}:{os.environ['PATH']}"
    return Shell(folder, {**site.environ, "PATH": path})


def test_a_warm_cache_moves_to_another_site(site: Site, warm: Warm, tmp_path: Path) -> None:
    """As docs/how-to/cache.md shows it, and once more without what is damaged."""
    there = Site(fresh_state(tmp_path / "there", own_keys=True, engines=TWO_ENGINES))
    own, far = there.keys.public, (tmp_path / "far" / "warm").as_uri()
    [block] = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    export, pipe, trust, move_in = block.strip().replace("\\\n", "").split("\n")
    shell = shell_at(site, there, tmp_path)
    told = shell.run(export)
    assert "exported: artifacts=4, modules=3, " in told
    assert site.keys.public.hex in told
    assert shell.run(pipe) == ""
    refused = there(3, "import", far).stderr
    for words in (b"7 stranger", b"wasmkilnd keys trust", site.keys.public.id.encode()):
        assert words in refused
    shell.run(trust.replace("PUBLIC_KEY", site.keys.public.hex))
    with site.direct() as client:
        damaged = names_of(client, wasm.digest(TWO))
        for name in damaged:
            client.set(name, flipped(value_of(client, name), -1))
    part = tmp_path / "part"
    part.mkdir()
    site(3, "export", part.as_uri(), "--engine", "wasmtime")
    there(0, "import", part.as_uri())
    assert {(row["what"], row["module"]) for row in there.rows()} == {
        (what, wasm.digest(made)) for what in ("module", "artifact") for made in (ONE, LARGE)
    }
    findings, summary = site.scrub(3)
    assert {each["name"].encode() for each in findings} == damaged
    assert summary["deleted"] == 2
    assert "imported: artifacts=2, modules=1, " in shell.run(move_in)
    assert b"kept=7" in there(0, "import", far).stdout
    assert {row["signed_by"] for row in there.rows()} == {site.keys.public.id} != {own.id}
    with there.daemon() as daemon, daemon.client() as client:
        for module, engine in MADE[:3]:
            served = client.compile(module, engine=engine)
            made = warm.made[module, engine]
            assert (served.header.origin, served.bytes) == (REDIS, made.bytes)
        # The modules came along: nothing has to be uploaded for another level.
        made = client.compile(wasm.digest(TWO), engine="wasmtime", cpu="baseline")
        assert made.header.size_bytes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_whole_values_and_goes_on(
    site: Site, tmp_path: Path, number: signal.Signals
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with behind(site) as (slow, proxy):
        # What is small comes at once, and what is large does not.
        proxy.set(Line(bytes_per_s=50_000))
        running = slow.begin("export", store.as_uri())
        eventually(lambda: files_in(store), "the export does not begin")
        running.send_signal(number)
        assert running.wait(60) == 130
    assert 0 < len(files_in(store)) < 7
    where = ("--tier", "object_store", "--object-store-url", store.as_uri())
    assert site.scrub(0, *where)[1]["bad"] == {}
    site(0, "export", store.as_uri())
    assert site.scrub(0, *where)[1]["artifacts"] == 4


def test_an_interrupted_import_leaves_whole_values_only(site: Site, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    site(0, "export", store.as_uri())
    with site.direct() as client, behind(site) as (slow, proxy):
        client.flushall()
        # The last value is not whole, and the rest of it never comes.
        size_bytes = sum(path.stat().st_size for path in files_in(store))
        proxy.set(Line(stall_after_sent_bytes=size_bytes - 1000))
        running = slow.begin("import", store.as_uri())
        eventually(client.dbsize, "the import does not begin")
        running.send_signal(signal.SIGINT)
        assert running.wait(120) == 130
        assert client.dbsize()
    assert site.scrub(0)[1]["bad"] == {}
    site(0, "import", store.as_uri())
    assert site.scrub(0)[1]["artifacts"] == 4


def files_in(folder: Path) -> list[Path]:
    """Return the values in a directory."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]


@contextlib.contextmanager
def behind(site: Site) -> Iterator[tuple[Site, Proxy]]:
    """Yield the site with its server behind a proxy."""
    with site.direct() as client:
        socket = Path(client.config_get("unixsocket")["unixsocket"])
    with Proxy(socket) as proxy:
        yield Site(site.state, f"redis://127.0.0.1:{proxy.port}"), proxy


def test_a_list_whose_reader_is_gone_has_not_failed(site: Site) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{WASMKILND} cache ls --json | head -c 10"],
        env=site.environ,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == b""
