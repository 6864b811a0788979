"""A DNS server that knows one name, for tests."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_A, _IN = 1, 1
_ANSWERED = 0x8580
"""A response with authority and recursion, and without an error."""


@contextmanager
def name_server(addresses: Sequence[str]) -> Iterator[str]:
    """Answer every question with these IPv4 addresses; return where, as host:port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        end = threading.Event()
        server.settimeout(0.1)

        def serve() -> None:
            while not end.is_set():
                try:
                    query, peer = server.recvfrom(4096)
                except TimeoutError:
                    continue
                server.sendto(_answer(query, addresses), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            end.set()
            thread.join()


def _answer(query: bytes, addresses: Sequence[str]) -> bytes:
    # The name of the question ends with an empty label; type and class follow.
    end = query.index(b"\0", 12) + 5
    kind, _ = struct.unpack(">HH", query[end - 4 : end])
    records = [socket.inet_aton(address) for address in addresses] if kind == _A else []
    header = query[:2] + struct.pack(">HHHHH", _ANSWERED, 1, len(records), 0, 0)
    # Each record names the question's name by its place, 12.
    return (
        header
        + query[12:end]
        + b"".join(
            struct.pack(">HHHIH", 0xC00C, _A, _IN, 60, len(record)) + record for record in records
        )
    )
