"""What the daemon does for a connection, and whose it is."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.rpc.connections import sockets
from wasmkilnd.rpc.connections.call import Call, CallsUnderWay, Use
from wasmkilnd.rpc.connections.sockets import Address, hosts_of, parse

from tests.doubles.context import Context

A, B = "ipv4:192.0.2.1:1", "ipv4:192.0.2.1:2"


def address(peer: str) -> Address:
    found = parse(peer)
    assert found
    return found


class From(Context):
    """A call from ``peer``."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer


async def used(calls: CallsUnderWay, peer: str) -> Use:
    return (await calls.use_of([address(peer)]))[address(peer)].use


async def test_a_connection_waits_works_and_is_idle_again() -> None:
    calls = CallsUnderWay(4)
    assert await used(calls, A) is Use.IDLE
    call = Call(From(A))
    with calls.answering(call):
        assert await used(calls, A) is Use.WAITING
        with calls.answering(Call(From(A))):
            call.start_work()
            assert await used(calls, A) is Use.WORKING
            assert await used(calls, B) is Use.IDLE
    found = (await calls.use_of([address(A), address(B)]))[address(A)]
    assert found.use is Use.IDLE
    assert found.since_s > 0


async def test_of_connections_dropped_from_memory_nothing_is_known() -> None:
    calls = CallsUnderWay(1)
    for peer in (A, B):
        with calls.answering(Call(From(peer))):
            pass
    found = await calls.use_of([address(A), address(B)])
    assert found[address(A)].since_s == 0
    assert found[address(B)].since_s > 0


async def test_a_call_that_makes_way_is_told_so_and_others_go_on() -> None:
    calls = CallsUnderWay(4)

    async def watch(peer: str) -> None:
        with calls.answering(Call(From(peer))):
            await asyncio.Event().wait()

    watches = [asyncio.create_task(watch(peer)) for peer in (A, B)]
    await asyncio.sleep(0)
    calls.end(frozenset({address(A)}))
    with pytest.raises(WasmkilnError) as refusal:
        await watches[0]
    assert refusal.value.reason is Reason.COMPILE_QUEUE_FULL
    assert refusal.value.metadata["limit"] == "connections"
    assert not watches[1].done()
    # Who hangs up is not told anything.
    watches[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await watches[1]


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_on_loopback_a_host_is_a_local_user(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((host, port)) as client:
            peer = sockets.address(client.getsockname())
            stranger = sockets.address((host, 1))
            hosts = hosts_of([peer, stranger], frozenset({port}))
    assert hosts == {peer: f"user {os.getuid()} of this machine", stranger: "this machine"}
