"""`wasmkiln warm oci://…` with registries that lie, ask for tokens, redirect, and hang."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from wasmkiln.cli import oci
from wasmkiln.cli.app import Exit, app

from tests.authority import Authority
from tests.oci import MANIFEST, Image, descriptor
from tests.unit.client.fake_daemon import FakeDaemon
from tests.unit.client.lying_registry import LyingRegistry, lying_registry, send

Lie = Callable[[BaseHTTPRequestHandler], bool | None]
Warm = Callable[..., tuple[int, dict[str, Any], str]]

MODULE = b"\0asm\x01\0\0\0module"
SHA256 = hashlib.sha256(MODULE).hexdigest()
BLOB = f"/v2/acme/app/blobs/sha256:{SHA256}"
PASSWORD = "do-not-show-this"
BASIC = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
NOT_ASKED = "is not reached over https: not asked"


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with lying_registry(Image.wash(MODULE)) as running:
        yield running


@pytest.fixture
def elsewhere() -> Iterator[LyingRegistry]:
    """Another registry, or store of blobs, or server of tokens."""
    with lying_registry(Image.wash(MODULE)) as running:
        yield running


@pytest.fixture
def over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LyingRegistry]:
    """One that speaks TLS, whose CA is trusted."""
    authority = Authority(tmp_path / "ca")
    pair = authority.server()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.cert_file, pair.key_file)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca_file))
    with lying_registry(Image.wash(MODULE), tls) as running:
        yield running


@pytest.fixture
def warm(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Warm:
    """Runs `warm --json`; gives its exit code, its document and what it says on stderr."""
    monkeypatch.setenv("WASMKILN_ADDRESS", daemon.address)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)

    def invoke(registry: LyingRegistry, *arguments: str, name: str = "acme/app") -> Any:
        words = ("warm", "--json", f"oci://{registry.host}/{name}", *arguments)
        result = CliRunner().invoke(app, words)
        assert "Traceback" not in result.stderr
        assert PASSWORD not in result.output
        assert BASIC not in result.output
        assert "hidden" not in result.output
        return result.exit_code, json.loads(result.stdout or "{}"), result.stderr

    return invoke


def docker(folder: Path, **config: Any) -> None:
    """Leave a configuration as `docker login` does."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))


def log_in(home: Path, registry: LyingRegistry) -> None:
    docker(home / ".docker", auths={registry.host: {"auth": BASIC}})


# --- the truth -----------------------------------------------------------------------------------


def test_a_true_one(warm: Warm, daemon: FakeDaemon, registry: LyingRegistry) -> None:
    code, answer, errors = warm(registry, name="acme/app:1.0")
    assert (code, answer["uploaded"]) == (Exit.OK, 1), errors
    assert daemon.modules == {SHA256: MODULE}
    # What the daemon has is not downloaded.
    code, answer, _ = warm(registry)
    assert (code, answer["compiled"], answer["uploaded"]) == (Exit.OK, 1, 0)
    manifests = "/v2/acme/app/manifests/"
    asked = [path for path, _ in registry.seen]
    assert asked == [f"{manifests}1.0", BLOB, f"{manifests}latest"]


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


def answers(status: int, content: bytes = b"", **headers: str) -> Lie:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: send(request, status, content, named)


def to(location: str) -> Lie:
    return answers(307, Location=location)


def bearer(realm: str) -> Lie:
    return answers(401, WWW_Authenticate=f'Bearer realm="{realm}",service="reg"')


def until(authorization: str, lie: Lie) -> Lie:
    """A lie that is told until a request has an Authorization that begins so."""

    def ask(request: BaseHTTPRequestHandler) -> bool | None:
        has = (request.headers.get("Authorization") or "").startswith(authorization)
        return False if has else lie(request)

    return ask


def endless(status: int) -> Lie:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Location", f"{BLOB}/again")
        request.end_headers()
        while True:
            request.wfile.write(b"x" * 65_536)

    return answer


def cut(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(MODULE)))
    request.end_headers()
    request.wfile.write(MODULE[:3])
    request.close_connection = True


LAYER = {**descriptor(MODULE, "application/wasm"), "size": 2**60}
HUGE = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [LAYER]}).encode()
PACKED = answers(200, gzip.compress(bytes(14)), Content_Encoding="gzip")
# What is asked for, how it is answered, and what the command says.
LIES: list[tuple[str, Lie, str]] = [
    ("blobs", answers(200, MODULE[:-1] + b"!"), f"not {SHA256} as its source says"),
    ("blobs", answers(200, MODULE[:-1]), f"not {SHA256} as its source says"),
    ("blobs", cut, f"not {SHA256} as its source says"),
    ("blobs", answers(200, MODULE * 2), "sends more than 14 bytes"),
    ("blobs", PACKED, "sends more than 14 bytes"),
    ("blobs", endless(200), "sends more than 14 bytes"),
    ("manifests", endless(200), "sends more than 4,194,304 bytes"),
    ("blobs", endless(500), "sends more than 1,048,576 bytes"),
    ("blobs", endless(307), "more than 5 redirects"),
    ("blobs", lambda request: to(request.path)(request), "more than 5 redirects"),
    ("manifests", answers(200, HUGE), "at most 1,073,741,824 are read"),
    ("manifests", answers(200, b"<html>"), "no JSON object"),
    ("manifests", answers(404), "has no such repository, tag or digest, or hides it"),
    ("manifests", answers(403), "answers with status 403"),
    ("blobs", answers(500), "answers with status 500"),
    ("blobs", to("http://192.0.2.1/s?signature=hidden"), f"http://192.0.2.1/s {NOT_ASKED}"),
    ("blobs", to("file:///etc/passwd"), "sends us to no valid address"),
    ("blobs", to(f"http://me:{PASSWORD}@127.0.0.1/"), "to no valid address: http://127.0.0.1/"),
    ("blobs", to("http://127.0.0.1:99999999/"), "malformed (ValueError)"),
    ("blobs", to("/bl\xf6b s"), "malformed ("),
    ("blobs", to("http://[::1/"), "malformed (ValueError)"),
    ("manifests", answers(401), "asks for credentials: `docker login"),
    ("manifests", answers(401, WWW_Authenticate="Negotiate"), "asks for credentials"),
    ("manifests", bearer("httpfile:///etc/passwd"), "sends us to no valid address"),
    ("manifests", bearer("http://192.0.2.1/token"), f"http://192.0.2.1/token {NOT_ASKED}"),
]


@pytest.mark.parametrize(("part", "lie", "says"), LIES)
def test_a_registry_that_lies_fails_alone_and_steers_nothing(
    warm: Warm,
    daemon: FakeDaemon,
    registry: LyingRegistry,
    tmp_path: Path,
    part: str,
    lie: Lie,
    says: str,
) -> None:
    registry.lies[part] = lie
    log_in(tmp_path, registry)
    Path("other.wasm").write_bytes(MODULE + b"other")
    code, answer, errors = warm(registry, "other.wasm")
    assert (code, answer["compiled"], answer["failed"]) == (Exit.REFUSED, 1, 1)
    assert says in errors
    assert SHA256 not in daemon.modules


def test_a_manifest_by_digest_is_checked(warm: Warm, registry: LyingRegistry) -> None:
    _, answer, errors = warm(registry, name=f"acme/app:1@sha256:{'0' * 64}")
    assert answer["failed"] == 1
    assert f"not {'0' * 64} as its source says" in errors


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (answers(401), "asks for credentials"),
        (answers(200, b"no json"), "malformed (JSONDecodeError)"),
        (answers(200, b"[]"), "malformed (AttributeError)"),
        (answers(200, b"{}"), "asks for credentials"),
        (endless(200), "sends more than 1,048,576 bytes"),
        (to("http://192.0.2.1/"), NOT_ASKED),
    ],
)
def test_a_server_of_tokens_that_lies(
    warm: Warm, registry: LyingRegistry, tmp_path: Path, token: Lie, says: str
) -> None:
    log_in(tmp_path, registry)
    registry.lies = {"/token": token, "/v2/": bearer(f"http://{registry.host}/token")}
    code, _, errors = warm(registry)
    assert code == Exit.REFUSED
    assert says in errors


# --- credentials ---------------------------------------------------------------------------------


def test_a_redirect_to_another_host_takes_no_credentials_along(
    warm: Warm,
    daemon: FakeDaemon,
    registry: LyingRegistry,
    elsewhere: LyingRegistry,
    tmp_path: Path,
) -> None:
    """As registries that keep their blobs in an object store do."""
    log_in(tmp_path, registry)
    ask = answers(401, WWW_Authenticate='Basic realm="r"')
    registry.lies["manifests"] = until("Basic", ask)
    registry.lies["blobs"] = to(f"http://{elsewhere.host}{BLOB}")
    code, _, errors = warm(registry)
    assert code == Exit.OK, errors
    assert daemon.modules == {SHA256: MODULE}
    assert registry.seen[-1] == (BLOB, f"Basic {BASIC}")
    assert elsewhere.seen == [(BLOB, None)]


@pytest.mark.parametrize("known", [True, False], ids=["with a password", "as anybody"])
def test_a_token_from_where_the_registry_says(
    warm: Warm,
    daemon: FakeDaemon,
    registry: LyingRegistry,
    elsewhere: LyingRegistry,
    tmp_path: Path,
    known: bool,
) -> None:
    if known:
        log_in(tmp_path, registry)
    realm = f'Bearer realm="http://{elsewhere.host}/token",service="reg",scope="repository:a:pull"'
    registry.lies["/v2/"] = until("Bearer of-tests", answers(401, WWW_Authenticate=realm))
    elsewhere.lies["/token"] = answers(200, b'{"token": "of-tests"}')
    code, _, errors = warm(registry)
    assert code == Exit.OK, errors
    assert daemon.modules == {SHA256: MODULE}
    asked = "/token?service=reg&scope=repository%3Aa%3Apull"
    assert elsewhere.seen == [(asked, f"Basic {BASIC}" if known else None)]


@pytest.mark.parametrize("content", ["{", "[]", '{"auths": 3}', '{"credsStore": "none-here"}'])
def test_a_configuration_that_is_none_is_a_sentence(
    warm: Warm, registry: LyingRegistry, tmp_path: Path, content: str
) -> None:
    docker(tmp_path / ".docker")
    (tmp_path / ".docker/config.json").write_text(content)
    registry.lies["manifests"] = answers(401, WWW_Authenticate='Basic realm="r"')
    code, _, errors = warm(registry)
    assert code == Exit.REFUSED
    assert "malformed (" in errors or "No such file or directory: 'docker-credential-" in errors


@pytest.mark.parametrize("hangs", [False, True])
def test_a_helper_that_keeps_the_password(
    warm: Warm,
    daemon: FakeDaemon,
    registry: LyingRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hangs: bool,
) -> None:
    helper = tmp_path / "bin" / "docker-credential-tests"
    helper.parent.mkdir()
    secret = json.dumps({"Username": "me", "Secret": PASSWORD})
    does = "echo $$ > pid; exec sleep 60" if hangs else f"echo '{secret}'"
    helper.write_text(f"#!/bin/sh\n{does}\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(helper.parent), prepend=":")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    docker(tmp_path / "docker", credHelpers={registry.host: "tests"})
    ask = answers(401, WWW_Authenticate='Basic realm="r"')
    registry.lies["/v2/"] = until("Basic", ask)
    code, _, errors = warm(registry, *(["--fetch-timeout", "1"] if hangs else []))
    if not hangs:
        assert (code, registry.seen[-1][1]) == (Exit.OK, f"Basic {BASIC}"), errors
        assert daemon.modules == {SHA256: MODULE}
        return
    assert code == Exit.REFUSED
    assert "takes longer than 1 s" in errors
    until_s = time.monotonic() + 20
    while Path("/proc", Path("pid").read_text().strip()).exists():  # it is ended too
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_a_password_in_netrc_stays_there(
    warm: Warm, registry: LyingRegistry, tmp_path: Path
) -> None:
    file = tmp_path / ".netrc"
    file.write_text(f"machine 127.0.0.1 login me password {PASSWORD}\n")
    file.chmod(0o600)
    assert warm(registry)[0] == Exit.OK
    assert {authorization for _, authorization in registry.seen} == {None}


# --- TLS -----------------------------------------------------------------------------------------


def test_a_ca_that_the_environment_names(
    warm: Warm, over_tls: LyingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert warm(over_tls, "--no-plain-http")[0] == Exit.OK
    del over_tls.seen[:]
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    code, _, errors = warm(over_tls, "--no-plain-http")
    assert (code, over_tls.seen) == (Exit.REFUSED, [])
    assert "certificate verify failed" in errors


@pytest.mark.parametrize("sent", ["blobs", "realm", "token"])
def test_nothing_goes_out_of_tls(
    warm: Warm,
    daemon: FakeDaemon,
    over_tls: LyingRegistry,
    elsewhere: LyingRegistry,
    tmp_path: Path,
    sent: str,
) -> None:
    """A redirect, a server of tokens, and where that one redirects to."""
    log_in(tmp_path, over_tls)
    plain = f"http://{elsewhere.host}"
    over_tls.lies = {
        "blobs": {"blobs": to(f"{plain}{BLOB}")},
        "realm": {"/v2/": bearer(f"{plain}/token")},
        "token": {"/token": to(f"{plain}/token"), "/v2/": bearer(f"https://{over_tls.host}/token")},
    }[sent]
    code, _, errors = warm(over_tls, "--no-plain-http")
    assert code == Exit.REFUSED
    assert NOT_ASKED in errors
    assert (elsewhere.seen, daemon.modules) == ([], {})


def test_plain_http_is_for_this_machine_unless_the_caller_says_so(
    warm: Warm, registry: LyingRegistry
) -> None:
    code, _, errors = warm(registry, "--no-plain-http")
    assert (code, registry.seen) == (Exit.REFUSED, [])
    assert "[SSL" in errors
    for host, scheme in (
        *(("localhost:1", "http"), ("127.0.0.9:1", "http"), ("[::1]:1", "http")),
        *(("localhost.invalid:1", "https"), ("127.0.0.1.invalid:1", "https")),
        ("192.0.2.1:1", "https"),
    ):
        registry.host = host
        _, _, errors = warm(registry, "--fetch-timeout", "0.3")
        assert f" {scheme}://{host}/v2/acme/app/manifests/latest" in errors


# --- registries that hang --------------------------------------------------------------------


def test_a_registry_that_is_not_there(warm: Warm, registry: LyingRegistry) -> None:
    registry.host = "127.0.0.1:1"
    code, _, errors = warm(registry)
    assert code == Exit.REFUSED
    assert "cannot read http://127.0.0.1:1/v2/acme/app/manifests/latest: " in errors
    assert "refused" in errors
    assert "object at 0x" not in errors


def test_one_that_does_not_answer(
    warm: Warm, registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci, "_SILENT_S", 0.3)
    registry.lies["manifests"] = lambda _: registry.over.wait(30) or None
    code, _, errors = warm(registry)
    assert code == Exit.REFUSED
    assert "timed out" in errors


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
def test_one_whose_answer_has_no_end(
    warm: Warm, registry: LyingRegistry, drip: Lie, part: str
) -> None:
    Path("other.wasm").write_bytes(MODULE + b"other")
    if part == "token":
        registry.lies["manifests"] = bearer(f"http://{registry.host}/token")
    if part == "blobs" and drip is a_body_a_byte_at_a_time:
        registry.lies["manifests"] = answers(200, HUGE.replace(b"1152921504606846976", b"1000"))
    registry.lies[part] = drip
    start_s = time.monotonic()
    code, answer, errors = warm(registry, "other.wasm", "--fetch-timeout", "0.5")
    assert time.monotonic() - start_s < 20
    assert (code, answer["compiled"], answer["failed"]) == (Exit.REFUSED, 1, 1)
    assert "takes longer than 0.5 s: try again, or raise --fetch-timeout" in errors


def test_an_interrupt_ends_a_download(daemon: FakeDaemon, registry: LyingRegistry) -> None:
    def stall(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(MODULE)))
        request.end_headers()
        registry.over.wait(60)

    registry.lies["blobs"] = stall
    command = [sys.executable, "-c", "from wasmkiln.cli import main; main()", "warm"]
    with subprocess.Popen(
        [*command, f"oci://{registry.host}/acme/app"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WASMKILN_ADDRESS": daemon.address},
    ) as running:
        while running.poll() is None and not any("blobs" in path for path, _ in registry.seen):
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (Exit.INTERRUPTED, "error: interrupted\n")
