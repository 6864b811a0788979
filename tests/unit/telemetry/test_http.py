"""The admin server, over real sockets."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from wasmkilnd.access.guard import AccessGuard
from wasmkilnd.telemetry import admin
from wasmkilnd.telemetry.admin import AddressInUse, AdminServer
from wasmkilnd.telemetry.audit import Audit
from wasmkilnd.telemetry.metrics import Metrics


class Readiness:
    """Returns, or raises, its ``answer``."""

    def __init__(self) -> None:
        self.answer: tuple[bool, str] | Exception = (True, "ready")

    def __call__(self) -> tuple[bool, str]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


def server(address: str, readiness: Readiness | None = None) -> AdminServer:
    registry = Metrics("1.2.3").registry
    guard = AccessGuard(None)
    return AdminServer(
        address, registry, lambda: b"{}", readiness or Readiness(), guard.admit, Audit()
    )


@pytest.fixture
async def url(readiness: Readiness) -> AsyncIterator[str]:
    running = server("127.0.0.1:0", readiness)
    address = await running.start()
    assert re.fullmatch(r"127\.0\.0\.1:[1-9][0-9]+", address)
    yield f"http://{address}"
    await running.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_metrics_in_prometheus_own_format(url: str, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{url}/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert 'wasmkiln_build_info{version="1.2.3"} 1.0' in await answer.text()


async def test_openmetrics_is_served_to_clients_that_accept_it(
    url: str, http: aiohttp.ClientSession
) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    async with http.get(f"{url}/metrics", headers=accept) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        text = await answer.text()
    assert text.endswith("# EOF\n")
    assert list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


async def test_healthz_is_always_200_and_readyz_calls_the_readiness_check(
    url: str, http: aiohttp.ClientSession, readiness: Readiness
) -> None:
    async with http.get(f"{url}/readyz") as answer:
        assert (answer.status, await answer.text()) == (200, "ready\n")
    readiness.answer = (False, "no engine works")
    async with http.get(f"{url}/readyz") as answer:
        assert (answer.status, await answer.text()) == (503, "no engine works\n")
    readiness.answer = RuntimeError("hunter2")
    async with http.get(f"{url}/readyz") as answer:
        assert answer.status == 503
        assert "hunter2" not in await answer.text()
    async with http.get(f"{url}/healthz") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/metrics", 200),
        ("HEAD", "/healthz", 200),
        ("POST", "/metrics", 405),
        ("PUT", "/healthz", 405),
        ("DELETE", "/readyz", 405),
        ("POST", "/", 405),
        ("GET", "/status/live", 404),
        ("GET", "/status/../page.py", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/../etc/passwd", 404),
        ("POST", "/nothing", 404),
    ],
)
async def test_only_get_and_head_of_three_pages_are_served_without_a_banner(
    url: str, http: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    async with http.request(method, f"{url}{path}") as answer:
        assert answer.status == status
        assert "Server" not in answer.headers
        if method == "HEAD":
            assert await answer.read() == b""


async def test_an_address_in_use_is_reported_in_one_line(url: str) -> None:
    address = url.removeprefix("http://")
    with pytest.raises(AddressInUse) as caught:
        await server(address).start()
    message = str(caught.value)
    assert f"cannot serve metrics on {address}: Address already in use" in message
    assert "WASMKILN_ADMIN_LISTEN" in message
    assert "\n" not in message


async def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(AddressInUse, match="Cannot assign requested address"):
        await server("192.0.2.1:9464").start()


async def test_ipv6_keeps_its_brackets(http: aiohttp.ClientSession) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    running = server("[::1]:0")
    address = await running.start()
    assert address.startswith("[::1]:")
    async with http.get(f"http://{address}/healthz") as answer:
        assert answer.status == 200
    await running.stop()


async def test_only_its_owner_can_use_a_unix_socket_and_stop_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    running = server(f"unix:{path}")
    assert await running.start() == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o600
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://kiln/healthz") as answer,
    ):
        assert answer.status == 200
    await running.stop()
    assert not path.exists()


async def test_a_live_socket_is_not_taken_and_a_dead_one_is(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    first = server(f"unix:{path}")
    await first.start()
    with pytest.raises(AddressInUse, match="in use"):
        await server(f"unix:{path}").start()
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://kiln/healthz") as answer,
    ):
        assert answer.status == 200
    await first.stop()

    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    second = server(f"unix:{path}")
    await second.start()
    await second.stop()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(AddressInUse):
        await server(f"unix:{path}").start()
    assert path.read_text() == "data"


async def test_stop_does_not_remove_another_daemons_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    first = server(f"unix:{path}")
    await first.start()
    path.unlink()
    second = server(f"unix:{path}")
    await second.start()
    await first.stop()
    assert path.exists()
    await second.stop()


async def test_stop_frees_the_port() -> None:
    running = server("127.0.0.1:0")
    address = await running.start()
    await running.stop()
    again = server(address)
    assert await again.start() == address
    await again.stop()


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


async def ends(sock: socket.socket) -> bool:
    """Whether the server closes a connection."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    try:
        async with asyncio.timeout(10):
            while await loop.sock_recv(sock, 65536):
                pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def half(sock: socket.socket) -> socket.socket:
    sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: kiln\r\nX-Half: ")
    return sock


async def test_when_full_the_oldest_that_has_sent_no_request_makes_way(
    url: str, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "LIMIT", 4)
    async with http.get(f"{url}/healthz") as answer:  # on a connection that is kept
        assert answer.status == 200
    with connect(url) as first, connect(url) as second, connect(url) as third:
        half(first)
        half(third)
        await asyncio.sleep(0.1)
        async with aiohttp.ClientSession() as other, other.get(f"{url}/readyz") as answer:
            assert answer.status == 200
            assert await ends(first)
            # So do as many as it takes, and none that has asked.
            with connect(url), connect(url):
                assert await ends(second)
                assert await ends(third)
                async with other.get(f"{url}/readyz") as answer:
                    assert answer.status == 200
                async with http.get(f"{url}/healthz") as answer:
                    assert answer.status == 200


async def test_five_hundred_strangers_keep_no_probe_out(
    url: str, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come faster than they are let in, and send as much of a request as makes one wait."""
    monkeypatch.setattr(admin, "LIMIT", 64)
    strangers: list[socket.socket] = []

    async def come() -> None:
        strangers.extend([half(await asyncio.to_thread(connect, url)) for _ in range(500)])

    coming = asyncio.create_task(come())
    try:
        for _ in range(20):
            # Each on a connection of its own, as a kubelet opens them.
            async with http.get(f"{url}/healthz", headers={"Connection": "close"}) as answer:
                assert answer.status == 200
            await asyncio.sleep(0.02)
        await coming
        async with http.get(f"{url}/healthz") as answer:
            assert answer.status == 200
        assert all([await ends(each) for each in strangers[:400]])
    finally:
        await coming
        for each in strangers:
            each.close()


async def test_when_all_have_asked_the_one_idle_for_longest_makes_way(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "LIMIT", 2)
    request = b"GET /healthz HTTP/1.1\r\nHost: kiln\r\n\r\n"
    with connect(url) as first, connect(url) as second:
        for sock in (first, second, first):
            sock.sendall(request)
            await asyncio.to_thread(sock.recv, 65536)
        with connect(url) as third:
            third.sendall(request)
            assert b"200 OK" in await asyncio.to_thread(third.recv, 65536)
            assert await ends(second)
            first.sendall(request)
            assert b"200 OK" in await asyncio.to_thread(first.recv, 65536)


async def test_requests_in_parts_and_pipelined_requests_are_answered(
    url: str,
) -> None:
    loop = asyncio.get_running_loop()
    with connect(url) as sock:
        sock.setblocking(False)
        for part in (
            b"GET /healthz HT",
            b"TP/1.1\r\nHo",
            b"st: kiln\r\n",
            b"\r\nGET /readyz HTTP/1.1",
        ):
            await loop.sock_sendall(sock, part)
            await asyncio.sleep(0.05)
        await loop.sock_sendall(sock, b"\r\nHost: kiln\r\nConnection: close\r\n\r\n")
        got = b""
        while piece := await loop.sock_recv(sock, 65536):
            got += piece
    assert (got.count(b"200 OK"), b"alive" in got, b"ready" in got) == (2, True, True)


@pytest.mark.parametrize("length", [1, 10_000_000])
async def test_the_server_does_not_wait_for_a_body(url: str, length: int) -> None:
    with connect(url) as sock:
        head = f"POST /healthz HTTP/1.1\r\nHost: kiln\r\nContent-Length: {length}\r\n\r\n"
        sock.sendall(head.encode())
        assert await ends(sock)


async def test_a_thousand_scrapes_at_once_are_answered(
    url: str, http: aiohttp.ClientSession
) -> None:
    async def scrape() -> int:
        async with http.get(f"{url}/metrics") as answer:
            return len(await answer.read())

    sizes = await asyncio.gather(*(scrape() for _ in range(1000)))
    assert min(sizes) > 1000
