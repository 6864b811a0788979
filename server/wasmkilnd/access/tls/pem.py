"""Certificates and private keys in PEM files, checked for what TLS needs."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from wasmkilnd.ownership import NotOurs, check_path

# A few hundred CAs.
_MOST_BYTES = 1024 * 1024
_LEAST_RSA_BITS = 2048
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


class TlsUnusable(Exception):  # noqa: N818 - says what the files are
    """A file cannot be used for TLS. The message names setting, file and cause; never a secret."""


@dataclass(frozen=True, slots=True)
class PemFile:
    """A file that a setting names, as it was read."""

    setting: str
    path: str
    content: bytes
    mode: int

    def refused(self, why: str) -> TlsUnusable:
        """Return the error that says why the file cannot be used."""
        return _refused(self.setting, self.path, why)


@dataclass(frozen=True, slots=True)
class Key:
    """A private key: its public half, and the PEM that TLS libraries take. No text shows it."""

    public: PublicKeyTypes
    pem: bytes

    def __repr__(self) -> str:
        return "Key(…)"


def read(setting: str, path: str) -> PemFile:
    """Read a file. Raises TlsUnusable."""
    try:
        # Without O_NONBLOCK a pipe would block.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise _refused(setting, path, "it is not a file")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(_MOST_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as failure:
        raise _refused(setting, path, failure.strerror or str(failure)) from None
    if len(content) > _MOST_BYTES:
        raise _refused(setting, path, "it is larger than 1 MiB")
    return PemFile(setting, path, content, stat.S_IMODE(found.st_mode))


def refuse_writers(setting: str, path: str) -> None:
    """Raise TlsUnusable if another user can change a file: who can decides who gets in."""
    try:
        check_path(Path(path))
    except NotOurs as refusal:
        raise TlsUnusable(f"{refusal} ({setting})") from None


def certificates(file: PemFile) -> Sequence[x509.Certificate]:
    """Return the certificates of a file, at least one. Raises TlsUnusable."""
    try:
        found = x509.load_pem_x509_certificates(file.content)
    except ValueError:
        raise file.refused("it holds no certificate in PEM") from None
    return found


def private_key(file: PemFile) -> Key:
    """Return the private key of a file. Raises TlsUnusable."""
    if file.mode & stat.S_IRWXO:
        raise file.refused(f"other users may read it; run `chmod o= {Path(file.path)}`")
    try:
        key = serialization.load_pem_private_key(file.content, None)
    except TypeError:
        raise file.refused("it has a password; store the key without one") from None
    except Exception:  # From None: the cause might hold a part of the key.
        raise file.refused("it holds no private key in PEM") from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _LEAST_RSA_BITS:
            raise file.refused(
                f"the RSA key has {key.key_size} bits; use one of at least {_LEAST_RSA_BITS}"
            )
    elif not (isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES):
        raise file.refused("TLS needs an ECDSA key (P-256, P-384, P-521) or an RSA key")
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Key(key.public_key(), pem)


def same_key(one: PublicKeyTypes, other: PublicKeyTypes) -> bool:
    """Return whether two public keys are the same."""
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return one.public_bytes(*form) == other.public_bytes(*form)


def why_not_valid(certificate: x509.Certificate, now: datetime.datetime) -> str:
    """Return why a certificate is not valid at ``now``; empty if it is."""
    if now > certificate.not_valid_after_utc:
        return f"it expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if now < certificate.not_valid_before_utc:
        return f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    return ""


def is_ca(certificate: x509.Certificate) -> bool:
    """Return whether a certificate may sign others."""
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return basic.ca


def as_pem(found: Sequence[x509.Certificate]) -> bytes:
    """Return certificates as PEM."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in found)


def _refused(setting: str, path: str, why: str) -> TlsUnusable:
    return TlsUnusable(f"cannot use {setting} {path}: {why}")
