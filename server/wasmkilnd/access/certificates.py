"""Client certificates: whom one names, and whether a CA in force still vouches for it.

TLS has verified a certificate when the connection was made. A connection may last for days,
though, while certificates expire and CAs are replaced: so the guard looks again.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from wasmkilnd import errors
from wasmkilnd.errors import WasmkilnError

_LONGEST_CHAIN = 5
_LONGEST_NAME = 2048
# As the SPIFFE standard has them. A policy's patterns mean what they show only where a name has
# one form: without "..", escapes, ports and queries.
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.{1,2}(/|$))[A-Za-z0-9._-]+)*")
_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.InvalidVersion,
)


def certificate_name(pem: bytes, cas: Sequence[x509.Certificate]) -> tuple[str, float]:
    """Return the name of a peer, and when its certificate ceases to count, in Unix seconds.

    ``pem`` has the peer's certificate first, and what it has sent beside it. Raises
    CREDENTIALS_INVALID.
    """
    try:
        leaf, *others = x509.load_pem_x509_certificates(pem)
        name = _name(leaf)
    except _UNREADABLE:
        raise _refused("malformed", "it cannot be read, or the name in its SAN is none") from None
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
    """Return the SPIFFE id, else the first DNS name, else nothing. Raises one of _UNREADABLE."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    ids = [uri for uri in uris if uri.lower().startswith("spiffe:")]
    if len(ids) > 1:
        raise ValueError("which of them is meant?")
    for uri in ids:
        return _shaped(uri, _SPIFFE)
    for host in names.get_values_for_type(x509.DNSName):
        return f"dns:{_shaped(host.lower(), _HOST)}"
    return ""


def _shaped(name: str, shape: re.Pattern[str]) -> str:
    """Return a name that has one form, and that logs can hold. Raises ValueError."""
    if len(name) > _LONGEST_NAME or not shape.fullmatch(name):
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
    for between in range(_LONGEST_CHAIN):
        longer = []
        for certificate, until in paths:
            for ca in cas:
                if certificate == ca or (
                    _path_length_allows(ca, between) and _issued(certificate, ca)
                ):
                    found = min(until, ca.not_valid_after_utc)
                    best = found if best is None else max(best, found)
            longer += [
                (other, min(until, other.not_valid_after_utc))
                for other in others[:_LONGEST_CHAIN]
                if other != certificate
                and _may_issue(other, now)
                and _path_length_allows(other, between)
                and _issued(certificate, other)
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
    basic = _basic_constraints(certificate)
    return certificate.not_valid_before_utc <= now and basic is not None and basic.ca


def _path_length_allows(ca: x509.Certificate, between: int) -> bool:
    """Return whether ``between`` other CAs may stand between a CA and a peer."""
    basic = _basic_constraints(ca)
    return basic is None or basic.path_length is None or basic.path_length >= between


def _basic_constraints(certificate: x509.Certificate) -> x509.BasicConstraints | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, *_UNREADABLE):
        return None


def _refused(cause: str, why: str) -> WasmkilnError:
    return errors.credentials_invalid(cause, f"cannot accept your client certificate: {why}")
