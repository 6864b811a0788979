"""Client certificates: whom one names, and whether a CA in force still vouches for it.

TLS has verified a certificate when the connection was made. A connection may last for days,
though, while certificates expire and CAs are replaced: so the guard looks again.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from wasmkilnd import errors
from wasmkilnd.errors import WasmkilnError

_LONGEST_CHAIN = 5
_LONGEST_NAME = 2048


def certificate_name(pem: bytes, cas: Sequence[x509.Certificate]) -> tuple[str, float]:
    """Return the name of a peer, and when its certificate ceases to count, in Unix seconds.

    ``pem`` has the peer's certificate first, and what it has sent beside it. Raises
    CREDENTIALS_INVALID.
    """
    try:
        leaf, *others = x509.load_pem_x509_certificates(pem)
        name = _name(leaf)
    except (ValueError, UnsupportedAlgorithm):
        raise _refused("malformed", "it cannot be read") from None
    if not name:
        raise _refused(
            "malformed", "it names nobody: it needs a SPIFFE id (URI) or a DNS name as its SAN"
        )
    now = datetime.datetime.now(datetime.UTC)
    until = _vouched_until(leaf, others, cas, now)
    if until is None:
        raise _refused("untrusted", "none of the daemon's CAs for callers signed it")
    if until <= now:
        raise _refused("expired", "it, or that of its CA, has expired")
    return name, until.timestamp()


def _name(leaf: x509.Certificate) -> str:
    """Return the first SPIFFE id, else the first DNS name, else nothing."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith("spiffe://"):
            return _shown(uri)
    for host in names.get_values_for_type(x509.DNSName):
        return _shown(f"dns:{host.lower()}")
    return ""


def _shown(name: str) -> str:
    """Return a name that logs can hold. Raises ValueError."""
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError("not a name")
    return name


def _vouched_until(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    cas: Sequence[x509.Certificate],
    now: datetime.datetime,
) -> datetime.datetime | None:
    """Return until when a CA vouches for ``leaf``, None if none does.

    ``others`` may stand between them.
    """
    paths = [(leaf, leaf.not_valid_after_utc)]
    best: datetime.datetime | None = None
    for _ in range(_LONGEST_CHAIN):
        longer = []
        for certificate, until in paths:
            for ca in cas:
                if certificate == ca or _issued(certificate, ca):
                    found = min(until, ca.not_valid_after_utc)
                    best = found if best is None else max(best, found)
            longer += [
                (other, min(until, other.not_valid_after_utc))
                for other in others[:_LONGEST_CHAIN]
                if other != certificate and _may_issue(other, now) and _issued(certificate, other)
            ]
        if best is not None or not longer:
            return best
        paths = longer[:_LONGEST_CHAIN]
    return best


def _issued(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _may_issue(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    if certificate.not_valid_before_utc > now:
        return False
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _refused(cause: str, why: str) -> WasmkilnError:
    return errors.credentials_invalid(cause, f"cannot accept your client certificate: {why}")
