"""Who has to go when an address has hardly any connections left."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping

import pytest
from wasmkilnd.rpc import idle
from wasmkilnd.rpc.connections import Address, parse
from wasmkilnd.rpc.idle import IdleConnections


def peer(host: str, port: int) -> Address:
    found = parse(f"ipv4:{host}:{port}")
    assert found
    return found


def peers(host: str, count: int) -> list[Address]:
    return [peer(host, port) for port in range(1, count + 1)]


def connected(*those: Address, port: int = 50051) -> Mapping[Address, int]:
    return dict.fromkeys(those, port)


def test_nobody_goes_while_there_is_room() -> None:
    those = peers("127.0.0.1", 14)
    assert not IdleConnections(16).surplus(connected(*those), dict.fromkeys(those, 0.0))


def test_the_longest_idle_go_until_a_quarter_is_free() -> None:
    those = peers("127.0.0.1", 15)
    since = {one: float(100 - one[1]) for one in those}
    going = IdleConnections(16).surplus(connected(*those), since)
    assert going == frozenset(those[-3:])


def test_who_has_a_call_stays() -> None:
    those = peers("127.0.0.1", 16)
    going = IdleConnections(16).surplus(connected(*those), {those[7]: 5.0})
    assert going == {those[7]}


def test_the_host_with_most_connections_gives_them_first() -> None:
    flood, others = peers("192.0.2.1", 12), peers("192.0.2.2", 4)
    since = {**dict.fromkeys(flood, 90.0), **dict.fromkeys(others, 1.0)}
    going = IdleConnections(16).surplus(connected(*flood, *others), since)
    assert len(going) == 4
    assert going < set(flood)


def test_each_address_counts_by_itself() -> None:
    full, roomy = peers("192.0.2.1", 16), peers("192.0.2.2", 12)
    found = {**connected(*full, port=1), **connected(*roomy, port=2)}
    going = IdleConnections(16).surplus(found, dict.fromkeys(found, 0.0))
    assert going < set(full)


async def test_idle_connections_make_way_and_those_with_calls_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idle, "_LOOK_S", 0.3)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = server.getsockname()
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(8)]
        for _ in clients:
            stack.enter_context(server.accept()[0])
        connections = IdleConnections(8)
        names = ["ipv4:{}:{}".format(*client.getsockname()) for client in clients]
        for name in names[:4]:
            connections.begin(name)
        for name in names[2:6]:
            connections.begin(name)
            connections.end(name)
        # Two have a call, two one of two; two had one; of two nothing is known.
        making_way = asyncio.create_task(connections.make_way(frozenset({address[1]})))
        loop = asyncio.get_running_loop()
        for client in clients:
            client.setblocking(False)
        async with asyncio.timeout(30):
            for client in clients[6:]:
                assert await loop.sock_recv(client, 1) == b""
        for client in clients[:6]:
            with pytest.raises(BlockingIOError):
                client.recv(1)
        making_way.cancel()
        await asyncio.gather(making_way, return_exceptions=True)
