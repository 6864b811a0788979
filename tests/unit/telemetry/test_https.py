"""The admin server over TLS, and who may read its pages, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from wasmkilnd import errors
from wasmkilnd.access.guard import AccessGuard
from wasmkilnd.model import ANYBODY, Credentials, Entrance, Identity, Transport
from wasmkilnd.telemetry import admin
from wasmkilnd.telemetry.admin import AdminServer
from wasmkilnd.telemetry.audit import Audit
from wasmkilnd.telemetry.metrics import Metrics

from tests.servers.certificates import Certificates, certificates

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Gate:
    """A guard that notes what it is asked, and may refuse."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Entrance, Credentials]] = []
        self.refusal: Callable[[], errors.WasmkilnError] | None = None

    def admit(
        self, what: str, entrance: Entrance, credentials: Callable[[], Credentials]
    ) -> Identity:
        self.asked.append((what, entrance, credentials()))
        if self.refusal:
            raise self.refusal()
        return ANYBODY


class Https:
    """A server with TLS, whose certificate may be replaced, and its clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = certificates(folder / "first")
        self.context = self.context_of(self.made)
        self.gate = Gate()
        self.port = 0

    def context_of(self, made: Certificates) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.cert_file, made.key_file)
        context.load_verify_locations(made.ca_file)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def client(self, *, shows: Certificates | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.made.ca_file))
        if shows:
            context.load_cert_chain(shows.cert_file, shows.key_file)
        return context

    async def connect(self, context: ssl.SSLContext | None) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context)

    async def get(self, page: str, context: ssl.SSLContext | None = None) -> tuple[int, str]:
        streams = await self.connect(context or self.client())
        try:
            return await ask(streams, page)
        finally:
            await end(streams)

    @asynccontextmanager
    async def served(self, **options: Any) -> AsyncIterator[None]:
        tls: Any = {"tls": lambda: self.context, **options}
        server = AdminServer(
            "127.0.0.1:0",
            Metrics("1.2.3").registry,
            lambda: b"{}",
            lambda: (True, "ready"),
            tls.pop("guard", self.gate).admit,
            tls.pop("auditor", Audit()),
            **tls,
        )
        self.port = int((await server.start()).rpartition(":")[2])
        try:
            yield
        finally:
            await server.stop()


async def ask(
    streams: Streams, page: str, headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    reader, writer = streams
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    writer.write(f"GET {page} HTTP/1.1\r\nHost: kiln\r\n{lines}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = re.search(r"Content-Length: (\d+)", head)
    assert length, head
    body = (await reader.readexactly(int(length[1]))).decode()
    return int(head.split()[1]), head + body


async def end(streams: Streams) -> None:
    streams[1].close()
    with suppress(OSError, ssl.SSLError):
        await streams[1].wait_closed()


@pytest.fixture
def https(tmp_path: Path) -> Https:
    return Https(tmp_path)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_pages_are_served_one_after_the_other_on_one_connection(
    https: Https, newest: ssl.TLSVersion
) -> None:
    context = https.client()
    context.maximum_version = newest
    async with https.served():
        streams = await https.connect(context)
        for _ in range(3):
            status, text = await ask(streams, "/metrics")
            assert status == 200
            assert 'wasmkiln_build_info{version="1.2.3"} 1.0' in text
            assert (await ask(streams, "/readyz"))[1].endswith("ready\n")
        assert streams[1].get_extra_info("ssl_object").version() == newest.name.replace("_", ".")
        await end(streams)


async def test_a_handshake_and_a_request_may_come_byte_by_byte(https: Https) -> None:
    async with https.served():
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = https.client().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        reader, writer = await https.connect(None)

        async def send_slowly() -> None:
            for byte in outgoing.read():
                writer.write(bytes((byte,)))
                await asyncio.sleep(0)

        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                await send_slowly()
                incoming.write(await reader.read(65536))
        session.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        await send_slowly()
        answer = b""
        while b"alive" not in answer:
            incoming.write(await reader.read(65536))
            try:
                answer += session.read()
            except ssl.SSLWantReadError:
                continue
        writer.close()


async def test_plain_http_gets_no_page(https: Https) -> None:
    async with https.served():
        reader, writer = await https.connect(None)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: kiln\r\n\r\n")
        with suppress(ConnectionResetError):
            assert b"HTTP" not in await reader.read()
        writer.close()
        assert https.gate.asked == []


async def test_tls_to_a_port_without_it_is_closed_at_once(https: Https) -> None:
    async with https.served(tls=None):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.wait_for(https.connect(https.client()), 5)


@pytest.mark.parametrize("rest", [b"", b"\x03\x01\x00\x05hello", b"\xff" * 8000])
async def test_a_broken_handshake_is_closed(https: Https, rest: bytes) -> None:
    async with https.served():
        reader, writer = await https.connect(None)
        writer.write(b"\x16" + rest)
        if not rest:
            writer.write_eof()
        while await asyncio.wait_for(reader.read(4096), 5):
            pass
        writer.close()
        assert (await https.get("/healthz"))[0] == 200


async def test_too_many_handshakes_make_room_for_new_ones(
    https: Https, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "TLS_LIMIT", 8)
    async with https.served():
        silent = [await https.connect(None) for _ in range(admin.TLS_LIMIT)]
        await asyncio.sleep(0.2)  # until all are accepted
        assert (await https.get("/healthz"))[0] == 200
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(silent[0][0].read(), 5) == b""  # the oldest
        for streams in silent:
            await end(streams)


async def test_five_hundred_strangers_keep_no_probe_out(https: Https) -> None:
    """They begin no handshake, so that aiohttp knows nothing of them."""
    async with https.served():
        strangers = [await https.connect(None) for _ in range(500)]
        async with asyncio.timeout(30):
            for _ in range(5):
                assert (await https.get("/healthz"))[0] == 200
            # No more than the limit are left, and the first have made way.
            for reader, _ in strangers[: 500 - admin.TLS_LIMIT]:
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
        for streams in strangers:
            await end(streams)


async def test_a_new_certificate_counts_from_the_next_connection_on(https: Https) -> None:
    async with https.served():
        before = await https.connect(https.client())
        assert (await ask(before, "/healthz"))[0] == 200
        https.made = certificates(https.folder / "second")
        https.context = https.context_of(https.made)
        assert (await https.get("/healthz"))[0] == 200  # by the new authority
        assert (await ask(before, "/healthz"))[0] == 200
        await end(before)


async def test_the_guard_sees_a_certificate_and_a_token(https: Https) -> None:
    async with https.served():
        await https.get("/healthz")
        streams = await https.connect(https.client(shows=https.made))
        await ask(streams, "/metrics", {"Authorization": "Bearer wk_x"})
        await end(streams)
    (page, entrance, neither), (_, _, both) = https.gate.asked
    assert (page, entrance.transport) == ("/healthz", Transport.TLS)
    assert neither == Credentials()
    assert both.authorization == "Bearer wk_x"
    shown = x509.load_pem_x509_certificates(both.certificate)
    assert shown[0] == x509.load_pem_x509_certificate(https.made.cert_file.read_bytes())


async def test_a_certificate_of_another_authority_gets_no_page(https: Https) -> None:
    stranger = certificates(https.folder / "stranger")
    async with https.served():
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await https.get("/healthz", https.client(shows=stranger))
        assert https.gate.asked == []


@pytest.mark.parametrize(
    ("refusal", "status", "challenge"),
    [
        (errors.credentials_missing, 401, 'Bearer realm="wasmkiln"'),
        (
            lambda: errors.credentials_invalid("unknown", "cannot accept your token"),
            401,
            'Bearer realm="wasmkiln", error="invalid_token"',
        ),
        (lambda: errors.role_missing("metrics", "read /metrics"), 403, None),
    ],
)
@pytest.mark.parametrize("page", ["/metrics", "/healthz", "/", "/no-page"])
async def test_who_is_refused_reads_why_and_no_page(
    https: Https,
    refusal: Callable[[], errors.WasmkilnError],
    status: int,
    challenge: str | None,
    page: str,
) -> None:
    https.gate.refusal = refusal
    path = https.folder / "audit.jsonl"
    audit = Audit()
    audit.prepare(str(path))()
    async with https.served(tls=None, auditor=audit):
        streams = await https.connect(None)
        found, text = await ask(streams, page, {"Authorization": "Bearer wk_secret"})
        await end(streams)
    assert found == status
    assert refusal().message in text
    assert ("WWW-Authenticate: " + challenge in text) if challenge else "WWW" not in text
    assert [asked for asked, _, _ in https.gate.asked] == [page]
    line = json.loads(path.read_text())
    assert (line["event"], line["method"], line["code"]) == ("refusal", page, str(status))
    assert line["reason"] == refusal().reason.value
    assert line["peer"].startswith("127.0.0.1:")
    assert "secret" not in path.read_text()


async def test_a_daemon_that_asks_for_nothing_has_no_such_page(https: Https) -> None:
    async with https.served(tls=None, guard=AccessGuard(None)):
        streams = await https.connect(None)
        assert (await ask(streams, "/no-page"))[0] == 404
        await end(streams)
