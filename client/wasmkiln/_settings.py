"""Where the daemon is and how long to wait for it: argument over environment over default."""

from __future__ import annotations

import math
import os
import re

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 60.0

_NAMED = re.compile(r"(unix|unix-abstract|dns|ipv4|ipv6|vsock|xds|passthrough):")

# The contract keeps answers below gRPC's default limit of 4 MiB; a module that is sent may be
# as large as the daemon allows. The backoff is that of the connection: the default of a
# second would make every retry within it fail with the first attempt's error.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def choose_address(argument: str | None) -> str:
    """`argument`, else WASMKILN_ADDRESS, else 127.0.0.1:50051.

    Raises ValueError for a URL, which gRPC would take for a host's name, and without a port
    from 1 to 65535, for which it would take another.
    """
    address = argument or os.environ.get("WASMKILN_ADDRESS") or DEFAULT_ADDRESS
    scheme, separator, _ = address.partition("://")
    if separator and scheme in {"http", "https", "grpc", "grpcs", "tcp"}:
        raise ValueError(f"an address is host:port or unix:/path, without the {scheme}:// in front")
    # What has a name of gRPC's in front (unix:, dns:, ipv4:) is for gRPC to read.
    if not _NAMED.match(address) and not _has_port(address):
        raise ValueError(
            f"an address is host:port or unix:/path, with a port from 1 to 65535, not {address}"
        )
    return address


def _has_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    return bool(host) and digits and 0 < int(port) < 65536


def choose_timeout_s(argument: float | None) -> float:
    """`argument`, else WASMKILN_TIMEOUT_S, else 60 seconds.

    Raises ValueError unless it is a positive, finite number.
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
    return float(value)
