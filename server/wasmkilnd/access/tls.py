"""TLS: the files that the daemon reads for it, and what is made of them; whom certificates name.

``TlsFiles.current`` is what connections are made with from now on: ``http_context`` for HTTP,
and the certificate configuration for gRPC, which asks for it at each handshake. Connections that
exist keep what they were made with, and may last for days, while certificates expire and CAs are
replaced. So the guard looks at the certificate of a caller at each call (``certificate_name``): a
CA that is not in force any more lets nobody in, over no connection.

Promises: files that cannot be used change nothing, and the log says so once. The files are checked
as a whole before any of them is used, and what was checked is what is used: nothing is read twice.
Messages read "cannot use tls_key_file /path: why" and never hold a key.

Certificate and key may be replaced one after the other: files that changed are read once they have
stayed the same for a second (``lifecycle.reload``).
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import Certificate

from wasmkilnd import errors
from wasmkilnd.files.operator_files import CannotUse, read
from wasmkilnd.settings import Settings

log = structlog.get_logger("wasmkilnd")

Certificates: TypeAlias = Sequence[Certificate]
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_LONGEST_CHAIN = 5
_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # gRPC takes no others.
_LONGEST_NAME = 2048
# As the SPIFFE standard has them. A policy's patterns mean what they show only where a name has
# one form: without "..", escapes, ports and queries.
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.{1,2}(/|$))[A-Za-z0-9._-]+)*")
_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What connections are made with. Immutable; its text shows no key.

    - ``chain_pem``: the certificate, and those between it and its CA.
    - ``client_cas``: the CAs that sign callers' certificates; empty where callers need none.
    - ``not_after``: when the first certificate of each file expires: ``cert``, ``client_ca``.
    - ``http_context``: that for HTTP: callers may show a certificate, and need not.
    """

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    client_cas: Certificates
    client_ca_pem: bytes
    not_after: Mapping[str, datetime]
    http_context: ssl.SSLContext = field(repr=False)


class TlsFiles:
    """Holds the material in force. For one event loop; ``current`` may be read from any thread."""

    def __init__(self, settings: Settings) -> None:
        """Read and check the files. Raises CannotUse."""
        self.current: TlsMaterial = load(settings)  # What new connections are made with.
        self.failures = 0  # How often changed files could not be used.
        # Called with the old and the new, right after ``current`` was replaced.
        self.on_change: Callable[[TlsMaterial, TlsMaterial], object] = lambda _old, _new: None

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Read the files again; return what puts them in force, to be called in the event loop.

        It may block: call it in a thread. Raises CannotUse.
        """
        try:
            material = load(settings)
        except Exception:
            self.failures += 1
            raise
        return lambda: self._apply(material)

    def _apply(self, new: TlsMaterial) -> None:
        old, self.current = self.current, new
        self.on_change(old, new)
        if (old.chain_pem, old.client_ca_pem) != (new.chain_pem, new.client_ca_pem):
            log.info("TLS files reloaded", not_after=new.not_after["cert"].isoformat())


def server_credentials(files: TlsFiles, *, client_certificates: bool) -> Any:
    """Return gRPC's credentials for one address, which take what is in force at each handshake.

    With ``client_certificates``, a caller needs one that a client CA has signed.
    """
    given = files.current

    def configuration(material: TlsMaterial) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(material.key_pem, material.chain_pem)],
            material.client_ca_pem if client_certificates else None,
        )

    def changed() -> Any:
        # gRPC calls this in a thread of its own, one handshake at a time.
        nonlocal given
        if (current := files.current) is given:
            return None
        made = configuration(current)
        given = current
        return made

    return grpc.dynamic_ssl_server_credentials(configuration(given), changed, client_certificates)


def load(settings: Settings) -> TlsMaterial:
    """Read and check all files. Raises CannotUse. It may block: call it in a thread."""
    now = datetime.now(UTC)
    chain = _certificates(settings, "tls_cert_file")
    key = _private_key(settings)
    if chain[0].public_key() != key.public_key():
        why = f"it is not the key of the certificate in {settings.tls_cert_file}"
        raise _refused(settings, "tls_key_file", why)
    for each in chain:
        if not _is_valid(each, now):
            begins, ends = each.not_valid_before_utc, each.not_valid_after_utc
            why = f"it is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC only"
            raise _refused(settings, "tls_cert_file", why)
    cas = _client_cas(settings, now) if settings.tls_client_ca_file else ()
    chain_pem, key_pem, cas_pem = as_pem(chain), private_pem(key), as_pem(cas)
    try:
        context = _context(key_pem + chain_pem, cas_pem.decode(), settings.tls_min_version)
    except ssl.SSLError as failure:
        raise _refused(settings, "tls_cert_file", failure.reason or "TLS refuses it") from None
    not_after = {
        file: min(each.not_valid_after_utc for each in found)
        for file, found in (("cert", chain), ("client_ca", cas))
        if found
    }
    return TlsMaterial(chain_pem, key_pem, cas, cas_pem, not_after, context)


def certificate_name(pem: bytes, cas: Certificates) -> tuple[str, float]:
    """Return the name of a peer, and when its certificate ceases to count, in Unix seconds.

    TLS has verified the certificate when the connection was made. ``pem`` has it first, and what
    the peer has sent beside it. Raises CREDENTIALS_INVALID.
    """
    now = datetime.now(UTC)
    try:
        leaf, *others = x509.load_pem_x509_certificates(pem)
        name = _name(leaf)
    except Exception:  # The bytes are a stranger's, and the library has many errors.
        cause, why = "malformed", "it needs a SPIFFE id (URI) or a DNS name as its SAN"
    else:
        until = _vouched_until(leaf, others, cas, now)
        if until and until > now:
            return name, until.timestamp()
        cause, why = "untrusted", "none of the daemon's CAs for callers signed it"
        if until:
            cause, why = "expired", "it, or that of its CA, has expired"
    raise errors.credentials_invalid(cause, f"cannot accept your client certificate: {why}")


def peer_name(text: str) -> str:
    """Return the name of an identity: a SPIFFE id, or ``dns:`` and a host name.

    Each has one form, which logs can hold. Raises ValueError.
    """
    spiffe = text.lower().startswith("spiffe:")
    name = text if spiffe else text.lower()
    if len(name) > _LONGEST_NAME or not (_SPIFFE if spiffe else _HOST).fullmatch(name):
        raise ValueError("not a name")
    return name if spiffe else f"dns:{name}"


def _name(leaf: Certificate) -> str:
    """Return the SPIFFE id, else the first DNS name. Raise whatever if there is none."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    ids = [uri for uri in uris if uri.lower().startswith("spiffe:")]
    if len(ids) > 1:
        raise ValueError("which of them is meant?")
    if ids:
        return peer_name(ids[0])
    name = peer_name(names.get_values_for_type(x509.DNSName)[0])
    if not name.startswith("dns:"):  # A CA that vouches for host names may not look at this.
        raise ValueError("a SPIFFE id is a URI")
    return name


def _vouched_until(
    leaf: Certificate, others: Certificates, cas: Certificates, now: datetime
) -> datetime | None:
    """Return until when a CA vouches for ``leaf``, None if none does.

    ``others`` may stand between them.
    """
    paths = [(leaf, leaf.not_valid_after_utc)]
    for between in range(_LONGEST_CHAIN):
        vouched = [
            min(until, ca.not_valid_after_utc)
            for certificate, until in paths
            for ca in cas
            if certificate == ca or _issued(certificate, ca, between)
        ]
        if vouched:
            return max(vouched)
        above = [each for each in others if _is_ca(each) and each.not_valid_before_utc <= now]
        paths = [
            (other, min(until, other.not_valid_after_utc))
            for certificate, until in paths[:_LONGEST_CHAIN]
            for other in above[:_LONGEST_CHAIN]
            if _issued(certificate, other, between)
        ]
    return None


def _issued(certificate: Certificate, ca: Certificate, between: int) -> bool:
    """Return whether a CA issued a certificate; ``between`` other CAs stand below it."""
    if _is_ca(ca, between):
        with suppress(ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            certificate.verify_directly_issued_by(ca)
            return True
    return False


def _is_ca(certificate: Certificate, between: int = 0) -> bool:
    """Return whether a certificate is that of a CA that may have ``between`` CAs below it."""
    with suppress(Exception):  # It has no constraints, or some that cannot be read.
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        return basic.ca and (basic.path_length is None or basic.path_length >= between)
    return False


def _is_valid(certificate: Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _certificates(settings: Settings, setting: str, *, ours: bool = False) -> Certificates:
    content = read(setting, Path(getattr(settings, setting)), ours=ours)
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise _refused(settings, setting, "it holds no certificate in PEM") from None


def _client_cas(settings: Settings, now: datetime) -> Certificates:
    setting = "tls_client_ca_file"
    found = _certificates(settings, setting, ours=True)
    if not all(map(_is_ca, found)):
        raise _refused(settings, setting, "a certificate in it is not that of a CA")
    # One that has expired is left out, so that a file may hold an old and a new one.
    valid = tuple(each for each in found if _is_valid(each, now))
    if not valid:
        raise _refused(settings, setting, "no CA in it is valid now")
    return valid


def _private_key(settings: Settings) -> PrivateKey:
    path = Path(settings.tls_key_file)
    content, why = read("tls_key_file", path, ours=False, closed=True), ""
    try:
        key = serialization.load_pem_private_key(content, None)
    except Exception:
        why = "it holds no private key in PEM without a password"
    else:
        if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
            return key
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
            return key
        why = "TLS needs an ECDSA key (P-256, P-384, P-521) or an RSA key of at least 2048 bits"
    # Beyond the handler: its cause might hold a part of the key.
    raise _refused(settings, "tls_key_file", why)


def _context(key_and_chain: bytes, cas: str, least_version: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion["TLSv1_2" if least_version == "1.2" else "TLSv1_3"]
    context.set_alpn_protocols(["http/1.1"])
    # A session that goes on has the caller's certificate, and not those between it and its CA.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    # Python's ssl reads a key from a file only. This one is in memory, and holds the bytes that
    # were checked.
    with open(os.memfd_create("tls"), "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(key_and_chain)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    if cas:
        context.load_verify_locations(cadata=cas)
        context.verify_mode = ssl.CERT_OPTIONAL
        # As gRPC does it: a CA of the file counts even if another one signed it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST
    return context


def private_pem(key: PrivateKey) -> bytes:
    """Return a private key as PEM, without a password."""
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(*form, serialization.NoEncryption())


def as_pem(found: Certificates) -> bytes:
    """Return certificates as PEM."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in found)


def _refused(settings: Settings, setting: str, why: str) -> CannotUse:
    return CannotUse(f"cannot use {setting} {getattr(settings, setting)}: {why}")
