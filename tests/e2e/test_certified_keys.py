"""Daemons and clients that trust a CA, and are told of no key."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from wasmkiln import AttestationInvalid, Client

from tests.code_signing import DAY, CodeSigningCA
from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.programs import ROOT, Installed
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import rejected
from tests.e2e.test_cache import COMPILED, REDIS, settled
from tests.e2e.test_revocation import reload, until
from tests.servers.redis_server import binary_of, redis_server


class Site:
    """Daemons with a key each, none of which another was told of."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self.ca = CodeSigningCA()
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(self.ca.pem)

    def certify(self, name: str, ca: CodeSigningCA, *, until: timedelta = DAY) -> Path:
        """Write a certificate of a daemon's key; return its file."""
        state = fresh_state(self._folder / name, own_keys=True, engines=ONE_ENGINE)
        file = self._folder / f"{name}.pem"
        file.write_bytes(ca.issue(KeyDirectory.of(state).public, until=until))
        return file

    def start(self, name: str, **settings: object) -> RedisDaemon:
        environ = {f"WASMKILN_{key.upper()}": str(value) for key, value in settings.items()}
        state = fresh_state(self._folder / name, own_keys=True, engines=ONE_ENGINE)
        return RedisDaemon(state, environ={"WASMKILN_REDIS_URL": self._url, **environ})


@pytest.fixture
def site(tmp_path: Path, engines: Installed) -> Iterator[Site]:
    with redis_server(binary_of("valkey"), tmp_path / "server") as running:
        yield Site(tmp_path, running.url)


def test_daemons_and_clients_that_trust_the_ca_accept_each_other(site: Site) -> None:
    ca_file, cert = site.ca_file, site.certify("one", site.ca)
    with site.start("one", signing_cert_file=cert, trusted_ca_file=ca_file) as one:
        with Client(one.address, trusted_keys=ca_file) as client:
            made = client.compile(wasm.adder(1))
            assert made.header.origin == COMPILED
            assert made.header.signer_certificate == cert.read_bytes()
            settled(client)
        stranger = CodeSigningCA()
        (ca_file.parent / "other.pem").write_bytes(stranger.pem)
        with (
            Client(one.address, trusted_keys=ca_file.parent / "other.pem") as client,
            pytest.raises(AttestationInvalid, match="not trusted"),
        ):
            client.compile(wasm.adder(1))
    with site.start("two", trusted_ca_file=ca_file) as two, two.client() as client:
        served = client.compile(wasm.adder(1))
        assert (served.header.origin, rejected(two)) == (REDIS, {})
        # So that its clients can verify it too.
        assert served.header.signer_certificate == cert.read_bytes()
        assert client.compile(wasm.adder(2)).header.signer_certificate == b""
    with site.start("three") as three, three.client() as client:
        assert client.compile(wasm.adder(1)).header.origin == COMPILED
        assert rejected(three)["stranger"]


@pytest.mark.timeout(600)
def test_a_key_is_trusted_no_longer_than_its_certificate(site: Site) -> None:
    began = time.monotonic()
    with site.start("two", trusted_ca_file=site.ca_file) as two, two.client() as client:
        # Longer than this machine needs to start another daemon and to call both, also if it gets
        # busy meanwhile.
        lifetime_s = max(12, 8 * (time.monotonic() - began))
        ends = time.monotonic() + lifetime_s
        cert = site.certify("one", site.ca, until=timedelta(seconds=lifetime_s))
        with site.start("one", signing_cert_file=cert) as one, one.client() as of_one:
            of_one.compile(wasm.adder(1))
            settled(of_one)
            assert client.compile(wasm.adder(1)).header.origin == REDIS

            def dropped() -> bool:
                reload(two)
                return "key no longer trusted" in two.log

            time.sleep(max(0, ends - time.monotonic()))
            until(dropped)
            until(lambda: client.compile(wasm.adder(1)).header.origin == COMPILED)
            assert rejected(two)["stranger"]


def test_the_commands_of_the_documentation(site: Site, tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    page = (ROOT / "docs" / "how-to" / "certify-keys.md").read_text()
    [command] = re.findall(r"^\$ (openssl x509 -new.*?cert\.pem)$", page, re.MULTILINE | re.DOTALL)
    make_ca = (
        "openssl req -x509 -newkey ed25519 -nodes -keyout ca.key -out ca.pem -days 9 -subj /CN=ca"
    )
    subprocess.run(make_ca.split(), cwd=tmp_path, check=True, capture_output=True)
    site.certify("one", site.ca)
    key = KeyDirectory.of(tmp_path / "one").public
    (tmp_path / "key.pem").write_text(key.pem)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True)
    cert, ca_file = tmp_path / "cert.pem", tmp_path / "ca.pem"
    with (
        site.start("one", signing_cert_file=cert, trusted_ca_file=ca_file) as one,
        Client(one.address, trusted_keys=ca_file) as client,
    ):
        assert client.compile(wasm.adder(1)).verify()
