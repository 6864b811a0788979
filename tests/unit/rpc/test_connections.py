"""A connection is found by its peer's name and shut, and no other."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from wasmkilnd.rpc.connections import sockets


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """A client, the server's end of its connection, and the server's port."""
    family = request.param
    with socket.socket(family) as server:
        server.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        server.listen()
        with socket.create_connection(server.getsockname()[:2]) as client:
            accepted, _ = server.accept()
            with accepted:
                client.settimeout(5)
                yield client, accepted, server.getsockname()[1]


def peer_of(client: socket.socket) -> str:
    host, port = client.getsockname()[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


def test_the_peers_connection_is_shut(pair: tuple[socket.socket, socket.socket, int]) -> None:
    client, _, port = pair
    peer = sockets.parse(peer_of(client))
    assert peer
    assert sockets.close({peer}, frozenset({port})) == 1
    assert client.recv(1) == b""


def test_no_other_connection_is_touched(pair: tuple[socket.socket, socket.socket, int]) -> None:
    client, accepted, port = pair
    for peer, ports in (
        (peer_of(client), frozenset({port + 1})),  # another's, such as Redis'
        (f"ipv4:127.0.0.1:{port}", frozenset({port})),
        ("ipv4:192.0.2.1:1", frozenset({port})),
    ):
        address = sockets.parse(peer)
        assert address
        assert sockets.close({address}, ports) == 0
    assert sockets.parse("unix:") is sockets.parse("") is None
    accepted.sendall(b"x")
    assert client.recv(1) == b"x"
