"""Where the collector of traces is: ``http://host:port`` or ``https://host:port``."""

from __future__ import annotations

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator


def parse_collector(value: object) -> object:
    """Return the URL as gRPC takes it; empty for none. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("expected a string")
    text = value.strip()
    if not text:
        return ""
    what = "write http://host:port or https://host:port"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(f"it is not the address of a collector: {what}") from None
    if "@" in url.netloc:
        raise ValueError("put the token of the collector into trace_headers_file, not into the URL")
    rest = url.path.strip("/") or url.query or url.fragment
    if url.scheme not in ("http", "https") or not url.hostname or rest:
        raise ValueError(f"{text!r} is not the address of a collector: {what}")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}:{port or 4317}"


def is_private(collector: str) -> bool:
    """Return whether nobody else can read what is sent there: by TLS, or on this machine."""
    url = urlsplit(collector)
    if url.scheme == "https" or url.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(url.hostname or "").is_loopback
    except ValueError:
        return False


Collector = Annotated[str, BeforeValidator(parse_collector)]
