"""Until when a certificate is valid, read by the standard library alone."""

from __future__ import annotations

import datetime
import re
import ssl

_PEM = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18


def valid_until(pem: str) -> datetime.datetime | None:
    """Return the end of the first certificate's validity; None where it cannot be read."""
    found = _PEM.search(pem)
    try:
        der = ssl.PEM_cert_to_DER_cert(found[0]) if found else b""
        return _not_after(der)
    except (ValueError, IndexError):
        return None


def _not_after(der: bytes) -> datetime.datetime:
    """Walk down to the date (RFC 5280, 4.1). Raise ValueError or IndexError."""
    _, certificate, _ = _element(der)
    _, fields, _ = _element(certificate)
    tag, _, rest = _element(fields)
    if tag == _VERSION:
        _, _, rest = _element(rest)  # the serial number
    for _ in ("signature", "issuer"):
        _, _, rest = _element(rest)
    _, validity, _ = _element(rest)
    _, _, rest = _element(validity)
    tag, text, _ = _element(rest)
    date = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}.get(tag)
    if date is None:
        raise ValueError("not a date")
    parsed = datetime.datetime.strptime(text.decode("ascii"), date)
    return parsed.replace(tzinfo=datetime.timezone.utc)  # noqa: UP017 - Python 3.10 too


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and the content of the first DER element, and what follows it."""
    tag, length, begin = data[0], data[1], 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(data[2:begin], "big")
    if begin + length > len(data):
        raise ValueError("cut short")
    return tag, data[begin : begin + length], data[begin + length :]
