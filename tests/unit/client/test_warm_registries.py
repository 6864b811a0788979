"""`wasmkiln warm oci://…` with registries that lie, ask for tokens, redirect, and hang."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from wasmkiln.cli import oci
from wasmkiln.cli.app import Exit, app

from tests.authority import Authority
from tests.oci import MANIFEST, Image, descriptor
from tests.unit.client.fake_daemon import FakeDaemon

# Answers a request; one that returns False lets the truth be told.
Lie = Callable[[BaseHTTPRequestHandler], bool | None]

MODULE = b"\0asm\x01\0\0\0module"
SHA256 = hashlib.sha256(MODULE).hexdigest()
IMAGE = Image.wash(MODULE)
BLOB = f"/v2/acme/app/blobs/sha256:{SHA256}"
PASSWORD = "do-not-show-this"
BASIC = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
NOT_ASKED = "is not reached over https: not asked"


class Registry(ThreadingHTTPServer):
    """Serves one image under any repository and tag; `lies` may answer instead."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.host = f"127.0.0.1:{self.server_port}"
        # By what a path contains.
        self.lies: dict[str, Lie] = {}
        # The path and the Authorization of each request.
        self.seen: list[tuple[str, str | None]] = []
        self.over = threading.Event()
        self.connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        """Keep the connection: what came too late for the command still reads from it."""
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def handle_error(self, *_: object) -> None:
        """Say nothing: a caller who ends a handshake would seem to have a traceback."""


class _Handler(BaseHTTPRequestHandler):
    server: Registry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        truth = send(200, MODULE) if self.path.endswith(SHA256) else send(200, IMAGE.content)
        try:
            for part, lie in self.server.lies.items():
                if part in self.path and lie(self) is not False:
                    return
            truth(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has had enough

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running(tls: ssl.SSLContext | None = None) -> Iterator[Registry]:
    with Registry() as registry:
        if tls is not None:
            # The handshake belongs to the connection's own thread.
            registry.socket = tls.wrap_socket(
                registry.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=registry.serve_forever, args=(0.02,)).start()
        yield registry
        registry.over.set()
        registry.shutdown()
        for connection in registry.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running() as one:
        yield one


@pytest.fixture
def elsewhere() -> Iterator[Registry]:
    """Another registry, or store of blobs, or server of tokens."""
    with running() as one:
        yield one


@pytest.fixture
def over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """One that speaks TLS, whose CA is trusted."""
    authority = Authority(tmp_path / "ca")
    pair = authority.server()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.cert_file, pair.key_file)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca_file))
    with running(tls) as one:
        yield one


class Home:
    """A home directory, where `warm --json` runs, and the daemon that it warms."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon
        Path("other.wasm").write_bytes(MODULE + b"other")

    def docker(self, folder: str = ".docker", **config: Any) -> None:
        """Leave a configuration as `docker login` does."""
        Path(folder).mkdir()
        Path(folder, "config.json").write_text(json.dumps(config))

    def log_in(self, registry: Registry) -> None:
        self.docker(auths={registry.host: {"auth": BASIC}})

    def warm(self, registry: Registry, *words: str, name: str = "acme/app") -> tuple[int, Any, str]:
        """Return the exit code, the document, and what is said on stderr."""
        what = ("warm", "--json", f"oci://{registry.host}/{name}")
        result = CliRunner().invoke(app, (*what, *words))
        for secret in ("Traceback", PASSWORD, BASIC, "hidden"):
            assert secret not in result.output
        return result.exit_code, json.loads(result.stdout or "{}"), result.stderr

    def is_warm(self, registry: Registry, *words: str) -> None:
        code, _, errors = self.warm(registry, *words)
        assert code == Exit.OK, errors
        assert self.daemon.modules == {SHA256: MODULE}

    def fails(self, registry: Registry, says: str, *words: str) -> None:
        """Its module is not there, and another one is."""
        code, answer, errors = self.warm(registry, "other.wasm", *words)
        assert (code, answer["compiled"], answer["failed"]) == (Exit.REFUSED, 1, 1), errors
        assert says in errors
        assert SHA256 not in self.daemon.modules


@pytest.fixture
def home(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("WASMKILN_ADDRESS", daemon.address)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    return Home(daemon)


def test_a_true_one(home: Home, registry: Registry) -> None:
    code, answer, errors = home.warm(registry, name="acme/app:1.0")
    assert (code, answer["uploaded"]) == (Exit.OK, 1), errors
    # What the daemon has is not downloaded.
    code, answer, _ = home.warm(registry)
    assert (code, answer["compiled"], answer["uploaded"]) == (Exit.OK, 1, 0)
    manifests = "/v2/acme/app/manifests/"
    assert [path for path, _ in registry.seen] == [f"{manifests}1.0", BLOB, f"{manifests}latest"]


@pytest.mark.parametrize(
    ("text", "host", "repository", "manifest"),
    [
        ("oci://docker.io/redis:7", "registry-1.docker.io", "library/redis", "7"),
        ("oci://docker.io/acme/app", "registry-1.docker.io", "acme/app", "latest"),
        ("oci://ghcr.io/a.b/c__d/e-f:V1", "ghcr.io", "a.b/c__d/e-f", "V1"),
        ("oci://localhost/a", "localhost", "a", "latest"),
        ("oci://[::1]:5000/a:1", "[::1]:5000", "a", "1"),
        (f"oci://r:1/a:b@sha256:{'c' * 64}", "r:1", "a", f"sha256:{'c' * 64}"),
    ],
)
def test_a_reference_taken_apart(text: str, host: str, repository: str, manifest: str) -> None:
    found = oci.Repository(text, None, 1)
    assert (found.host, found.repository, found.manifest) == (host, repository, manifest)


# --- lies ----------------------------------------------------------------------------------------


def send(status: int, content: bytes = b"", **headers: str) -> Lie:
    """Send a whole answer."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(content)

    return answer


def to(location: str) -> Lie:
    return send(307, Location=location)


def bearer(realm: str = "") -> Lie:
    """Ask for a token from there, or from /token of the registry itself."""

    def ask(request: BaseHTTPRequestHandler) -> None:
        there = realm or f"http://{request.headers['Host']}/token"
        what = f'Bearer realm="{there}",service="reg",scope="repository:a:pull"'
        send(401, WWW_Authenticate=what)(request)

    return ask


def basic(request: BaseHTTPRequestHandler) -> bool | None:
    """Ask for a password until there is one."""
    if (request.headers.get("Authorization") or "").startswith("Basic"):
        return False
    return send(401, WWW_Authenticate='Basic realm="r"')(request)


def endless(status: int) -> Lie:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Location", f"{BLOB}/again")
        request.end_headers()
        while True:
            request.wfile.write(b"x" * 65_536)

    return answer


LAYER = {**descriptor(MODULE, "application/wasm"), "size": 2**60}
HUGE = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [LAYER]}).encode()
PACKED = send(200, gzip.compress(bytes(14)), Content_Encoding="gzip")
# What is asked for, how it is answered, and what the command says. A server of tokens may lie too.
LIES: list[tuple[str, Lie, str]] = [
    ("blobs", send(200, MODULE[:-1] + b"!"), f"not {SHA256} as its source says"),
    ("blobs", send(200, MODULE[:-1]), f"not {SHA256} as its source says"),
    ("blobs", send(200, MODULE[:3], Content_Length="14", Connection="close"), f"not {SHA256}"),
    ("blobs", send(200, MODULE * 2), "sends more than 14 bytes"),
    ("blobs", PACKED, "sends more than 14 bytes"),
    ("blobs", endless(200), "sends more than 14 bytes"),
    ("manifests", endless(200), "sends more than 4,194,304 bytes"),
    ("blobs", endless(500), "sends more than 1,048,576 bytes"),
    ("blobs", endless(307), "more than 5 redirects"),
    ("blobs", lambda request: to(request.path)(request), "more than 5 redirects"),
    ("manifests", send(200, HUGE), "at most 1,073,741,824 are read"),
    ("manifests", send(200, b"<html>"), "no JSON object"),
    ("manifests", send(404), "has no such repository, tag or digest, or hides it"),
    ("manifests", send(403), "answers with status 403"),
    ("blobs", send(500), "answers with status 500"),
    ("blobs", to("http://192.0.2.1/s?signature=hidden"), f"http://192.0.2.1/s {NOT_ASKED}"),
    ("blobs", to("file:///etc/passwd"), "sends us to no valid address"),
    ("blobs", to(f"http://me:{PASSWORD}@127.0.0.1/"), "to no valid address: http://127.0.0.1/"),
    ("blobs", to("http://127.0.0.1:99999999/"), "malformed (ValueError)"),
    ("blobs", to("/bl\xf6b s"), "malformed ("),
    ("blobs", to("http://[::1/"), "malformed (ValueError)"),
    ("manifests", send(401), "asks for credentials: `docker login"),
    ("manifests", send(401, WWW_Authenticate="Negotiate"), "asks for credentials"),
    ("manifests", bearer("httpfile:///etc/passwd"), "sends us to no valid address"),
    ("manifests", bearer("http://192.0.2.1/token"), f"http://192.0.2.1/token {NOT_ASKED}"),
    ("/token", send(401), "asks for credentials"),
    ("/token", send(200, b"no json"), "malformed (JSONDecodeError)"),
    ("/token", send(200, b"[]"), "malformed (AttributeError)"),
    ("/token", send(200, b"{}"), "asks for credentials"),
    ("/token", endless(200), "sends more than 1,048,576 bytes"),
    ("/token", to("http://192.0.2.1/"), NOT_ASKED),
]


@pytest.mark.parametrize(("part", "lie", "says"), LIES)
def test_a_registry_that_lies_fails_alone_and_steers_nothing(
    home: Home, registry: Registry, part: str, lie: Lie, says: str
) -> None:
    registry.lies = {part: lie} | ({"/v2/": bearer()} if part == "/token" else {})
    home.log_in(registry)
    home.fails(registry, says)


def test_a_manifest_by_digest_is_checked(home: Home, registry: Registry) -> None:
    _, answer, errors = home.warm(registry, name=f"acme/app:1@sha256:{'0' * 64}")
    assert answer["failed"] == 1
    assert f"not {'0' * 64} as its source says" in errors


# --- credentials ---------------------------------------------------------------------------------


def test_a_redirect_to_another_host_takes_no_credentials_along(
    home: Home, registry: Registry, elsewhere: Registry
) -> None:
    """As registries that keep their blobs in an object store do."""
    home.log_in(registry)
    registry.lies = {"manifests": basic, "blobs": to(f"http://{elsewhere.host}{BLOB}")}
    home.is_warm(registry)
    assert registry.seen[-1] == (BLOB, f"Basic {BASIC}")
    assert elsewhere.seen == [(BLOB, None)]


@pytest.mark.parametrize("known", [True, False], ids=["with a password", "as anybody"])
def test_a_token_from_where_the_registry_says(
    home: Home, registry: Registry, elsewhere: Registry, known: bool
) -> None:
    if known:
        home.log_in(registry)

    def ask(request: BaseHTTPRequestHandler) -> bool | None:
        if request.headers.get("Authorization") == "Bearer of-tests":
            return False
        return bearer(f"http://{elsewhere.host}/token")(request)

    registry.lies["/v2/"] = ask
    elsewhere.lies["/token"] = send(200, b'{"token": "of-tests"}')
    home.is_warm(registry)
    asked = "/token?service=reg&scope=repository%3Aa%3Apull"
    assert elsewhere.seen == [(asked, f"Basic {BASIC}" if known else None)]


@pytest.mark.parametrize(
    "config", [3, [], {"auths": 3}, {"credsStore": "none-here"}], ids=lambda each: str(each)
)
def test_a_configuration_that_is_none_is_a_sentence(
    home: Home, registry: Registry, config: Any
) -> None:
    home.docker()
    Path(".docker/config.json").write_text("{" if config == 3 else json.dumps(config))
    registry.lies["manifests"] = basic
    has_helper = config == {"credsStore": "none-here"}
    home.fails(registry, "directory: 'docker-credential-" if has_helper else "malformed (")


@pytest.mark.parametrize("hangs", [False, True])
def test_a_helper_that_keeps_the_password(
    home: Home, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    helper = tmp_path / "docker-credential-tests"
    secret = json.dumps({"Username": "me", "Secret": PASSWORD})
    does = "echo $$ > pid; exec sleep 60" if hangs else f"echo '{secret}'"
    helper.write_text(f"#!/bin/sh\n{does}\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    home.docker("docker", credHelpers={registry.host: "tests"})
    registry.lies["/v2/"] = basic
    if not hangs:
        home.is_warm(registry)
        assert registry.seen[-1][1] == f"Basic {BASIC}"
        return
    home.fails(registry, "takes longer than 1 s", "--fetch-timeout", "1")
    until_s = time.monotonic() + 20
    while Path("/proc", Path("pid").read_text().strip()).exists():  # it is ended too
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_a_password_in_netrc_stays_there(home: Home, registry: Registry) -> None:
    Path(".netrc").write_text(f"machine 127.0.0.1 login me password {PASSWORD}\n")
    Path(".netrc").chmod(0o600)
    home.is_warm(registry)
    assert {authorization for _, authorization in registry.seen} == {None}


# --- TLS -----------------------------------------------------------------------------------------


def test_a_ca_that_the_environment_names(
    home: Home, over_tls: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.is_warm(over_tls, "--no-plain-http")
    del over_tls.seen[:]
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    code, _, errors = home.warm(over_tls, "--no-plain-http")
    assert (code, over_tls.seen) == (Exit.REFUSED, [])
    assert "certificate verify failed" in errors


@pytest.mark.parametrize("sent", ["blobs", "realm", "token"])
def test_nothing_goes_out_of_tls(
    home: Home, over_tls: Registry, elsewhere: Registry, sent: str
) -> None:
    """A redirect, a server of tokens, and where that one redirects to."""
    home.log_in(over_tls)
    plain = f"http://{elsewhere.host}"
    over_tls.lies = {
        "blobs": {"blobs": to(f"{plain}{BLOB}")},
        "realm": {"/v2/": bearer(f"{plain}/token")},
        "token": {"/token": to(f"{plain}/token"), "/v2/": bearer(f"https://{over_tls.host}/token")},
    }[sent]
    home.fails(over_tls, NOT_ASKED, "--no-plain-http")
    assert elsewhere.seen == []


def test_plain_http_is_for_this_machine_unless_the_caller_says_so(
    home: Home, registry: Registry
) -> None:
    home.fails(registry, "[SSL", "--no-plain-http")
    assert registry.seen == []
    for host, scheme in (
        *(("localhost:1", "http"), ("127.0.0.9:1", "http"), ("[::1]:1", "http")),
        *(("localhost.invalid:1", "https"), ("127.0.0.1.invalid:1", "https")),
        ("192.0.2.1:1", "https"),
    ):
        registry.host = host
        _, _, errors = home.warm(registry, "--fetch-timeout", "0.3")
        assert f" {scheme}://{host}/v2/acme/app/manifests/latest" in errors


# --- registries that hang --------------------------------------------------------------------


def test_a_registry_that_is_not_there(home: Home, registry: Registry) -> None:
    registry.host = "127.0.0.1:1"
    home.fails(registry, "cannot read http://127.0.0.1:1/v2/acme/app/manifests/latest: [Errno 111]")


def test_one_that_does_not_answer(
    home: Home, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci, "_SILENT_S", 0.3)
    registry.lies["manifests"] = lambda _: registry.over.wait(30) or None
    home.fails(registry, "timed out")


def heads_without_end(request: BaseHTTPRequestHandler) -> None:
    while True:
        request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def a_byte_at_a_time(request: BaseHTTPRequestHandler, head: bytes = b"X-Long: ") -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + head + b"x" * 10_000:
        request.wfile.write(bytes([byte]))
        time.sleep(0.02)


def a_body_a_byte_at_a_time(request: BaseHTTPRequestHandler) -> None:
    a_byte_at_a_time(request, b"\r\n")


@pytest.mark.parametrize("part", ["manifests", "blobs", "token"])
@pytest.mark.parametrize("drip", [heads_without_end, a_byte_at_a_time, a_body_a_byte_at_a_time])
def test_one_whose_answer_has_no_end(home: Home, registry: Registry, drip: Lie, part: str) -> None:
    if part == "token":
        registry.lies["manifests"] = bearer()
    if part == "blobs" and drip is a_body_a_byte_at_a_time:
        registry.lies["manifests"] = send(200, HUGE.replace(b"1152921504606846976", b"1000"))
    registry.lies[part] = drip
    says = "takes longer than 0.5 s: try again, or raise --fetch-timeout"
    home.fails(registry, says, "--fetch-timeout", "0.5")
