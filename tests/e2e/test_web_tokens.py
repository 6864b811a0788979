"""JSON Web Tokens in a running daemon: keys from a file and a URL, replaced while it serves."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.authority import Authority
from tests.e2e.bearers import bearer, reload
from tests.e2e.daemon import RedisDaemon
from tests.e2e.test_access import FLAGS, Stubs
from tests.web_tokens import TestIssuer, jwt_table

POLICY = """
[[rule]]
identity = "jwt:*"
claims = { groups = "wasm" }
roles = ["read"]
"""
OLD, NEW = TestIssuer(key_id="old"), TestIssuer(key_id="new")


def flags(folder: Path, keys: str) -> list[str]:
    policy = folder / "policy.toml"
    policy.write_text(jwt_table(keys) + POLICY)
    return [*FLAGS, "--policy-file", str(policy)]


def sent(issuer: TestIssuer, **claims: Any) -> tuple[tuple[str, str], ...]:
    return bearer(issuer.token(groups=["wasm"], **claims))


class Issuer(http.server.ThreadingHTTPServer):
    """Serves a key set over TLS."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        pair = authority.server()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert_file, pair.key_file)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.content = OLD.key_set()
        self.redirect = ""
        self.asked = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}/keys?secret=x"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(302 if self.server.redirect else 200)
        self.send_header("Location", self.server.redirect)
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    with Issuer(Authority(tmp_path / "issuer")) as one:
        yield one
        one.shutdown()


def test_keys_of_a_url_are_fetched_beside_the_calls(
    lean_state_dir: Path, tmp_path: Path, issuer: Issuer
) -> None:
    trusted = {"SSL_CERT_FILE": str(tmp_path / "issuer" / "ca.pem")}
    with (
        RedisDaemon(lean_state_dir, flags(tmp_path, issuer.url), trusted) as daemon,
        Stubs(daemon.address) as stubs,
    ):
        old = sent(OLD)
        assert stubs.capabilities(old) == ""
        assert stubs.capabilities(sent(OLD, aud="other")) == "CREDENTIALS_INVALID"
        # Whoever makes up keys does not make the daemon ask for each.
        for _ in range(20):
            assert stubs.capabilities(sent(NEW)) == "CREDENTIALS_INVALID"
        assert issuer.asked == 1
        issuer.content = NEW.key_set()
        reload(daemon)
        assert stubs.capabilities(sent(NEW)) == ""
        assert stubs.capabilities(old) == "CREDENTIALS_INVALID"
        issuer.redirect = "http://127.0.0.1:1/"
        reload(daemon)
        assert "the server answered 302" in daemon.log
        assert stubs.capabilities(sent(NEW)) == ""
    assert "secret=x" not in daemon.log.replace("setting changed", "")
    assert old[0][1].split(".")[2] not in daemon.log


def test_an_issuer_that_is_silent_delays_no_start_and_one_without_trust_lets_nobody_in(
    lean_state_dir: Path, tmp_path: Path, issuer: Issuer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = flags(tmp_path, f"https://127.0.0.1:{silent.getsockname()[1]}/keys")
        with RedisDaemon(lean_state_dir, words) as daemon, Stubs(daemon.address) as stubs:
            assert "cannot fetch jwt keys" not in daemon.log  # It still waits for the issuer.
            assert stubs.capabilities(sent(OLD)) == "CREDENTIALS_INVALID"
            flags(tmp_path, issuer.url)
            reload(daemon)
            line = daemon.wait_for_log("cannot fetch jwt keys: the old ones stay")
            assert "CERTIFICATE_VERIFY_FAILED" in line
            assert stubs.capabilities(sent(OLD)) == "CREDENTIALS_INVALID"
    assert issuer.asked == 0
