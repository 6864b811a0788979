"""Certificate authorities of the tests' own, and what they sign."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

DAY = datetime.timedelta(days=1)
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Pair:
    """A certificate, with its chain, and its key, in files."""

    cert_file: Path
    key_file: Path

    @property
    def cert(self) -> bytes:
        """The certificate as PEM."""
        return self.cert_file.read_bytes()

    @property
    def key(self) -> bytes:
        """The key as PEM."""
        return self.key_file.read_bytes()


class Authority:
    """A CA, whose certificate is in ``ca_file``."""

    def __init__(
        self,
        folder: Path,
        name: str = "ca",
        *,
        path_length: int | None = 0,
        issuer: Authority | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca_file = folder / f"{name}.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"tests {name}")])
        signer = issuer or self
        certificate = (
            _begun(self._name, signer._name, self._key.public_key(), -DAY, 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .sign(signer._key, hashes.SHA256())
        )
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def authority(self, name: str) -> Authority:
        """Return a CA that this one has signed."""
        return Authority(self.folder, name, issuer=self)

    def sign_extension(self, extension: x509.ExtensionType) -> bytes:
        """Return a certificate, as PEM, with this extension and no other."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _begun(self._name, self._name, key.public_key(), -DAY, DAY)
        signed = made.add_extension(extension, critical=False).sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    def server(
        self,
        name: str = "server",
        hosts: Sequence[str] = LOCAL,
        *,
        begins: datetime.timedelta = -DAY,
        ends: datetime.timedelta = 10 * DAY,
        key: PrivateKey | None = None,
    ) -> Pair:
        """Sign a certificate for a server at ``hosts``."""
        return self._sign(name, [_host(host) for host in hosts], begins, ends, key)

    def client(
        self,
        name: str = "client",
        *,
        spiffe: str = "",
        dns: str = "",
        begins: datetime.timedelta = -DAY,
        ends: datetime.timedelta = 10 * DAY,
    ) -> Pair:
        """Sign a certificate for a caller that is called so."""
        names: list[x509.GeneralName] = []
        if spiffe:
            names.append(x509.UniformResourceIdentifier(spiffe))
        if dns:
            names.append(x509.DNSName(dns))
        return self._sign(name, names, begins, ends, None)

    def _sign(
        self,
        name: str,
        names: Sequence[x509.GeneralName],
        begins: datetime.timedelta,
        ends: datetime.timedelta,
        key: PrivateKey | None,
    ) -> Pair:
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"tests {name}")])
        usages = x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        )
        made = (
            _begun(subject, self._name, key.public_key(), begins, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(usages, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        pair.cert_file.write_bytes(
            made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        write_key(pair.key_file, key)
        return pair


def write_key(path: Path, key: PrivateKey, password: bytes = b"") -> None:
    """Write a key that only its owner can read."""
    protection = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey,
    begins: datetime.timedelta,
    ends: datetime.timedelta,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
