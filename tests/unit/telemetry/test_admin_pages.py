"""The admin port, over real sockets: pages, who may see them, and which connections make way.

What tokens and certificates open is in tests/e2e/test_access_matrix.py.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from wasmkilnd import errors
from wasmkilnd.access.guard import AccessGuard
from wasmkilnd.model import ANYBODY, Credentials, Entrance, Identity
from wasmkilnd.network import CannotListen
from wasmkilnd.telemetry import status
from wasmkilnd.telemetry.admin import LIMIT, AdminServer, SharedPage
from wasmkilnd.telemetry.audit import Audit
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.web import Door

POLICY = {
    "default-src": "'none'",
    **dict.fromkeys(["style-src", "script-src", "img-src", "connect-src"], "'self'"),
    **dict.fromkeys(["base-uri", "form-action", "frame-ancestors"], "'none'"),
    "require-trusted-types-for": "'script'",
}
TOKEN = "Bearer s3:cret"
PASSWORD = f"Basic {base64.b64encode(b'ada:s3:cret').decode()}"


def token_guard(what: str, entrance: Entrance, credentials: Callable[[], Credentials]) -> Identity:
    """Let in who brings the token."""
    brought = credentials().authorization
    if not brought:
        raise errors.credentials_missing()
    if brought != TOKEN:
        raise errors.credentials_invalid("unknown", "cannot use this token")
    return ANYBODY


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


def server(address: str = "127.0.0.1:0", *, limit: int = LIMIT, **options: Any) -> AdminServer:
    door = Door(address, limit, "admin_listen")
    guard = options.pop("admit", AccessGuard(None).admit)
    ready = options.pop("ready", lambda: (True, "ready"))
    registry = Metrics("1.2.3").registry
    return AdminServer(door, registry, lambda: b"{}", ready, guard, Audit(), **options)


@pytest.fixture
async def url(readiness: Readiness) -> AsyncIterator[str]:
    """Where a server is that lets everybody in who calls it by a name of this machine."""
    running = server(ready=readiness)
    yield f"http://{await running.start()}"
    await running.stop()


@pytest.fixture
async def guarded() -> AsyncIterator[str]:
    running = server(admit=token_guard)
    yield f"http://{await running.start()}"
    await running.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.parametrize("path", sorted(status.PATHS))
async def test_a_page_keeps_strangers_out_of_it(
    guarded: str, http: aiohttp.ClientSession, path: str
) -> None:
    async with http.get(guarded + path, headers={"Authorization": TOKEN}) as answer:
        assert answer.status == 200
        kind = answer.headers["Content-Type"]
        assert kind == status.FILES.get(path, (b"", "application/json"))[1]
        assert await answer.read()
        policy = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["Content-Security-Policy"].split(";")
        )
        assert policy == POLICY
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_a_person_gives_a_token_as_password_and_a_program_does_not(
    guarded: str, http: aiohttp.ClientSession
) -> None:
    wrong = ("", "Basic", "Basic !", f"{PASSWORD}, {TOKEN}", "Basic /w==", "Basic YWRh")
    for path, authorization, challenges in (
        ("/status.json", PASSWORD, []),
        # Programs send tokens; a name and a password there would be for something in between.
        ("/metrics", PASSWORD, ['Bearer realm="wasmkiln", error="invalid_token"']),
        *(("/", each, ['Bearer realm="wasmkiln"', "Basic realm="]) for each in wrong),
    ):
        headers = {"Authorization": authorization} if authorization else {}
        async with http.get(guarded + path, headers=headers) as answer:
            assert answer.status == (401 if challenges else 200)
            told = answer.headers.getall("WWW-Authenticate", [])
        assert len(told) == len(challenges)
        assert all(map(str.startswith, told, challenges))


async def test_many_pages_take_no_more_time_than_one() -> None:
    """Each waits until the pause after the one before has passed, whatever page that was."""
    takes_s, began_s = 0.02, list[float]()
    made: list[str] = []

    def rendering(name: str) -> Callable[[], bytes]:
        def render() -> bytes:
            began_s.append(time.monotonic())
            made.append(name)
            time.sleep(takes_s)
            return name.encode()

        return render

    shared = SharedPage()
    kinds = ("one", "two", "three")
    got = await asyncio.gather(
        *(shared.get(kind, rendering(kind)) for kind in kinds for _ in range(5))
    )
    assert made == list(kinds)
    assert all(after - before > 4.9 * takes_s for before, after in pairwise(began_s))
    assert got == [kind.encode() for kind in kinds for _ in range(5)]
    # A request that comes later gets a page of its own.
    assert await shared.get("one", rendering("one")) == b"one"
    assert made[-1] == "one"


async def said(url: str, request: str) -> str:
    """Return what the server says to these bytes."""
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    writer.write(request.encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("port", ["", ":9464"])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("[::1]", 200),
        ("LocalHost", 200),
        ("localhost.", 200),
        ("kiln.localhost", 200),
        ("kiln.example.org", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("evillocalhost", 421),
        ("[::1].evil.example", 421),
        ("", 421),
    ],
)
async def test_a_website_cannot_make_the_port_a_part_of_itself(
    url: str, host: str, status: int, port: str
) -> None:
    """Its name may stand for this machine by now, but it is still in Host."""
    for path in ("/", "/metrics", "/no-such-page"):
        answer = await said(
            url, f"GET {path} HTTP/1.1\r\nHost: {host}{port}\r\nConnection: close\r\n\r\n"
        )
        expected = 404 if status == 200 and path == "/no-such-page" else status
        assert answer.startswith(f"HTTP/1.1 {expected} ")
        if status == 421:
            assert "ask for localhost" in answer
            assert host not in answer or not host


async def test_of_several_names_none_is_strange(url: str) -> None:
    """Programs that send no name are no browsers."""
    assert (await said(url, "GET /metrics HTTP/1.0\r\n\r\n")).split()[1] == "200"
    two = "Host: localhost\r\nHost: evil.example\r\n"
    assert (await said(url, f"GET /metrics HTTP/1.0\r\n{two}\r\n")).split()[1] in ("400", "421")


@pytest.mark.parametrize(
    ("address", "tls", "checked"),
    [
        ("127.0.0.1:1", False, True),
        ("[::1]:1", False, True),
        ("localhost:1", False, True),
        ("unix:/run/kiln.sock", False, False),
        ("unix:/run/kiln.sock", True, False),
        ("0.0.0.0:1", False, False),
        ("[::]:1", False, False),
        ("127.0.0.1:1", True, False),
    ],
)
def test_names_are_checked_where_a_browser_would_not(
    address: str, tls: bool, checked: bool
) -> None:
    door = Door(address, 1, "admin_listen", ssl.create_default_context if tls else None)
    request = make_mocked_request("GET", "/", headers={"Host": "evil.example"})
    assert door.is_strange(request) is checked


async def test_readyz_says_what_the_readiness_check_says(
    url: str, http: aiohttp.ClientSession, readiness: Readiness
) -> None:
    for said_by_check, code, text in (
        ((True, "ready"), 200, "ready\n"),
        ((False, "no engine works"), 503, "no engine works\n"),
        (RuntimeError("hunter2"), 503, "the daemon failed: see its log\n"),
    ):
        readiness.answer = said_by_check
        async with http.get(f"{url}/readyz") as found:
            assert (found.status, await found.text()) == (code, text)
        async with http.get(f"{url}/healthz") as alive:
            assert alive.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("HEAD", path, 200) for path in ("/", "/metrics", "/healthz")),
        *(("POST", path, 405) for path in ("/", "/metrics", "/healthz", "/status.json")),
        ("PUT", "/healthz", 405),
        ("DELETE", "/readyz", 405),
        ("GET", "/status/../page.py", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/../etc/passwd", 404),
        ("POST", "/nothing", 404),
    ],
)
async def test_only_get_and_head_of_pages_are_served_and_no_banner(
    url: str, http: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    async with http.request(method, f"{url}{path}") as answer:
        assert answer.status == status
        assert "Server" not in answer.headers


async def test_ipv6_keeps_its_brackets(http: aiohttp.ClientSession) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    running = server("[::1]:0")
    address = await running.start()
    assert re.fullmatch(r"\[::1\]:[1-9][0-9]+", address)
    async with http.get(f"http://{address}/healthz") as answer:
        assert answer.status == 200
    await running.stop()


async def test_a_unix_socket_is_its_owners_until_he_stops_and_no_other_daemon_takes_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "admin.sock"
    first, second = server(f"unix:{path}"), server(f"unix:{path}")
    assert await first.start() == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(CannotListen, match="in use"):
        await server(f"unix:{path}").start()
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://kiln/healthz") as answer,
    ):
        assert answer.status == 200
    path.unlink()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    await second.start()  # In place of one that was killed.
    await first.stop()
    assert path.exists()  # It is the second one's.
    await second.stop()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(CannotListen):
        await server(f"unix:{path}").start()
    assert path.read_text() == "precious"


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


async def test_when_all_have_asked_the_one_idle_for_longest_makes_way() -> None:
    running = server(limit=2)
    url = await running.start()
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
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
    await running.stop()
