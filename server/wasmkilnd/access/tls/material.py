"""``TlsMaterial``: a certificate, its key and the client CAs, checked together."""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509

from wasmkilnd.access.tls import pem
from wasmkilnd.access.tls.pem import TlsUnusable


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """The settings of TLS."""

    cert_file: str
    key_file: str
    client_ca_file: str = ""
    """Empty where callers need no certificate."""
    least_version: str = "1.3"

    @property
    def files(self) -> Sequence[str]:
        """The paths of all files."""
        return [path for path in (self.cert_file, self.key_file, self.client_ca_file) if path]


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What connections are made with. Immutable; its text shows no key."""

    chain_pem: bytes
    """The certificate, and those between it and its CA."""
    key_pem: bytes = field(repr=False)
    client_cas: Sequence[x509.Certificate]
    """The CAs that sign callers' certificates; empty where callers need none."""
    not_after: datetime.datetime
    """When the certificate, or one of its chain, expires."""
    client_ca_not_after: datetime.datetime | None
    """When the first of the client CAs expires."""
    _context: ssl.SSLContext = field(repr=False)

    @property
    def client_ca_pem(self) -> bytes:
        """The client CAs as PEM."""
        return pem.as_pem(self.client_cas)

    def http_context(self) -> ssl.SSLContext:
        """Return the context for HTTP: callers may show a certificate, and need not."""
        return self._context


def load(options: TlsOptions) -> TlsMaterial:
    """Read and check all files. Raises TlsUnusable. It may block: call it in a thread."""
    now = datetime.datetime.now(datetime.UTC)
    cert_file = pem.read("tls_cert_file", options.cert_file)
    key_file = pem.read("tls_key_file", options.key_file)
    chain = pem.certificates(cert_file)
    key = pem.private_key(key_file)
    if not pem.same_key(chain[0].public_key(), key.public):
        raise key_file.refused(f"it is not the key of the certificate in {options.cert_file}")
    for certificate in chain:
        if why := pem.why_not_valid(certificate, now):
            raise cert_file.refused(why)
    cas = _client_cas(options.client_ca_file, now) if options.client_ca_file else ()
    chain_pem = pem.as_pem(chain)
    try:
        context = _context(chain_pem, key.pem, pem.as_pem(cas), options.least_version)
    except ssl.SSLError as failure:
        raise cert_file.refused(failure.reason or "TLS refuses it") from None
    return TlsMaterial(
        chain_pem,
        key.pem,
        cas,
        min(each.not_valid_after_utc for each in chain),
        min((each.not_valid_after_utc for each in cas), default=None),
        context,
    )


def _client_cas(path: str, now: datetime.datetime) -> Sequence[x509.Certificate]:
    pem.refuse_writers("tls_client_ca_file", path)
    file = pem.read("tls_client_ca_file", path)
    found = pem.certificates(file)
    for certificate in found:
        if not pem.is_ca(certificate):
            name = certificate.subject.rfc4514_string()
            raise file.refused(f"the certificate {name} is not that of a CA")
    # One that has expired is left out, so that a file may hold an old and a new one.
    valid = tuple(each for each in found if not pem.why_not_valid(each, now))
    if not valid:
        raise file.refused(f"no CA in it is valid; the first: {pem.why_not_valid(found[0], now)}")
    return valid


def _context(chain: bytes, key: bytes, cas: bytes, least_version: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_2 if least_version == "1.2" else ssl.TLSVersion.TLSv1_3
    )
    context.set_alpn_protocols(["http/1.1"])
    # A session that goes on has the caller's certificate, and not those between it and its CA.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    # Python's ssl reads a key from a file only. This one is in memory, and holds the bytes that
    # were checked.
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(key + chain)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    if cas:
        context.load_verify_locations(cadata=cas.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        # As gRPC does it: a CA of the file counts even if another one signed it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST
    return context


__all__ = ["TlsMaterial", "TlsOptions", "TlsUnusable", "load"]
