"""What TLS is made of: which files can be used, why others cannot, and when they are read again."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from wasmkilnd.access.tls import TlsFiles, load
from wasmkilnd.errors import CannotUse
from wasmkilnd.settings import Settings

from tests.authority import DAY, Authority, write_key


@dataclass
class Site:
    """Files that can be used."""

    authority: Authority
    options: Settings

    @property
    def cert(self) -> Path:
        return Path(self.options.tls_cert_file)

    @property
    def key(self) -> Path:
        return Path(self.options.tls_key_file)

    @property
    def ca(self) -> Path:
        return Path(self.options.tls_client_ca_file)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    authority = Authority(tmp_path)
    pair = authority.server()
    settings = Settings(
        tls_cert_file=str(pair.cert_file),
        tls_key_file=str(pair.key_file),
        tls_client_ca_file=str(authority.ca_file),
    )
    return Site(authority, settings)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def without(path: Path) -> Path:
    path.unlink()
    return path


CERT, KEY, CA = "tls_cert_file", "tls_key_file", "tls_client_ca_file"
NO_KEY, NO_CERT = "it holds no private key in PEM without", "it holds no certificate in PEM"
# What is done to the files, which setting is told of, and why.
UNUSABLE: dict[str, tuple[Callable[[Site], object], str, str]] = {
    "no key": (lambda site: site.key.write_text("not a key"), KEY, NO_KEY),
    "a password": (lambda site: write_key(site.key, new_key(), b"a password"), KEY, NO_KEY),
    "readable": (lambda site: site.key.chmod(0o604), KEY, "other users may read it; run `chmod o="),
    "another key": (lambda site: write_key(site.key, new_key()), KEY, "it is not the key of the"),
    "ed25519": (
        lambda site: site.authority.server(key=ed25519.Ed25519PrivateKey.generate()),
        KEY,
        "TLS needs an ECDSA key (P-256, P-384, P-521) or an RSA key",
    ),
    "short": (
        lambda site: site.authority.server(key=rsa.generate_private_key(65537, 1024)),
        KEY,
        "or an RSA key of at least 2048 bits",
    ),
    "old": (lambda site: site.authority.server(begins=-3 * DAY, ends=-DAY), CERT, "it is valid"),
    "new": (lambda site: site.authority.server(begins=DAY, ends=3 * DAY), CERT, "it is valid"),
    "missing": (lambda site: site.cert.unlink(), CERT, "there is no such file"),
    "a folder": (lambda site: without(site.cert).mkdir(), CERT, "Is a directory"),
    "a pipe": (lambda site: os.mkfifo(without(site.cert)), CERT, "it is not a file"),
    "large": (lambda site: site.cert.write_bytes(bytes(2**22 + 1)), CERT, "larger than 4 MiB"),
    "a key": (lambda site: site.cert.write_bytes(site.key.read_bytes()), CERT, NO_CERT),
    "no CA": (lambda site: site.ca.write_bytes(site.cert.read_bytes()), CA, "not that of a CA"),
    "empty": (lambda site: site.ca.write_text(""), CA, NO_CERT),
}


@pytest.mark.parametrize("how", UNUSABLE)
def test_files_that_cannot_be_used(site: Site, how: str) -> None:
    spoil, file, why = UNUSABLE[how]
    secret = site.key.read_text().splitlines()[1]
    spoil(site)
    with pytest.raises(CannotUse) as refusal:
        load(site.options)
    message = str(refusal.value)
    assert message.startswith(f"cannot use {file} {site.authority.folder}/")
    assert why in message
    assert secret not in message


def test_cas_of_callers_that_others_can_write_are_refused(site: Site) -> None:
    for path in (site.ca, site.authority.folder):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        with pytest.raises(CannotUse, match=r"other users may write .* \(tls_client_ca_file\)"):
            load(site.options)
        path.chmod(mode)
    load(site.options)


def test_an_rsa_key_and_two_cas_can_be_used(site: Site, tmp_path: Path) -> None:
    site.authority.server(key=rsa.generate_private_key(65537, 2048))
    site.key.chmod(0o440)  # As a Secret is mounted.
    other = Authority(tmp_path / "other")
    site.ca.write_bytes(site.ca.read_bytes() + other.ca_file.read_bytes())
    material = load(site.options)
    assert len(material.client_cas) == 2
    assert "PRIVATE" not in repr(material)


def test_tls_1_2_is_spoken_only_if_asked(site: Site) -> None:
    assert load(site.options).http_context.minimum_version is ssl.TLSVersion.TLSv1_3
    asked = site.options.model_copy(update={"tls_min_version": "1.2"})
    assert load(asked).http_context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_reload_takes_files_whole_or_not_at_all(site: Site) -> None:
    files, changed = TlsFiles(site.options), []
    files.on_change = lambda _old, _new: changed.append(files.current.chain_pem)
    before = files.current
    new = site.authority.server()
    apply = files.prepare(site.options)
    assert files.current is before
    assert changed == []
    apply()
    assert changed == [new.cert]
    site.key.write_text("broken")
    with pytest.raises(CannotUse, match="cannot use tls_key_file"):
        files.prepare(site.options)
    assert files.current.chain_pem == new.cert
    assert files.failures == 1
