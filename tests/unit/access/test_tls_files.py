"""What TLS is made of: which files can be used, why others cannot, and when they are read again."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from wasmkilnd.access.tls import TlsFiles, TlsUnusable, load
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


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Make a connection in memory; return the server's end of it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
    ]
    for _ in range(4):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[0]


def _client(site: Site) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(site.ca))


def test_the_files_serve_http_and_grpc(site: Site) -> None:
    material = load(site.options)
    client = _client(site)
    assert _handshake(material.http_context, client).version() == "TLSv1.3"
    assert material.chain_pem == site.cert.read_bytes()
    assert material.client_ca_pem == site.ca.read_bytes()


def test_http_takes_a_certificate_and_needs_none(site: Site) -> None:
    material = load(site.options)
    assert _handshake(material.http_context, _client(site)).getpeercert(True) is None
    pair = site.authority.client(dns="ci.example.org")
    client = _client(site)
    client.load_cert_chain(pair.cert_file, pair.key_file)
    shown = _handshake(material.http_context, client).getpeercert(True)
    assert shown
    assert ssl.DER_cert_to_PEM_cert(shown).encode() == pair.cert


def test_tls_1_2_is_spoken_only_if_asked(site: Site) -> None:
    client = _client(site)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        _handshake(load(site.options).http_context, client)
    asked = site.options.model_copy(update={"tls_min_version": "1.2"})
    assert _handshake(load(asked).http_context, client).version() == "TLSv1.2"


def _bare_key(site: Site) -> None:
    site.key.write_text("not a key")


def _with_password(site: Site) -> None:
    write_key(site.key, ec.generate_private_key(ec.SECP256R1()), b"a password")


def _readable(site: Site) -> None:
    site.key.chmod(0o604)


def _other_key(site: Site) -> None:
    write_key(site.key, ec.generate_private_key(ec.SECP256R1()))


def _edwards(site: Site) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    site.authority.server(key=key)


def _short(site: Site) -> None:
    site.authority.server(key=rsa.generate_private_key(65537, 1024))


def _expired(site: Site) -> None:
    site.authority.server(begins=-3 * DAY, ends=-DAY)


def _future(site: Site) -> None:
    site.authority.server(begins=DAY, ends=3 * DAY)


def _no_cert(site: Site) -> None:
    site.cert.unlink()


def _folder(site: Site) -> None:
    site.cert.unlink()
    site.cert.mkdir()


def _pipe(site: Site) -> None:
    site.cert.unlink()
    os.mkfifo(site.cert)


def _large(site: Site) -> None:
    site.cert.write_bytes(bytes(4 * 1024 * 1024 + 1))


def _key_as_cert(site: Site) -> None:
    site.cert.write_bytes(site.key.read_bytes())


def _no_ca(site: Site) -> None:
    site.ca.write_bytes(site.cert.read_bytes())


def _empty_ca(site: Site) -> None:
    site.ca.write_text("")


@pytest.mark.parametrize(
    ("spoil", "file", "why"),
    [
        (_bare_key, "tls_key_file", "it holds no private key in PEM without a password"),
        (_with_password, "tls_key_file", "it holds no private key in PEM without a password"),
        (_readable, "tls_key_file", "other users may read it; run `chmod o= "),
        (_other_key, "tls_key_file", "it is not the key of the certificate in "),
        (_edwards, "tls_key_file", "TLS needs an ECDSA key (P-256, P-384, P-521) or an RSA key"),
        (_short, "tls_key_file", "or an RSA key of at least 2048 bits"),
        (_expired, "tls_cert_file", "it is valid from "),
        (_future, "tls_cert_file", "it is valid from "),
        (_no_cert, "tls_cert_file", "there is no such file"),
        (_folder, "tls_cert_file", "Is a directory"),
        (_pipe, "tls_cert_file", "it is not a file"),
        (_large, "tls_cert_file", "it is larger than 4 MiB"),
        (_key_as_cert, "tls_cert_file", "it holds no certificate in PEM"),
        (_no_ca, "tls_client_ca_file", "a certificate in it is not that of a CA"),
        (_empty_ca, "tls_client_ca_file", "it holds no certificate in PEM"),
    ],
)
def test_files_that_cannot_be_used(
    site: Site, spoil: Callable[[Site], None], file: str, why: str
) -> None:
    secret = site.key.read_text().splitlines()[1]
    spoil(site)
    with pytest.raises(TlsUnusable) as refusal:
        load(site.options)
    message = str(refusal.value)
    assert message.startswith(f"cannot use {file} {site.authority.folder}/")
    assert why in message
    assert secret not in message


def test_cas_of_callers_that_others_can_write_are_refused(site: Site) -> None:
    for path in (site.ca, site.authority.folder):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        with pytest.raises(TlsUnusable, match=r"other users may write .* \(tls_client_ca_file\)"):
            load(site.options)
        path.chmod(mode)
    load(site.options)


def test_an_rsa_key_can_be_used(site: Site) -> None:
    site.authority.server(key=rsa.generate_private_key(65537, 2048))
    load(site.options)


def test_a_file_may_hold_an_old_and_a_new_ca(site: Site, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    site.ca.write_bytes(site.ca.read_bytes() + other.ca_file.read_bytes())
    assert len(load(site.options).client_cas) == 2


def test_no_text_shows_the_key(site: Site) -> None:
    material = load(site.options)
    assert "PRIVATE" not in repr(material)


def test_broken_files_change_nothing_and_are_counted(site: Site) -> None:
    files = TlsFiles(site.options)
    before = files.current
    site.key.write_text("broken")
    with pytest.raises(TlsUnusable, match="cannot use tls_key_file"):
        files.prepare(site.options)
    assert files.current is before
    assert files.failures == 1


def test_what_follows_the_files_is_told_once_they_are_in_force(site: Site) -> None:
    files, changed = TlsFiles(site.options), []
    files.on_change(lambda _old, _new: changed.append(files.current.chain_pem))
    new = site.authority.server()
    apply = files.prepare(site.options)
    assert changed == []
    apply()
    assert changed == [new.cert]


def test_a_reload_reads_the_files_at_once(site: Site) -> None:
    files = TlsFiles(site.options)
    before = files.current
    new = site.authority.server()
    apply = files.prepare(site.options)
    assert files.current is before
    apply()
    assert files.current.chain_pem == new.cert
    site.key.write_text("broken")
    with pytest.raises(TlsUnusable, match="cannot use tls_key_file"):
        files.prepare(site.options)
    assert files.current.chain_pem == new.cert
