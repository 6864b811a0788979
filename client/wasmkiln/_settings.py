"""The settings of a client: an argument wins over the environment, that over the default."""

from __future__ import annotations

import math
import os
import re

from wasmkiln._routing import check_ring, is_ring
from wasmkiln.shared import parse_bytes

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 60.0
# Four times the default limit of a daemon.
DEFAULT_MAX_ARTIFACT_BYTES = 1024**3

# A year. gRPC counts nanoseconds in 64 bits, and reads a number that does not fit as the past.
MAX_TIMEOUT_S = 365 * 24 * 3600

_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_NAMED = re.compile(r"(unix|unix-abstract|dns|ipv4|ipv6|vsock|xds|passthrough):")

# Answers stay below gRPC's default limit of 4 MiB by contract; a module may be as large as the
# daemon allows.
# After a failed connection gRPC waits before the next one, and fails each call meanwhile with the
# first one's error: with its default of a second, retries would be in vain.
# "min_reconnect_backoff" is in truth how long one connection may take: as long as a call by
# default, whose own deadline ends it sooner.
# A stream of the blocking client is read by its caller's thread alone: this takes a tenth less
# time than gRPC's usual thread beside it.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("SingleThreadedUnaryStream", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", int(DEFAULT_TIMEOUT_S * 1000)),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def choose_address(argument: str | None) -> str:
    """Return `argument`, else WASMKILN_ADDRESS, else 127.0.0.1:50051.

    Raise ValueError for a URL, which gRPC would read as a host's name, and unless the port is
    from 1 to 65535: gRPC would use another one.
    """
    address = argument or os.environ.get("WASMKILN_ADDRESS") or DEFAULT_ADDRESS
    scheme, separator, _ = address.partition("://")
    if separator and scheme in {"http", "https", "grpc", "grpcs", "tcp"}:
        raise ValueError(
            f"an address is host:port or unix:/path: leave out the {scheme}:// in front"
        )
    if is_ring(address):
        check_ring(address)
        return address
    # gRPC itself reads an address with one of its schemes in front (unix:, dns:, ipv4:).
    if not _NAMED.match(address) and not _has_port(address):
        raise ValueError(
            f"an address is host:port or unix:/path, with a port from 1 to 65535, not {address}"
        )
    return address


def _has_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    return bool(host) and digits and 0 < int(port) < 65536


def choose_switch(name: str) -> bool | None:
    """Return whether a variable of the environment is on; None without it. Raise ValueError."""
    text = os.environ.get(name, "").strip().lower()
    if not text:
        return None
    if text not in {*_ON, *_OFF}:
        raise ValueError(f"{name} has to be on or off, not {text[:100]!r}")
    return text in _ON


def choose_timeout_s(argument: float | None) -> float:
    """Return `argument`, else WASMKILN_TIMEOUT_S, else 60; a year at most. In seconds.

    Raise ValueError unless it is a positive, finite number.
    """
    name, value = "timeout_s", argument
    if argument is None:
        name = "WASMKILN_TIMEOUT_S"
        text = os.environ.get(name)
        if not text:
            return DEFAULT_TIMEOUT_S
        try:
            value = float(text)
        except ValueError:
            value = None
    if value is None or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} has to be a positive number of seconds")
    return min(float(value), MAX_TIMEOUT_S)


def choose_max_artifact_bytes(argument: int | None) -> int:
    """Return `argument`, else WASMKILN_MAX_ARTIFACT_BYTES, else 1 GiB. In bytes.

    The environment may say 512MiB too. Raise ValueError unless the number is positive.
    """
    if argument is not None:
        if isinstance(argument, bool) or not isinstance(argument, int) or argument <= 0:
            raise ValueError("max_artifact_bytes has to be a positive number of bytes")
        return argument
    text = os.environ.get("WASMKILN_MAX_ARTIFACT_BYTES")
    if not text:
        return DEFAULT_MAX_ARTIFACT_BYTES
    try:
        return parse_size(text)
    except ValueError as error:
        raise ValueError(f"WASMKILN_MAX_ARTIFACT_BYTES: {error}") from None


def parse_size(text: str) -> int:
    """Return the bytes of a positive size such as 512MiB, 1.5GB or 1048576. Raise ValueError."""
    size_bytes = parse_bytes(text)
    if size_bytes <= 0:
        raise ValueError(f"{text[:100]!r} is not a size above 0")
    return size_bytes
