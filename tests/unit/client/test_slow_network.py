"""A network that takes its time, and a port where nobody listens."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from wasmkiln import errors

from tests.unit.client.fake_daemon import FakeDaemon

DELAY_S = 0.3


@pytest.fixture
def distant(daemon: FakeDaemon) -> Iterator[str]:
    """The daemon's address behind a proxy that delays all bytes, in both directions."""
    loop = asyncio.new_event_loop()
    host, _, port = daemon.address.rpartition(":")
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(ConnectionError):
            while data := await reader.read(2**16):
                loop.call_later(DELAY_S, writer.write, data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, forth), pump(back, writer))

    async def end() -> None:
        server.close()
        for writer in writers:
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*tasks, return_exceptions=True)

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    asyncio.run_coroutine_threadsafe(end(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_connection_may_take_long(make_client: Callable[..., Any], distant: str) -> None:
    client = make_client(distant, timeout_s=30, max_attempts=1)
    assert client.health() == "SERVING"


def test_a_connection_ends_with_its_call(make_client: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = make_client(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.5)
        with pytest.raises(errors.DeadlineExceeded):
            client.health()


def test_a_refused_port_fails_at_once(make_client: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = make_client(f"127.0.0.1:{port}", timeout_s=60)
    with pytest.raises(errors.ConnectionFailed):  # and not DeadlineExceeded
        client.health()
