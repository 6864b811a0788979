"""Pages for browsers: their headers, who may see them, and how much time they take."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import aiohttp
import pytest
from wasmkilnd import errors
from wasmkilnd.access.guard import AccessGuard
from wasmkilnd.app import checks_host
from wasmkilnd.model import ANYBODY, Credentials, Entrance, Identity
from wasmkilnd.settings import Settings
from wasmkilnd.telemetry import status
from wasmkilnd.telemetry.admin import AdminServer, SharedPage
from wasmkilnd.telemetry.audit import Audit
from wasmkilnd.telemetry.metrics import Metrics

POLICY = {
    "default-src": "'none'",
    **dict.fromkeys(["style-src", "script-src", "img-src", "connect-src"], "'self'"),
    **dict.fromkeys(["base-uri", "form-action", "frame-ancestors"], "'none'"),
    "require-trusted-types-for": "'script'",
}


class TokenGuard:
    """Lets in who brings the token."""

    def admit(
        self, what: str, entrance: Entrance, credentials: Callable[[], Credentials]
    ) -> Identity:
        brought = credentials().authorization
        if not brought:
            raise errors.credentials_missing()
        if brought != "Bearer s3:cret":
            raise errors.credentials_invalid("unknown", "cannot use this token")
        return ANYBODY


@pytest.fixture
async def url() -> AsyncIterator[str]:
    registry = Metrics("1.2.3").registry
    server = AdminServer(
        "127.0.0.1:0", registry, lambda: b"{}", lambda: (True, "ready"), TokenGuard().admit, Audit()
    )
    yield f"http://{await server.start()}"
    await server.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


TOKEN = {"Authorization": "Bearer s3:cret"}
PASSWORD = {"Authorization": f"Basic {base64.b64encode(b'ada:s3:cret').decode()}"}


@pytest.mark.parametrize("path", sorted(status.PATHS))
async def test_a_page_keeps_strangers_out_of_it(
    url: str, http: aiohttp.ClientSession, path: str
) -> None:
    async with http.get(url + path, headers=TOKEN) as answer:
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
        assert "Server" not in answer.headers


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 405), ("PUT", 405)])
async def test_a_page_can_only_be_read(
    url: str, http: aiohttp.ClientSession, method: str, status: int
) -> None:
    async with http.request(method, f"{url}/", headers=TOKEN) as answer:
        assert answer.status == status


async def test_a_person_gives_a_token_as_password(url: str, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{url}/status.json", headers=PASSWORD) as answer:
        assert (answer.status, await answer.json()) == (200, {})


@pytest.mark.parametrize(
    "authorization",
    ["", "Basic", "Basic !", "Basic czM6Y3JldA==, Bearer s3:cret", "Basic /w==", "Basic YWRh"],
)
async def test_a_browser_asks_for_a_token(
    url: str, http: aiohttp.ClientSession, authorization: str
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    async with http.get(url, headers=headers) as answer:
        assert answer.status == 401
        bearer, basic = answer.headers.getall("WWW-Authenticate")
        assert bearer.startswith('Bearer realm="wasmkiln"')
        assert basic.startswith("Basic realm=")


async def test_for_metrics_a_password_is_no_token(url: str, http: aiohttp.ClientSession) -> None:
    """Programs send tokens; a name and a password there would be for something in between."""
    async with http.get(f"{url}/metrics", headers=PASSWORD) as answer:
        assert answer.status == 401
        [challenge] = answer.headers.getall("WWW-Authenticate")
        assert challenge.startswith("Bearer")


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


@pytest.fixture
async def named() -> AsyncIterator[str]:
    """Where a server is that answers under the names of this machine alone."""
    server = AdminServer(
        "127.0.0.1:0",
        Metrics("1.2.3").registry,
        lambda: b"{}",
        lambda: (True, "ready"),
        AccessGuard(None).admit,
        Audit(),
        checks_host=True,
    )
    yield await server.start()
    await server.stop()


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
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("evillocalhost", 421),
        ("[::1].evil.example", 421),
        ("", 421),
    ],
)
@pytest.mark.parametrize("path", ["/", "/metrics", "/status.json", "/no-such-page"])
async def test_a_website_cannot_make_the_port_a_part_of_itself(
    named: str, host: str, status: int, port: str, path: str
) -> None:
    """Its name may stand for this machine by now, but it is still in Host."""
    reader, writer = await asyncio.open_connection(*named.split(":"))
    request = f"GET {path} HTTP/1.1\r\nHost: {host}{port}\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    expected = 404 if status == 200 and path == "/no-such-page" else status
    assert answer.startswith(f"HTTP/1.1 {expected} ")
    if status == 421:
        assert "ask for localhost" in answer
        assert host not in answer or not host


@pytest.mark.parametrize("hosts", ["", "Host: localhost\r\nHost: evil.example\r\n"])
async def test_of_several_names_none_is_strange(named: str, hosts: str) -> None:
    """Programs that send no name are no browsers."""
    reader, writer = await asyncio.open_connection(*named.split(":"))
    writer.write(f"GET /metrics HTTP/1.0\r\n{hosts}\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    assert answer.split()[1] == "200" if not hosts else answer.split()[1] in ("400", "421")


@pytest.mark.parametrize(
    ("settings", "checked"),
    [
        ({}, True),
        ({"admin_listen": "[::1]:1"}, True),
        ({"admin_listen": "localhost:1"}, True),
        ({"admin_listen": "unix:/run/kiln.sock"}, False),
        ({"admin_listen": "0.0.0.0:1", "allow_remote": True}, False),
        ({"tls_cert_file": "/cert", "tls_key_file": "/key"}, False),
    ],
)
def test_names_are_checked_where_a_browser_would_not(
    settings: dict[str, object], checked: bool
) -> None:
    assert checks_host(Settings.model_validate(settings)) is checked
