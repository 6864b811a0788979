"""Threads, tasks, connections, cancellation and closing while something runs."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from wasmkiln import AsyncClient, Client, ConnectionFailed, DeadlineExceeded, WasmkilnError

from tests.faults.proxy import Line, Proxy
from tests.unit.client.fake_daemon import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.client.fake_daemon import FakeDaemon


async def test_one_client_serves_many_threads_or_tasks(daemon: FakeDaemon) -> None:
    modules = [b"\0asm\x01\0\0\0" + bytes([n]) for n in range(24)]
    with Client(daemon.address) as client, ThreadPoolExecutor(8) as pool:
        artifacts = list(pool.map(client.compile, modules))
    async with AsyncClient(daemon.address) as loop_client:
        artifacts += await asyncio.gather(*map(loop_client.compile, modules))
    assert all(artifact.bytes == daemon.artifact for artifact in artifacts)
    assert len({artifact.header.module_sha256 for artifact in artifacts}) == 24


async def test_a_cancelled_task_ends_its_call(daemon: FakeDaemon) -> None:
    daemon.hang.clear()
    async with AsyncClient(daemon.address) as client:
        task = asyncio.create_task(client.compile(b"\0asm\x01\0\0\0"))
        assert await asyncio.to_thread(daemon.entered.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(daemon.cancelled.wait, 5)


async def test_the_event_loop_turns_while_a_file_is_read(
    daemon: FakeDaemon, tmp_path: Path
) -> None:
    pipe = tmp_path / "slow.wasm"
    os.mkfifo(pipe)
    async with AsyncClient(daemon.address) as client:
        task = asyncio.create_task(client.load(pipe))
        await asyncio.sleep(0.05)  # would never return if reading held the loop
        assert not task.done()
        await asyncio.to_thread(pipe.write_bytes, b"\0asm\x01\0\0\0")
        assert (await task).size_bytes == 8


def test_closing_ends_a_call_in_another_thread(daemon: FakeDaemon) -> None:
    daemon.hang.clear()
    client = Client(daemon.address)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.stats)
        assert daemon.entered.wait(5)
        client.close()
        with pytest.raises(WasmkilnError) as caught:
            call.result(5)
    assert caught.value.code is grpc.StatusCode.CANCELLED


async def test_closing_ends_a_call_of_another_task_and_cancels_no_task(daemon: FakeDaemon) -> None:
    daemon.hang.clear()
    client = AsyncClient(daemon.address)
    task = asyncio.create_task(client.stats())
    assert await asyncio.to_thread(daemon.entered.wait, 5)
    await client.close()
    with pytest.raises(WasmkilnError, match="closed") as caught:
        await task
    assert caught.value.code is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_closing_ends_a_pause_between_attempts(daemon: FakeDaemon, kind: Any) -> None:
    daemon.refuse(
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "COMPILE_QUEUE_FULL", retry_after_s=20)
    )
    client = kind(daemon.address)
    in_thread = kind is Client
    call = asyncio.to_thread(client.stats) if in_thread else client.stats()
    task = asyncio.create_task(call)
    assert await asyncio.to_thread(daemon.entered.wait, 30)
    await asyncio.sleep(0.2)
    start_s = time.monotonic()
    closed = client.close()
    if closed is not None:
        await closed
    with pytest.raises(RuntimeError, match="closed"):
        await task
    assert time.monotonic() - start_s < 15


def test_an_async_client_serves_one_event_loop_after_the_other(daemon: FakeDaemon) -> None:
    client = AsyncClient(daemon.address)
    for _ in range(3):
        assert asyncio.run(client.compile(b"")).bytes == daemon.artifact
        asyncio.run(client.stats())
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(lambda: asyncio.run(client.stats())) for _ in range(20)]
        assert {call.result(30).version for call in calls} == {"9.9.9"}
    asyncio.run(client.close())


def test_a_client_that_waits_for_a_loop_says_so(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(*_: object) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(Client, "_away", wait)
    with Client(daemon.address) as client, pytest.raises(RuntimeError, match="a defect of wasmk"):
        client.compile(b"")


# --- connections ----------------------------------------------------------------------------


def test_a_connection_may_take_long(make_client: Callable[..., Any], tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    server.add_insecure_port(f"unix:{tmp_path}/socket")
    server.start()
    with Proxy(tmp_path / "socket") as proxy:
        proxy.set(Line(delay_s=0.5))
        client = make_client(f"127.0.0.1:{proxy.port}", timeout_s=30, max_attempts=1)
        assert client.health() == "SERVING"
    server.stop(None).wait()


def test_a_connection_ends_with_its_call_and_a_refused_port_fails_at_once(
    make_client: Callable[..., Any],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeadlineExceeded):
            make_client(address, timeout_s=0.5).health()
    with pytest.raises(ConnectionFailed):
        make_client(address, timeout_s=60).health()
