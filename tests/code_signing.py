"""A CA for code signing, and certificates of signing keys that it issues."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from wasmkiln.trusted_keys import PublicKey

DAY = timedelta(days=1)
CODE_SIGNING = (ExtendedKeyUsageOID.CODE_SIGNING,)


def now() -> datetime:
    return datetime.now(UTC)


class CodeSigningCA:
    """An authority; ``chain`` is its certificate as PEM, and those above it without the root."""

    def __init__(
        self,
        name: str = "code signing for tests",
        above: CodeSigningCA | None = None,
        *,
        path_length: int | None = None,
        is_ca: bool = True,
        may_issue: bool = True,
        until: timedelta = DAY,
    ) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(is_ca, path_length if is_ca else None)
        usage = x509.KeyUsage(False, False, False, False, False, may_issue, False, False, False)
        builder = (
            _begin(self.name, above.name if above else self.name, self._key.public_key(), until)
            .add_extension(constraints, critical=True)
            .add_extension(usage, critical=True)
        )
        made = builder.sign(above._key if above else self._key, hashes.SHA256())
        self.pem = made.public_bytes(serialization.Encoding.PEM)
        self.chain: bytes = self.pem + above.chain if above else b""

    def issue(
        self,
        key: PublicKey,
        *,
        purposes: Sequence[x509.ObjectIdentifier] = CODE_SIGNING,
        since: timedelta = -DAY,
        until: timedelta = DAY,
        extension: x509.ExtensionType | None = None,
    ) -> bytes:
        """Return a certificate of ``key`` as PEM, with the chain."""
        public = ed25519.Ed25519PublicKey.from_public_bytes(key.raw)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a daemon for tests")])
        builder = _begin(name, self.name, public, until, since)
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if extension:
            builder = builder.add_extension(extension, critical=True)
        made = builder.sign(self._key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM) + self.chain


def _begin(
    name: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
    until: timedelta,
    since: timedelta = -DAY,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() + since)
        .not_valid_after(now() + until)
    )
