"""Uploads under way: modules that arrive in pieces, whatever becomes of the calls that bring them.

What one caller sends of one module is one upload, known by namespace, identity and digest. A call
that was cut leaves it as it is, and another goes on; one that comes before the first has ended
takes it over. Up to 1 MiB stays in memory, more goes into a file without a name, where it is hashed
as it comes (``Spooled``). So a daemon that dies leaves nothing behind, and a module of any size is
never whole in its memory.

==========  ======================================================================================
number      64, and no caller has more of them than it leaves for others
disk        ``upload_bytes`` for all together; each counts as a whole from its first message on
time        thrown away 10 minutes after the last call; each message has ``caller_timeout_s``
memory      of each call one message: HTTP/2's flow control holds back what follows
==========  ======================================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import structlog
from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd import errors
from wasmkilnd.compile import check_sha256
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import Wasm
from wasmkilnd.quota import FairShare
from wasmkilnd.rpc.messages import MAX_NAME_BYTES, UPLOADED_BYTES, bound
from wasmkilnd.rpc.traffic import Call, Traffic
from wasmkilnd.spooled import Spooled

# Returns a call's next message; None after the last.
Read: TypeAlias = Callable[[], Awaitable["pb.UploadRequest | None"]]
_Key: TypeAlias = tuple[str, str, str]

MOST = 64
KEPT_S = 600.0
_IN_MEMORY_BYTES = 1024 * 1024
# Smaller modules have no file any more once they are whole: descriptors are few.
_READ_BACK_BYTES = 8 * 1024 * 1024

log = structlog.get_logger("wasmkilnd.rpc")


@dataclass(eq=False, slots=True)
class _Upload:
    """A module that arrives.

    - ``caller``: the name under which it counts.
    - ``call``: the one that brings it now.
    - ``writing``: goes on where its call was cut; another waits for it.
    - ``timer``: throws it away, unless another call comes.
    """

    key: _Key
    size_bytes: int
    data: bytearray | Spooled
    caller: str = ""
    call: Call | None = None
    writing: asyncio.Future[None] | None = None
    timer: asyncio.TimerHandle | None = None

    def whole(self) -> Wasm:
        """Return all of it."""
        if isinstance(self.data, Spooled) and self.size_bytes > _READ_BACK_BYTES:
            return self.data
        return bytes(self.data[:])

    def interrupted(self, why: str) -> WasmkilnError:
        """Return the error of a call that does not bring what follows."""
        return errors.upload_interrupted(f"cannot go on with the upload: {why}", len(self.data))


class Uploads:
    """All uploads of all namespaces. For one event loop."""

    def __init__(self, limit_bytes: Callable[[], int], state_dir: Path, traffic: Traffic) -> None:
        """Keep what is large below ``state_dir``, ``limit_bytes`` at most."""
        self._folder, self._traffic = state_dir / "uploads", traffic
        # How many there are, and how large they are when they are whole.
        self.counts, self.sizes = FairShare(lambda: MOST), FairShare(limit_bytes)
        self._under_way = dict[_Key, _Upload]()
        self._threads = ThreadPoolExecutor(2, "wasmkiln-upload")

    def held_bytes(self, sha256: str, call: Call) -> int:
        """Return how much there is of a module. Raises INVALID_REQUEST."""
        upload = self._under_way.get(_key(sha256, call))
        return len(upload.data) if upload else 0

    @asynccontextmanager
    async def take(
        self, read: Read, call: Call, expect: Callable[[int, str], None]
    ) -> AsyncIterator[tuple[str, Wasm]]:
        """Take a module; yield the digest that it should have, and it.

        ``expect`` raises if no module of a size is wanted, with the name of an engine. The module
        is kept where the body is cut, or fails in a way that may pass. Raises the errors of Upload.
        """
        if (request := await read()) is None:
            raise errors.invalid_request("cannot upload: the call has no message", "")
        sha256, size_bytes, call.engine = request.sha256, request.size_bytes, request.engine
        bound("engine", len(call.engine.encode()), MAX_NAME_BYTES)
        key = _key(sha256, call)
        call.module = sha256
        expect(size_bytes, call.engine)
        upload = self._begin(key, size_bytes, call)
        try:
            if upload.writing:
                await asyncio.wait((upload.writing,))
            while request is not None:
                await self._add(upload, request)
                request = await read()
            if len(upload.data) < size_bytes:
                raise upload.interrupted("the call ended before the module did")
            yield sha256, upload.whole()
            self._drop(upload)
        except WasmkilnError as failure:
            if failure.reason.code == "INVALID_ARGUMENT":
                self._drop(upload)
            raise
        finally:
            if upload.call is call:
                upload.call = None
                if self._under_way.get(upload.key) is upload:
                    loop = asyncio.get_running_loop()
                    upload.timer = loop.call_later(KEPT_S, self._drop, upload)

    def _begin(self, key: _Key, size_bytes: int, call: Call) -> _Upload:
        """Go on with an upload, or begin one. Raises COMPILE_QUEUE_FULL."""
        upload = self._under_way.get(key)
        # Two calls may validate what is whole: neither loses its place to the other.
        if upload and upload.call and len(upload.data) < upload.size_bytes:
            self._traffic.cancel(upload.call, upload.interrupted("another call took it over"))
        if upload and upload.timer:
            upload.timer.cancel()
        if upload and upload.size_bytes != size_bytes:
            self._drop(upload)  # One of the two is a mistake: the digest stands for one size.
            upload = None
        if upload is None:
            fits = self.counts.fits(call.caller, 1) and self.sizes.fits(call.caller, size_bytes)
            if self._under_way and not fits:
                total = f"{self.counts.total} uploads of {self.sizes.total:,} bytes"
                raise errors.uploads_full(f"{total} have not ended")
            upload = _Upload(key, size_bytes, self._spool(size_bytes))
            self._under_way[key] = upload
        else:
            self._charge(upload, -1)
        # What goes on counts for the caller as it is named now: it may have a new connection.
        upload.call, upload.caller = call, call.caller
        self._charge(upload, 1)
        return upload

    def _spool(self, size_bytes: int) -> bytearray | Spooled:
        if size_bytes <= _IN_MEMORY_BYTES:
            return bytearray()
        try:
            return Spooled(self._folder)
        except OSError as failure:
            raise _no_disk(failure) from None

    async def _add(self, upload: _Upload, request: pb.UploadRequest) -> None:
        """Add what a message brings that is new."""
        data, at = request.data, request.offset
        bound("data", len(data), UPLOADED_BYTES)
        if at + len(data) > upload.size_bytes:
            raise errors.invalid_request("cannot upload: data goes beyond size_bytes", "data")
        if at > len(upload.data):
            raise upload.interrupted("a piece begins behind what the daemon holds")
        if not (data := data[len(upload.data) - at :]):
            return
        if isinstance(upload.data, bytearray):
            upload.data += data
            return
        loop = asyncio.get_running_loop()
        upload.writing = loop.run_in_executor(self._threads, upload.data.append, data)
        try:
            await asyncio.shield(upload.writing)
        except OSError as failure:
            raise _no_disk(failure) from None

    def _charge(self, upload: _Upload, sign: int) -> None:
        self.counts.add(upload.caller, sign)
        self.sizes.add(upload.caller, sign * upload.size_bytes)

    def _drop(self, upload: _Upload) -> None:
        if self._under_way.get(upload.key) is upload:
            del self._under_way[upload.key]
            self._charge(upload, -1)


def _key(sha256: str, call: Call) -> _Key:
    """Return what names an upload. Raises INVALID_REQUEST."""
    return call.identity.namespace, call.identity.name, check_sha256(sha256, "sha256")


def _no_disk(failure: OSError) -> WasmkilnError:
    why = failure.strerror or "it fails"
    log.warning("cannot keep an upload on disk", cause=why)
    return errors.uploads_full(f"cannot keep the upload on disk ({why})")
