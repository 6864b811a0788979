"""`wasmkiln warm oci://…` with registries that lie, ask for tokens, redirect, and hang."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from wasmkiln.cli import oci
from wasmkiln.cli.app import Exit, app

from tests.oci import MANIFEST, Image, descriptor
from tests.unit.client.lying_registry import LyingRegistry, lying_registry, send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.client.fake_daemon import FakeDaemon

    Lie = Callable[[BaseHTTPRequestHandler], bool | None]

MODULE = b"\0asm\x01\0\0\0module"
SHA256 = hashlib.sha256(MODULE).hexdigest()
PASSWORD = "do-not-show-this"
TOKEN = "token-of-tests"


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
def run(
    daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Runs `warm --json`; gives its exit code, its document and what it says on stderr."""
    monkeypatch.setenv("WASMKILN_ADDRESS", daemon.address)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> tuple[int, dict[str, Any], str]:
        result = CliRunner().invoke(app, ("warm", "--json", *arguments))
        assert "Traceback" not in result.stderr
        return result.exit_code, json.loads(result.stdout or "{}"), result.stderr

    return invoke


def log_in(home: Path, host: str) -> None:
    """Leave credentials as `docker login` does."""
    auth = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def test_a_true_one(run: Callable[..., Any], daemon: FakeDaemon, registry: LyingRegistry) -> None:
    code, answer, errors = run(f"oci://{registry.host}/acme/app:1.0")
    assert (code, answer["uploaded"]) == (Exit.OK, 1), errors
    assert daemon.modules == {SHA256: MODULE}
    assert [path for path, _ in registry.seen] == [
        "/v2/acme/app/manifests/1.0",
        f"/v2/acme/app/blobs/sha256:{SHA256}",
    ]


def test_what_the_daemon_has_is_not_downloaded(
    run: Callable[..., Any], daemon: FakeDaemon, registry: LyingRegistry
) -> None:
    daemon.modules[SHA256] = MODULE
    code, answer, _ = run(f"oci://{registry.host}/acme/app")
    assert (code, answer["compiled"], answer["uploaded"]) == (Exit.OK, 1, 0)
    assert [path for path, _ in registry.seen] == ["/v2/acme/app/manifests/latest"]


def answers(status: int, content: bytes = b"", **headers: str) -> Lie:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: send(request, status, content, named)


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b"x" * 65_536)


def endless_error(request: BaseHTTPRequestHandler) -> None:
    request.send_response(500)
    request.end_headers()
    while True:
        request.wfile.write(b"x" * 65_536)


def endless_redirect(request: BaseHTTPRequestHandler) -> None:
    request.send_response(307)
    request.send_header("Location", "/v2/acme/app/blobs/again")
    request.end_headers()
    while True:
        request.wfile.write(b"x" * 65_536)


def cut(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(MODULE)))
    request.end_headers()
    request.wfile.write(MODULE[:3])
    request.close_connection = True


def a_layer(size: int) -> bytes:
    layer = {**descriptor(MODULE, "application/wasm"), "size": size}
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer]}).encode()


LIES: dict[str, tuple[str, Lie, str]] = {
    "other bytes": ("blobs", answers(200, MODULE[:-1] + b"!"), f"not {SHA256} as its source says"),
    "fewer bytes": ("blobs", answers(200, MODULE[:-1]), f"not {SHA256} as its source says"),
    "cut off": ("blobs", cut, f"not {SHA256} as its source says"),
    "more bytes": ("blobs", answers(200, MODULE * 2), "sends more than 14 bytes"),
    "no end": ("blobs", endless, "sends more than 14 bytes"),
    "a manifest without end": ("manifests", endless, "sends more than 4,194,304 bytes"),
    "an error without end": (
        "blobs",
        endless_error,
        "sends more than 1,048,576 bytes",
    ),
    "packed bytes": (
        "blobs",
        answers(200, gzip.compress(bytes(14)), Content_Encoding="gzip"),
        "sends more than 14 bytes",
    ),
    "a size that no daemon takes": (
        "manifests",
        answers(200, a_layer(2**60)),
        "at most 1,073,741,824 are read",
    ),
    "no manifest": ("manifests", answers(200, b"<html>"), "no JSON object"),
    "not there": ("manifests", answers(404), "has no such repository, tag or digest, or hides it"),
    "forbidden": ("manifests", answers(403), "answers with status 403"),
    "too often": ("manifests", answers(429), "answers with status 429"),
    "broken": ("blobs", answers(500), "answers with status 500"),
    "a redirect in a circle": (
        "blobs",
        lambda request: send(request, 302, b"", {"Location": request.path}),
        "more than 5 redirects",
    ),
    "a redirect without end": ("blobs", endless_redirect, "more than 5 redirects"),
    "a redirect out of this machine": (
        "blobs",
        answers(302, Location="http://192.0.2.1/secret?signature=hidden"),
        "http://192.0.2.1/secret is not reached over https: not asked",
    ),
    "a redirect to a file": (
        "blobs",
        answers(302, Location="file:///etc/passwd"),
        "sends us to no valid address",
    ),
    "a redirect with a password": (
        "blobs",
        answers(302, Location=f"http://me:{PASSWORD}@127.0.0.1/"),
        "sends us to no valid address: http://127.0.0.1/",
    ),
    "a redirect to an impossible port": (
        "blobs",
        answers(302, Location="http://127.0.0.1:99999999/"),
        "malformed (ValueError)",
    ),
    "a redirect in other letters": (
        "blobs",
        answers(302, Location="/bl\xf6b s"),
        "malformed (",
    ),
    "a redirect to nowhere": (
        "blobs",
        answers(302, Location="http://[::1/"),
        "malformed (ValueError)",
    ),
    "no challenge": ("manifests", answers(401), "asks for credentials: `docker login"),
    "a challenge of an unknown kind": (
        "manifests",
        answers(401, WWW_Authenticate="Negotiate"),
        "asks for credentials: `docker login",
    ),
    "tokens from a file": (
        "manifests",
        answers(401, WWW_Authenticate='Bearer realm="httpfile:///etc/passwd",service="x"'),
        "sends us to no valid address",
    ),
    "tokens from another machine, over http": (
        "manifests",
        answers(401, WWW_Authenticate='Bearer realm="http://192.0.2.1/token",service="x"'),
        "http://192.0.2.1/token is not reached over https: not asked",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_registry_that_lies_fails_alone_and_steers_nothing(
    run: Callable[..., Any],
    daemon: FakeDaemon,
    registry: LyingRegistry,
    tmp_path: Path,
    lie: str,
) -> None:
    part, answer_with, says = LIES[lie]
    registry.lies[part] = answer_with
    log_in(tmp_path, registry.host)
    (tmp_path / "other.wasm").write_bytes(MODULE + b"other")
    code, answer, errors = run(f"oci://{registry.host}/acme/app", "other.wasm")
    assert (code, answer["compiled"], answer["failed"]) == (Exit.REFUSED, 1, 1)
    assert says in errors
    assert SHA256 not in daemon.modules
    assert PASSWORD not in errors
    assert "hidden" not in errors


def test_a_manifest_by_digest_is_checked(run: Callable[..., Any], registry: LyingRegistry) -> None:
    _, answer, errors = run(f"oci://{registry.host}/acme/app:1@sha256:{'0' * 64}")
    assert answer["failed"] == 1
    assert f"not {'0' * 64} as its source says" in errors


def test_a_redirect_to_another_host_takes_no_credentials_along(
    run: Callable[..., Any],
    daemon: FakeDaemon,
    registry: LyingRegistry,
    elsewhere: LyingRegistry,
    tmp_path: Path,
) -> None:
    """As registries that keep their blobs in an object store do."""
    log_in(tmp_path, registry.host)
    blob = f"http://{elsewhere.host}/bucket/blobs/sha256:{SHA256}"

    def ask(request: BaseHTTPRequestHandler) -> bool | None:
        if request.headers.get("Authorization"):
            return False
        send(request, 401, b"", {"WWW-Authenticate": 'Basic realm="r"'})
        return True

    registry.lies["manifests"] = ask
    registry.lies["blobs"] = answers(307, Location=blob)
    code, _, errors = run(f"oci://{registry.host}/acme/app")
    assert code == Exit.OK, errors
    assert daemon.modules == {SHA256: MODULE}
    sent = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    assert registry.seen[-1] == (f"/v2/acme/app/blobs/sha256:{SHA256}", f"Basic {sent}")
    assert elsewhere.seen == [(f"/bucket/blobs/sha256:{SHA256}", None)]


@pytest.mark.parametrize("known", [True, False], ids=["with a password", "as anybody"])
def test_a_token_from_where_the_registry_says(
    run: Callable[..., Any],
    daemon: FakeDaemon,
    registry: LyingRegistry,
    elsewhere: LyingRegistry,
    tmp_path: Path,
    known: bool,
) -> None:
    if known:
        log_in(tmp_path, registry.host)
    realm = f'Bearer realm="http://{elsewhere.host}/token",service="reg",scope="repository:a:pull"'

    def ask(request: BaseHTTPRequestHandler) -> bool | None:
        if request.headers.get("Authorization") == f"Bearer {TOKEN}":
            return False
        send(request, 401, b"", {"WWW-Authenticate": realm})
        return True

    registry.lies["/v2/"] = ask
    elsewhere.lies["/token"] = answers(200, json.dumps({"token": TOKEN}).encode())
    code, _, errors = run(f"oci://{registry.host}/acme/app")
    assert code == Exit.OK, errors
    assert daemon.modules == {SHA256: MODULE}
    [(path, authorization)] = elsewhere.seen
    assert path == "/token?service=reg&scope=repository%3Aa%3Apull"
    assert (authorization or "").startswith("Basic ") is known


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (answers(401), "asks for credentials"),
        (answers(200, b"no json"), "malformed (JSONDecodeError)"),
        (answers(200, b"[]"), "malformed (AttributeError)"),
        (answers(200, b"{}"), "asks for credentials"),
        (endless, "sends more than 1,048,576 bytes"),
        (answers(302, Location="http://192.0.2.1/"), "is not reached over https: not asked"),
    ],
)
def test_a_server_of_tokens_that_lies(
    run: Callable[..., Any], registry: LyingRegistry, tmp_path: Path, token: Lie, says: str
) -> None:
    log_in(tmp_path, registry.host)
    realm = f'Bearer realm="http://{registry.host}/token",service="reg"'
    registry.lies = {"/token": token, "/v2/": answers(401, WWW_Authenticate=realm)}
    code, _, errors = run(f"oci://{registry.host}/acme/app")
    assert code == Exit.REFUSED
    assert says in errors
    assert PASSWORD not in errors


@pytest.mark.parametrize("content", ["{", "[]", '{"auths": 3}', '{"credsStore": "none-here"}'])
def test_a_configuration_that_is_none_is_a_sentence(
    run: Callable[..., Any], registry: LyingRegistry, tmp_path: Path, content: str
) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(content)
    registry.lies["manifests"] = answers(401, WWW_Authenticate='Basic realm="r"')
    code, _, errors = run(f"oci://{registry.host}/acme/app")
    assert code == Exit.REFUSED
    assert "malformed (" in errors or "No such file or directory: 'docker-credential-" in errors


def test_a_password_in_netrc_stays_there(
    run: Callable[..., Any], registry: LyingRegistry, tmp_path: Path
) -> None:
    file = tmp_path / ".netrc"
    file.write_text(f"machine 127.0.0.1 login me password {PASSWORD}\n")
    file.chmod(0o600)
    code, _, _ = run(f"oci://{registry.host}/acme/app")
    assert code == Exit.OK
    assert {authorization for _, authorization in registry.seen} == {None}


def test_plain_http_is_for_this_machine_unless_the_caller_says_so(
    run: Callable[..., Any], registry: LyingRegistry
) -> None:
    code, _, errors = run(f"oci://{registry.host}/acme/app", "--no-plain-http")
    assert code == Exit.REFUSED
    assert "[SSL" in errors
    assert not registry.seen


def test_a_registry_that_is_not_there(run: Callable[..., Any]) -> None:
    code, _, errors = run("oci://127.0.0.1:1/acme/app")
    assert code == Exit.REFUSED
    assert "cannot read http://127.0.0.1:1/v2/acme/app/manifests/latest: " in errors
    assert "refused" in errors
    assert "object at 0x" not in errors


def test_one_that_does_not_answer(
    run: Callable[..., Any], registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci, "_SILENT_S", 0.3)
    registry.lies["manifests"] = lambda _: registry.over.wait(30) or None
    code, _, errors = run(f"oci://{registry.host}/acme/app")
    assert code == Exit.REFUSED
    assert "timed out" in errors


def test_one_that_drips(run: Callable[..., Any], registry: LyingRegistry) -> None:
    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not registry.over.wait(0.05):
            request.wfile.write(b"x")
            request.wfile.flush()

    registry.lies["manifests"] = drip
    code, _, errors = run(f"oci://{registry.host}/acme/app", "--fetch-timeout", "0.4")
    assert code == Exit.REFUSED
    assert "takes longer than 0.4 s" in errors


def heads_without_end(request: BaseHTTPRequestHandler) -> None:
    while True:
        request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def a_byte_of_head_at_a_time(request: BaseHTTPRequestHandler) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 10_000:
        request.wfile.write(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.parametrize("part", ["manifests", "blobs", "token"])
@pytest.mark.parametrize("drip", [heads_without_end, a_byte_of_head_at_a_time])
def test_one_whose_head_has_no_end(
    run: Callable[..., Any], registry: LyingRegistry, tmp_path: Path, drip: Lie, part: str
) -> None:
    (tmp_path / "other.wasm").write_bytes(MODULE + b"other")
    realm = f'Bearer realm="http://{registry.host}/token"'
    if part == "token":
        registry.lies["manifests"] = answers(401, WWW_Authenticate=realm)
    registry.lies[part] = drip
    start_s = time.monotonic()
    reference = f"oci://{registry.host}/acme/app"
    code, answer, errors = run(reference, "other.wasm", "--fetch-timeout", "0.5")
    assert time.monotonic() - start_s < 20
    assert (code, answer["compiled"], answer["failed"]) == (Exit.REFUSED, 1, 1)
    assert "takes longer than 0.5 s: try again, or raise --fetch-timeout" in errors


def test_an_interrupt_ends_a_download(daemon: FakeDaemon, registry: LyingRegistry) -> None:
    def stall(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(MODULE)))
        request.end_headers()
        request.wfile.flush()
        registry.over.wait(60)

    registry.lies["blobs"] = stall
    with subprocess.Popen(
        [
            *(sys.executable, "-c", "from wasmkiln.cli import main; main()", "warm"),
            f"oci://{registry.host}/acme/app",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WASMKILN_ADDRESS": daemon.address},
    ) as running:
        while running.poll() is None and not any("blobs" in path for path, _ in registry.seen):
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (Exit.INTERRUPTED, "error: interrupted\n")


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


@pytest.mark.parametrize(
    ("host", "scheme"),
    [
        ("localhost:1", "http"),
        ("127.0.0.9:1", "http"),
        ("[::1]:1", "http"),
        ("localhost.invalid:1", "https"),
        ("127.0.0.1.invalid:1", "https"),
        ("192.0.2.1:1", "https"),
    ],
)
def test_only_registries_of_this_machine_are_asked_over_http(
    run: Callable[..., Any], host: str, scheme: str
) -> None:
    _, _, errors = run(f"oci://{host}/a", "--fetch-timeout", "0.5")
    assert f" {scheme}://{host}/v2/a/manifests/latest" in errors
