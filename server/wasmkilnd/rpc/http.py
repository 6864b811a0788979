"""Artifacts and modules over HTTP, at the addresses of ``http_listen``: what tiers hold, as it is.

=====================================  ==========================================================
``/v1/artifacts/MODULE/FINGERPRINT``   the artifact; Range, or zstd where it is stored so
``…/attestation``, ``…/header``        its DSSE envelope, and its ArtifactHeader as JSON
``/v1/modules/MODULE``                 the module
=====================================  ==========================================================

GET and HEAD alone, and nothing is compiled. A request is a call like any other: ``calls.Rpc``
guards, counts, limits, logs, audits and traces it, and a path stands for the RPC. What fails is
JSON with code, reason, message and metadata; after the first byte the connection is cut.

**What resumes is right.** The strong ETag of an artifact is its SHA-256, on each daemon and in each
tier, so a range of one daemon goes on with that of another, or If-Range has it begin anew. zstd
frames may differ from daemon to daemon: so that representation has a weak ETag of its own, and no
ranges. The header and the attestation have the digests of their own bytes. aiohttp's ETags are
times of files, and its If-Range takes any.

**Where bytes come from.** Memory's frames, cut where many wait; frames of Redis as they are
unpacked; frames of a file, each read in a thread, and of a range or a HEAD no others. A caller that
reads nothing for ``caller_timeout_s`` is cut off, and holds a piece of a frame until then.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Final

from aiohttp import ETag, web
from aiohttp.helpers import ETAG_ANY
from wasmkiln.artifact import header_text
from wasmkiln.v1.types_pb2 import ArtifactHeader

from wasmkilnd import errors, model, wire
from wasmkilnd.access.guard import ARTIFACTS
from wasmkilnd.compile import Tenant, check_sha256
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import Artifact, Origin
from wasmkilnd.rpc.calls import Entry, Rpc
from wasmkilnd.rpc.messages import header_of
from wasmkilnd.rpc.traffic import Call, frames_from
from wasmkilnd.web import COMMON, STRANGE_NAME, Door, challenge, credentials_of, peer_of

METHODS: Final = tuple(ARTIFACTS)
"""The paths as metrics, logs and the audit name them; the first stands for every other one."""

_UNKNOWN, _MODULE, _ARTIFACT, _ATTESTATION, _HEADER = METHODS
_PATH = re.compile(r"/v1/(?:modules/([^/]+)|artifacts/([^/]+)/([^/]+)(/attestation|/header)?)")
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)
_ZSTD: Final = "zstd"

# Another artifact may come under the path, if its engine makes other bytes when it is evicted.
_DAY, _FOREVER, _AGAIN = "max-age=86400, immutable", "max-age=31536000, immutable", "no-cache"
# As google.rpc.Code says it, and what those two have no code for.
_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "UNIMPLEMENTED": 405,
    "ABORTED": 412,
    "OUT_OF_RANGE": 416,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_TLS_BYTES: Final = 64 * 1024
_ALWAYS: Final = {"Server": "wasmkilnd", "X-Content-Type-Options": "nosniff"}
# A connection is idle, or sends a request, for so long.
_IDLE_S: Final = 60.0
_STOP_S: Final = 1.0
_SIZES: Final[Any] = {"max_line_size": 4096, "max_field_size": 8192, "max_headers": 32}


class _Exchange:
    """A request and its answer: to ``Call`` what a ServicerContext of gRPC is."""

    def __init__(self, request: web.BaseRequest, names: Sequence[str | None]) -> None:
        """``names`` are the digests of the path."""
        self.request, self.names = request, names
        self.answer: web.StreamResponse | None = None
        # Of the answer, whatever it is.
        self.headers = dict(_ALWAYS)

    def peer(self) -> str:
        name = peer_of(self.request)
        return name if name == "unix" else f"ipv{6 if name.startswith('[') else 4}:{name}"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple((name.lower(), value) for name, value in self.request.headers.items())

    def done(self) -> bool:
        transport = self.request.transport
        return transport is None or transport.is_closing()

    async def write(self, message: memoryview) -> None:
        """Send some bytes of the body; return when the connection has taken most of them."""
        if self.answer:
            await self.answer.write(message)

    async def begin(self, status: int, size_bytes: int) -> bool:
        """Send status and headers, with the first piece; return whether a body follows."""
        headers = self.headers | {"Content-Length": str(size_bytes)}
        self.answer = web.Response(status=status, headers=headers)
        await self.answer.prepare(self.request)
        return self.request.method == "GET" and size_bytes > 0

    def is_current(self, etag: str) -> bool:
        """Return whether the client has this representation already: If-None-Match.

        Raises ETAG_DIFFERS where it wants another one: If-Match.
        """
        is_strong, value = not etag.startswith("W/"), etag.removeprefix("W/").strip('"')
        wanted, known = self.request.if_match, self.request.if_none_match
        fits = is_strong and any(each in (ETag(ETAG_ANY), ETag(value)) for each in wanted or ())
        if wanted is not None and not fits:
            raise errors.etag_differs(etag)
        return any(each.value in (ETAG_ANY, value) for each in known or ())

    def span(self, etag: str, size_bytes: int) -> tuple[int, int] | None:
        """Return the range to send; None for all. Raises RANGE_NOT_SATISFIABLE.

        Several ranges, and what is none, count as no range, as RFC 9110 has it. So does one with
        an If-Range that is not this strong ETag: then the client has a part of something else.
        """
        headers = self.request.headers
        ranges, known = headers.getall("Range", ()), headers.getall("If-Range", (etag,))
        found = _RANGE.fullmatch(ranges[0].strip()) if len(ranges) == 1 else None
        is_weak = etag.startswith("W/")
        if self.request.method != "GET" or found is None or is_weak or list(known) != [etag]:
            return None
        first, last = found.groups()
        if not first:
            start, stop = max(0, size_bytes - int(last or 0)), size_bytes
            if not last:
                return None
        else:
            start, stop = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
            if last and int(last) < start:
                return None
        if start >= size_bytes:
            raise errors.range_not_satisfiable(size_bytes)
        self.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size_bytes}"
        return start, stop


class _HttpCall(Call):
    """A request under way."""

    def credentials(self) -> model.Credentials:
        """Return what the request brings along to say who sends it."""
        return credentials_of(self.context.request)


class _Path(Rpc):
    """One path at one address."""

    call_type = _HttpCall

    async def refuse(self, call: Call, failure: WasmkilnError) -> None:
        """Answer with the row of the error table; cut off an answer that has begun."""
        exchange: _Exchange = call.context
        if exchange.answer and exchange.answer.prepared:
            if transport := exchange.request.transport:
                transport.abort()
            return
        status = _STATUS.get(failure.reason.code, 500)
        headers = {"Cache-Control": "no-store", "X-Request-Id": call.request_id}
        if status in (429, 503):
            headers["Retry-After"] = str(max(1, math.ceil(failure.retry_after_s or 0)))
        elif status == 401:
            headers["WWW-Authenticate"] = challenge(failure.reason is Reason.CREDENTIALS_INVALID)
        elif status == 405:
            headers["Allow"] = "GET, HEAD"
        elif status == 416:
            headers["Content-Range"] = f"bytes */{failure.metadata['size_bytes']}"
        what = {"code": failure.reason.code, "reason": failure.reason.value}
        what |= {"message": failure.message, "metadata": failure.metadata}
        given = exchange.headers.items()
        kept = {name: value for name, value in given if name not in _OF_THE_BODY} | headers
        text, kind = json.dumps(what) + "\n", "application/json"
        exchange.answer = web.Response(text=text, content_type=kind, status=status, headers=kept)


# Headers of what was to be sent, which is no error.
_OF_THE_BODY = frozenset(
    {"ETag", "Content-Encoding", "Content-Range", "Content-Type", "Accept-Ranges"}
)


class HttpServer:
    """Serves each address of ``http_listen``. For one event loop."""

    def __init__(
        self,
        tenant_of: Callable[[str], Tenant],
        entry: Entry,
        doors: Sequence[Door],
    ) -> None:
        """``tenant_of`` takes the namespace of a caller."""
        self._tenant_of, self._entry, self._doors = tenant_of, entry, doors
        self._on_stop = AsyncExitStack()

    async def start(self) -> list[str]:
        """Listen and serve; return the addresses with their real ports. Raises CannotListen."""
        bound = []
        for door in self._doors:
            # The runner of a server that is made would drop these without a word.
            server = web.Server(self._handler(door), keepalive_timeout=_IDLE_S, **COMMON, **_SIZES)
            runner = web.ServerRunner(server, shutdown_timeout=_STOP_S)
            self._on_stop.push_async_callback(runner.cleanup)
            self._on_stop.push_async_callback(door.close)
            bound.append(await door.open(runner))
        return bound

    async def stop(self) -> None:
        """Close every connection."""
        await self._on_stop.aclose()

    def _handler(self, door: Door) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        """Return what answers the requests that come through ``door``."""
        entry = replace(self._entry, entrance=door.entrance)
        answers = (self._no_path, self._module, self._artifact, self._attestation, self._header)
        paths = {
            path: _Path(path, entry, self._checked(answer), entry.traffic.calls)
            for path, answer in zip(METHODS, answers, strict=True)
        }

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            try:
                return await answered(request)
            finally:
                door.asked(request)

        async def answered(request: web.BaseRequest) -> web.StreamResponse:
            ends = door.asked(request, at_work=True)
            # Requests that came together on one connection must not hold up the others.
            await asyncio.sleep(0)
            if door.is_strange(request):
                return web.Response(text=f"{STRANGE_NAME}\n", status=421, headers=_ALWAYS)
            # As it was sent: a path that dots or escapes lead to is another one.
            found = _PATH.fullmatch(request.rel_url.raw_path)
            module, *of, more = found.groups() if found else (None,) * 4
            path = _MODULE if module else f"{_ARTIFACT}{more or ''}" if found else _UNKNOWN
            exchange = _Exchange(request, (module,) if module else of)
            if request.transport:  # It holds what is being written alone. TLS stalls without some.
                request.transport.set_write_buffer_limits(_TLS_BYTES if door.tls else 0)
            await paths[path].handle(None, exchange)
            answer = exchange.answer or web.Response(status=500)
            if ends or entry.traffic.calls.closed:
                answer.force_close()
            return answer

        return handle

    def _checked(
        self, answer: Callable[[Call], Awaitable[None]]
    ) -> Callable[[Call], Awaitable[None]]:
        """Return what answers a request that was let in, if it is one for this server."""

        async def checked(call: Call) -> None:
            call.arrived, exchange = True, call.context
            exchange.headers["X-Request-Id"] = call.request_id
            if exchange.request.method not in ("GET", "HEAD"):
                raise errors.method_not_allowed()
            if exchange.request.body_exists:
                raise errors.invalid_request("cannot use a body: GET and HEAD have none", "")
            self._entry.traffic.begin_answer(call)
            try:
                await answer(call)
                # A short one the library sends. Of another, the daemon may end after the call.
                self._entry.traffic.await_caller(call)
                await exchange.request.writer.drain()
            except OSError:  # The caller has gone.
                raise asyncio.CancelledError from None

        return checked

    async def _no_path(self, call: Call) -> None:
        raise errors.path_unknown()

    async def _module(self, call: Call) -> None:
        """Send a module."""
        call.module = sha256 = check_sha256(call.context.names[0], "sha256")
        cache = self._tenant_of(call.identity.namespace).compiler.cache
        if (found := await cache.get_module(sha256, cache.wait_budget())) is None:
            raise errors.module_not_loaded(sha256)
        module, origin = found
        self._describe(call, "application/wasm", _FOREVER, f'"{sha256}"', origin)
        await self._send(call, module.size_bytes, partial(wire.read_pieces, module.wasm), module)

    async def _artifact(self, call: Call) -> None:
        """Send an artifact, or a range of it."""
        exchange: _Exchange = call.context
        headers, is_get = exchange.request.headers, exchange.request.method == "GET"
        takes = _takes_zstd(headers)
        whole = is_get and not {"Range", "If-None-Match"} & headers.keys()
        artifact, origin = await self._find(call, zstd=takes or not is_get, whole=whole)
        etag, size_bytes = f'"{artifact.sha256}"', artifact.size_bytes
        is_zstd = takes and artifact.encoding == _ZSTD
        if is_zstd:
            etag = f'W/"{artifact.sha256};{_ZSTD}"'
            size_bytes = sum(map(len, wire.payload_views(artifact.frames)))
        self._describe(call, "application/octet-stream", _DAY, etag, origin)
        exchange.headers["Vary"] = "Accept-Encoding"
        if is_zstd:
            exchange.headers |= {"Content-Encoding": _ZSTD, "Accept-Ranges": "none"}
        await self._send(call, size_bytes, partial(_read_pieces, artifact), artifact)
        if is_get:
            self._entry.metrics.count("served", origin.value)
            self._entry.metrics.count("sent_bytes", by=call.bytes or 0)
            tenant = self._tenant_of(call.identity.namespace)
            tenant.tally[artifact.module_sha256, artifact.spec] += 1

    async def _attestation(self, call: Call) -> None:
        """Send the DSSE envelope of an artifact."""
        kind = "application/vnd.dsse.envelope.v1+json"
        await self._send_text(call, kind, lambda artifact: artifact.attestation)

    async def _header(self, call: Call) -> None:
        """Send what an artifact says of itself, as the host store has it."""

        def text_of(artifact: Artifact) -> bytes:
            return _text_of(header_of(artifact).SerializeToString(deterministic=True))

        await self._send_text(call, "application/json", text_of)

    async def _send_text(self, call: Call, kind: str, text_of: Callable[[Artifact], bytes]) -> None:
        artifact, origin = await self._find(call, zstd=True, whole=False)
        # A header may have a thousand imports and exports.
        async with self._entry.traffic.turns((call.caller, False)):
            text = await asyncio.to_thread(text_of, artifact)
        self._describe(call, kind, _AGAIN, f'"{hashlib.sha256(text).hexdigest()}"', origin)
        await self._send(call, len(text), partial(wire.read_pieces, text))

    async def _find(self, call: Call, *, zstd: bool, whole: bool) -> tuple[Artifact, Origin]:
        """Return the artifact that a path names, of an engine that is served.

        It may be encoded with ``zstd``. Unless ``whole``, it may be in its file still. Raises
        ARTIFACT_NOT_STORED.
        """
        module, fingerprint = call.context.names
        call.module = check_sha256(module, "sha256")
        check_sha256(fingerprint, "fingerprint")
        compiler = self._tenant_of(call.identity.namespace).compiler
        accept = frozenset({_ZSTD} if zstd else ())
        found = await compiler.stored(module, fingerprint, accept, whole=whole)
        call.engine = found[0].spec.engine.id
        call.compile_ms = round(found[0].compile_time_s * 1e3, 3)
        return found

    def _describe(self, call: Call, kind: str, keep: str, etag: str, origin: Origin) -> None:
        """Say what is to be sent."""
        call.origin = origin.value
        who = "private" if self._entry.guard.access.on else "public"
        call.context.headers |= {
            "Content-Type": kind,
            "Cache-Control": f"{who}, {keep}",
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Wasmkiln-Origin": origin.value,
        }

    async def _send(
        self,
        call: Call,
        size_bytes: int,
        read: Callable[[int], AsyncGenerator[memoryview]],
        held: model.Item | None = None,
    ) -> None:
        """Send what ``read`` returns from an offset on, a part of it, or that the client has it.

        ``held`` is what counts as held meanwhile.
        """
        exchange: _Exchange = call.context
        etag, traffic = exchange.headers["ETag"], self._entry.traffic
        if exchange.is_current(etag):
            exchange.answer = web.Response(status=304, headers=exchange.headers)
            return
        span = exchange.span(etag, size_bytes)
        start, stop = span or (0, size_bytes)
        if exchange.request.method == "GET":
            traffic.begin_answer(call, held)
        if not await exchange.begin(206 if span else 200, stop - start):
            return
        call.bytes = left = stop - start
        async with aclosing(read(start)) as pieces:
            async for each in pieces:
                piece = each[:left]
                step = traffic.piece_bytes(call, len(piece)) or len(piece)
                for at in range(0, len(piece), step):
                    await traffic.write(call, piece[at : at + step])
                if not (left := left - len(piece)):
                    break


async def _read_pieces(artifact: Artifact, start: int) -> AsyncGenerator[memoryview]:
    """Read an artifact from ``start`` on, as it is encoded, frame by frame."""
    frames, skipped = frames_from(artifact, start)
    for each in frames:
        frame = each if isinstance(each, bytes) else await asyncio.shield(each)
        [view] = wire.payload_views((frame,))
        yield view[skipped:]
        skipped = 0


@lru_cache(maxsize=16)  # Its texts have less than 2 MiB: the types have 256 KiB.
def _text_of(header: bytes) -> bytes:
    return header_text(ArtifactHeader.FromString(header))


def _takes_zstd(headers: Mapping[str, str]) -> bool:
    """Return whether a client takes zstd, by name: what a ``*`` stands for it may not know."""
    for part in headers.get("Accept-Encoding", "").lower().split(","):
        coding, _, quality = part.replace(" ", "").partition(";")
        if coding == _ZSTD:
            return not re.fullmatch(r"q=0(\.0*)?", quality)
    return False
