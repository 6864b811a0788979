"""Make a CA, a server's and a client's certificate: enough for a first try of TLS."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

_HOST = re.compile(r"(?=.{1,253}$)(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)*")
# A clock that is a little behind takes the certificates too.
_EARLIER = datetime.timedelta(minutes=5)


class CannotMakeFiles(Exception):  # noqa: N818 - says what cannot be done
    """The certificates cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class FirstTry:
    """The files in a folder."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The certificate of the CA."""
        return self.folder / "ca.pem"

    def cert(self, name: str) -> Path:
        """The certificate of ``server`` or ``client``."""
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        """The key of ``ca``, ``server`` or ``client``."""
        return self.folder / f"{name}.key"

    @property
    def all(self) -> Sequence[Path]:
        """Every file."""
        names = ("ca", "server", "client")
        return [path for name in names for path in (self.cert(name), self.key(name))]


def make(folder: Path, hosts: Sequence[str], client: str, days: int) -> FirstTry:
    """Make all files. Certificates are valid for ``days``, the CA for ten years.

    ``client`` is a SPIFFE id or a DNS name. Raises CannotMakeFiles, also where a file exists.
    """
    files = FirstTry(folder)
    try:
        server_names = [_host(host) for host in dict.fromkeys(hosts)]
        client_names = [_client(client)]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in files.all:
            if path.exists():
                raise CannotMakeFiles(
                    f"cannot make {path}: it exists; choose another folder with --dir, or remove"
                    " the old files"
                )
        _write_all(files, server_names, client_names, datetime.timedelta(days=days))
    except OSError as failure:
        where = failure.filename or folder
        raise CannotMakeFiles(f"cannot make {where}: {failure.strerror}") from None
    return files


def _write_all(
    files: FirstTry,
    server_names: Sequence[x509.GeneralName],
    client_names: Sequence[x509.GeneralName],
    valid: datetime.timedelta,
) -> None:
    ca_key, ca_name = ec.generate_private_key(ec.SECP256R1()), _subject("wasmkiln first-try CA")
    ca = (
        _begun(ca_name, ca_name, ca_key.public_key(), datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    _write(files.key("ca"), _private(ca_key), 0o600)
    _write(files.ca, ca.public_bytes(serialization.Encoding.PEM), 0o644)
    for name, names, purpose in (
        ("server", server_names, ExtendedKeyUsageOID.SERVER_AUTH),
        ("client", client_names, ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed(name, names, purpose, key.public_key(), ca_name, ca_key, valid)
        _write(files.key(name), _private(key), 0o600)
        _write(files.cert(name), certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _signed(
    name: str,
    names: Sequence[x509.GeneralName],
    purpose: ObjectIdentifier,
    key: ec.EllipticCurvePublicKey,
    ca_name: x509.Name,
    ca_key: ec.EllipticCurvePrivateKey,
    valid: datetime.timedelta,
) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _begun(_subject(f"wasmkiln {name}"), ca_name, key, valid)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(issuer, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    valid: datetime.timedelta,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + valid)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        if not _HOST.fullmatch(text):
            raise CannotMakeFiles(
                f"cannot make a certificate for {text!r}: it is neither an IP address nor a name"
            ) from None
        return x509.DNSName(text)


def _client(text: str) -> x509.GeneralName:
    if _SPIFFE.fullmatch(text):
        return x509.UniformResourceIdentifier(text)
    if not _HOST.fullmatch(text):
        raise CannotMakeFiles(
            f"cannot make a certificate for {text!r}: write a DNS name, or a SPIFFE id such as"
            " spiffe://example.org/builder"
        )
    return x509.DNSName(text)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(content)
