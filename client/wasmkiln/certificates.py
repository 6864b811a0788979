"""Certificates of signing keys: a CA for code signing vouches for a key that nobody listed.

A certificate makes a key trusted while it is valid: by a trusted CA, over at most a few
intermediate ones, for code signing, of an Ed25519 key. The daemon and the client share this
module, which needs cryptography (`wasmkiln[verify]`). Lists of revoked certificates are not read:
`wasmkilnd keys revoke` revokes the key.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from wasmkiln.errors import VerificationNotInstalled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cryptography import x509

UTC = timezone.utc  # noqa: UP017 - Python 3.10 too
MAX_CHAIN_BYTES = 16 * 1024
"""The longest certificate with its chain, as PEM."""

_MAX_CERTIFICATES = 8
_MAX_STEPS = 4
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class CertifiedKey:
    """A key that a certificate makes trusted."""

    raw: bytes
    """The 32 bytes of the Ed25519 public key."""
    until_s: float
    """When the first certificate of the chain expires, in seconds since 1970."""


class CodeSigningCAs:
    """CAs that vouch for signing keys."""

    def __init__(self, pem: bytes) -> None:
        """Read the CAs in `pem`; leave out certificates that are none. Raise ValueError."""
        self._cas = [each for each in _certificates(pem) if _is_ca(each)] if pem else []

    @classmethod
    def of(cls, files: Iterable[bytes]) -> CodeSigningCAs:
        """Read the CAs in several files, each as PEM. Raise ValueError."""
        cas = cls(b"")
        cas._cas = [each for pem in files for each in _certificates(pem) if _is_ca(each)]
        return cas

    def __bool__(self) -> bool:
        """Return whether there is a CA."""
        return bool(self._cas)

    def certified(self, chain: bytes, now_s: float | None = None) -> CertifiedKey:
        """Return the key of the first certificate in `chain`, for which a CA vouches now.

        The others in `chain` are intermediate ones. Raise ValueError, which says why none does.
        """
        now = datetime.fromtimestamp(time.time() if now_s is None else now_s, UTC)
        leaf, *others = _certificates(chain)
        _check_leaf(leaf)
        path = self._path(leaf, others, now)
        until = min(each.not_valid_after_utc for each in path)
        return CertifiedKey(_ed25519(leaf), until.timestamp())

    def _path(
        self, leaf: x509.Certificate, others: Sequence[x509.Certificate], now: datetime
    ) -> list[x509.Certificate]:
        """Return the certificates from `leaf` to one of the CAs."""
        path = [leaf]
        _check_dates(leaf, now)
        while len(path) <= _MAX_STEPS:
            below = len(path) - 1  # intermediate certificates so far
            for ca in self._cas:
                if _issued(ca, path[-1], below):
                    _check_dates(ca, now)
                    return [*path, ca]
            above = [ca for ca in others if _is_ca(ca) and _issued(ca, path[-1], below)]
            if not above:
                break
            _check_dates(above[0], now)
            path.append(above[0])
        raise ValueError("no trusted CA issued the certificate")


def key_of(chain: bytes) -> bytes:
    """Return the 32 bytes of the key in the first certificate, unverified. Raise ValueError."""
    return _ed25519(_certificates(chain)[0])


def expiry_of(chain: bytes) -> float:
    """Return when the first certificate of the chain expires, unverified. Raise ValueError."""
    return min(each.not_valid_after_utc for each in _certificates(chain)).timestamp()


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        from cryptography import x509
    except ModuleNotFoundError as error:
        raise VerificationNotInstalled(
            "reading certificates needs cryptography: pip install 'wasmkiln[verify]'"
        ) from error
    if len(pem) > MAX_CHAIN_BYTES:
        raise ValueError(f"the certificates have more than {MAX_CHAIN_BYTES} bytes")
    blocks = _BLOCK.findall(pem)
    if not 0 < len(blocks) <= _MAX_CERTIFICATES:
        raise ValueError(f"expected 1 to {_MAX_CERTIFICATES} certificates as PEM")
    try:
        return [x509.load_pem_x509_certificate(block) for block in blocks]
    except ValueError as error:
        raise ValueError("cannot read a certificate") from error


def _extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> object:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except (ValueError, x509.DuplicateExtension) as error:
        raise ValueError("cannot read an extension of a certificate") from error


def _is_ca(certificate: x509.Certificate) -> bool:
    from cryptography import x509

    found = _extension(certificate, x509.BasicConstraints)
    return isinstance(found, x509.BasicConstraints) and found.ca


def _issued(ca: x509.Certificate, certificate: x509.Certificate, below: int) -> bool:
    """Return whether `ca` issued `certificate`, and may, with `below` others under it."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    constraints = _extension(ca, x509.BasicConstraints)
    usage = _extension(ca, x509.KeyUsage)
    if not isinstance(constraints, x509.BasicConstraints) or not constraints.ca:
        return False
    if constraints.path_length is not None and below > constraints.path_length:
        return False
    if isinstance(usage, x509.KeyUsage) and not usage.key_cert_sign:
        return False
    if not _understood(ca):
        return False
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _understood(certificate: x509.Certificate) -> bool:
    """Return whether no critical extension is unknown: such as constraints of names."""
    from cryptography.x509.oid import ExtensionOID

    known = {
        *(ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE),
        *(ExtensionOID.EXTENDED_KEY_USAGE, ExtensionOID.SUBJECT_ALTERNATIVE_NAME),
    }
    return all(each.oid in known or not each.critical for each in certificate.extensions)


def _check_leaf(leaf: x509.Certificate) -> None:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    purposes = _extension(leaf, x509.ExtendedKeyUsage)
    usage = _extension(leaf, x509.KeyUsage)
    if _is_ca(leaf):
        raise ValueError("the certificate is a CA's, not a signing key's")
    if not isinstance(purposes, x509.ExtendedKeyUsage) or (
        ExtendedKeyUsageOID.CODE_SIGNING not in purposes
    ):
        raise ValueError("the certificate is not for code signing (extended key usage)")
    if isinstance(usage, x509.KeyUsage) and not usage.digital_signature:
        raise ValueError("the certificate is not for digital signatures (key usage)")
    if not _understood(leaf):
        raise ValueError("the certificate has a critical extension that is not understood")


def _check_dates(certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise ValueError(f"a certificate is valid from {certificate.not_valid_before_utc} on")
    if now >= certificate.not_valid_after_utc:
        raise ValueError(f"a certificate expired at {certificate.not_valid_after_utc}")


def _ed25519(certificate: x509.Certificate) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("the certificate is not of an Ed25519 key")
    return key.public_bytes_raw()
