"""`wasmkiln warm oci://…` over TLS: whom it trusts, and what it never sends in the clear."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from wasmkiln.cli.app import Exit, app

from tests.authority import Authority
from tests.oci import Image
from tests.unit.client.lying_registry import LyingRegistry, lying_registry, send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

    from tests.unit.client.fake_daemon import FakeDaemon

MODULE = b"\0asm\x01\0\0\0over tls"
SHA256 = hashlib.sha256(MODULE).hexdigest()
PASSWORD = "never-in-the-clear"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def registry(authority: Authority) -> Iterator[LyingRegistry]:
    pair = authority.server()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.cert_file, pair.key_file)
    with lying_registry(Image.wash(MODULE), tls) as running:
        yield running


@pytest.fixture
def plain() -> Iterator[LyingRegistry]:
    with lying_registry(Image.wash(MODULE)) as running:
        yield running


@pytest.fixture
def run(
    daemon: FakeDaemon,
    registry: LyingRegistry,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, str]]:
    """Runs `warm` of the registry's image over TLS, whose CA is trusted, with a password."""
    monkeypatch.setenv("WASMKILN_ADDRESS", daemon.address)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca_file))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    auth = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(
        json.dumps({"auths": {registry.host: {"auth": auth}}})
    )

    def invoke(*arguments: str) -> tuple[int, str]:
        reference = f"oci://{registry.host}/acme/app"
        result = CliRunner().invoke(app, ("warm", "--no-plain-http", reference, *arguments))
        assert PASSWORD not in result.output
        assert auth not in result.output
        return result.exit_code, result.stderr

    return invoke


def asks_for(challenge: str) -> Callable[[BaseHTTPRequestHandler], bool]:
    """Return a lie that asks for credentials until there are some."""

    def ask(request: BaseHTTPRequestHandler) -> bool:
        if request.headers.get("Authorization"):
            return False
        send(request, 401, b"", {"WWW-Authenticate": challenge})
        return True

    return ask


def to(location: str) -> Callable[[BaseHTTPRequestHandler], Any]:
    """Return a lie that redirects."""
    return lambda request: send(request, 307, b"", {"Location": location})


def test_a_ca_that_the_environment_names(
    run: Callable[..., tuple[int, str]], daemon: FakeDaemon, registry: LyingRegistry
) -> None:
    registry.lies["/v2/"] = asks_for('Basic realm="r"')
    code, errors = run()
    assert code == Exit.OK, errors
    assert daemon.modules == {SHA256: MODULE}


def test_a_ca_that_nobody_knows(
    run: Callable[..., tuple[int, str]], registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    code, errors = run()
    assert code == Exit.REFUSED
    assert "certificate verify failed" in errors
    assert not registry.seen


def test_a_redirect_out_of_tls_is_not_followed(
    run: Callable[..., tuple[int, str]],
    daemon: FakeDaemon,
    registry: LyingRegistry,
    plain: LyingRegistry,
) -> None:
    registry.lies["/v2/"] = asks_for('Basic realm="r"')
    registry.lies["blobs"] = to(f"http://{plain.host}/blobs/sha256:{SHA256}")
    code, errors = run()
    assert code == Exit.REFUSED
    assert "is not reached over https: not asked" in errors
    assert (plain.seen, daemon.modules) == ([], {})


def test_a_password_does_not_go_to_a_server_of_tokens_without_tls(
    run: Callable[..., tuple[int, str]], registry: LyingRegistry, plain: LyingRegistry
) -> None:
    realm = f'Bearer realm="http://{plain.host}/token",service="reg"'
    registry.lies["/v2/"] = asks_for(realm)
    code, errors = run()
    assert code == Exit.REFUSED
    assert "is not reached over https: not asked" in errors
    assert not plain.seen


def test_a_server_of_tokens_cannot_be_sent_out_of_tls(
    run: Callable[..., tuple[int, str]], registry: LyingRegistry, plain: LyingRegistry
) -> None:
    registry.lies["/token"] = to(f"http://{plain.host}/token")
    realm = f'Bearer realm="https://{registry.host}/token",service="reg"'
    registry.lies["/v2/"] = asks_for(realm)
    code, errors = run()
    assert code == Exit.REFUSED
    assert "is not reached over https: not asked" in errors
    assert not plain.seen


def test_a_helper_that_keeps_the_password(
    run: Callable[..., tuple[int, str]],
    daemon: FakeDaemon,
    registry: LyingRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    helper = tmp_path / "bin" / "docker-credential-tests"
    helper.parent.mkdir()
    secret = json.dumps({"Username": "me", "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\necho '{secret}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(helper.parent), prepend=":")
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text(
        json.dumps({"credHelpers": {registry.host: "tests"}})
    )
    (tmp_path / ".docker/config.json").unlink()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    registry.lies["/v2/"] = asks_for('Basic realm="r"')
    code, errors = run()
    assert code == Exit.OK, errors
    sent = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    assert registry.seen[-1][1] == f"Basic {sent}"
    assert daemon.modules == {SHA256: MODULE}
