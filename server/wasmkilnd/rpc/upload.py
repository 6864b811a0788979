"""Uploads under way: modules that arrive in pieces, whatever becomes of the calls that bring them.

What one caller sends of one module is one upload, known by namespace, identity and digest. A call
that was cut leaves it as it is, and another goes on; one that comes before the first has ended
takes it over. It goes into a file without a name, where it is hashed as it comes (``Spooled``), and
every call that names it when it is whole reads that file. So a daemon that dies leaves nothing
behind, and a module of any size is never whole in its memory.

==========  ======================================================================================
number      64, and no caller has more of them than it leaves for others. Each has one descriptor
disk        ``upload_bytes`` for all together; each counts as a whole from its first message on,
            while a call or a write uses it too
time        ``caller_timeout_s`` for each message with new bytes, and for each write. One that no
            call brings is thrown away after 10 minutes, or sooner when another needs the room
memory      of each call one message: HTTP/2's flow control holds back what follows
==========  ======================================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd import errors
from wasmkilnd.compile import check_sha256
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.files.spooled import Spooled
from wasmkilnd.model import Reloadable
from wasmkilnd.rpc.messages import MAX_NAME_BYTES, UPLOADED_BYTES, bound
from wasmkilnd.rpc.traffic import Call, Traffic
from wasmkilnd.settings import Settings
from wasmkilnd.waits.flights import FairShare

# Returns a call's next message; None after the last.
Read: TypeAlias = Callable[[], Awaitable["pb.UploadRequest | None"]]
_Key: TypeAlias = tuple[str, str, str]

MOST = 64
KEPT_S = 600.0


@dataclass(eq=False, slots=True)
class _Upload:
    """A module that arrives.

    - ``caller``: the name under which it counts.
    - ``call``: the one that brings it now.
    - ``users``: how many calls and writes use it. It counts while there are any.
    - ``timer``: throws it away, unless another call comes.
    """

    key: _Key
    size_bytes: int
    data: Spooled
    caller: str = ""
    call: Call | None = None
    users: int = 0
    timer: asyncio.TimerHandle | None = None

    def interrupted(self, why: str) -> WasmkilnError:
        """Return the error of a call that does not bring what follows."""
        return errors.upload_interrupted(f"cannot go on with the upload: {why}", len(self.data))


class Uploads:
    """All uploads of all namespaces. For one event loop."""

    def __init__(self, limits: Reloadable[Settings], traffic: Traffic) -> None:
        """Keep them below the state directory."""
        self._limits, self._traffic = limits, traffic
        self._folder = limits.current.state_dir / "uploads"
        # How many there are, and how large they are when they are whole.
        self.counts = FairShare(lambda: MOST)
        self.sizes = FairShare(lambda: limits.current.upload_bytes)
        # Those that no call brings are in the order in which they were left.
        self._under_way = dict[_Key, _Upload]()

    def held_bytes(self, sha256: str, call: Call) -> int:
        """Return how much there is of a module. Raises INVALID_REQUEST."""
        upload = self._under_way.get(_key(sha256, call))
        return len(upload.data) if upload else 0

    @asynccontextmanager
    async def take(
        self, read: Read, call: Call, expect: Callable[[int, str], None]
    ) -> AsyncIterator[tuple[str, Spooled]]:
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
        upload, held_bytes = self._begin(key, size_bytes, call), -1
        try:
            await upload.data.settled(self._limits.current.caller_timeout_s)
            while request is not None:
                await self._add(upload, request)
                call.in_vain, held_bytes = len(upload.data) == held_bytes, len(upload.data)
                del request  # It has up to 1 MiB, and the next one may take long.
                request = await read()
            if len(upload.data) < size_bytes:
                raise upload.interrupted("the call ended before the module did")
            yield sha256, upload.data
            self._drop(upload)
        except WasmkilnError as failure:
            if failure.reason.code == "INVALID_ARGUMENT":
                self._drop(upload)
            raise
        finally:
            if upload.call is call:
                upload.call = None
            self._leave(upload)

    def _begin(self, key: _Key, size_bytes: int, call: Call) -> _Upload:
        """Go on with an upload, or begin one. Raises COMPILE_QUEUE_FULL."""
        upload = self._under_way.get(key)
        # Two calls may validate what is whole: neither loses its place to the other.
        if upload and upload.call and len(upload.data) < upload.size_bytes:
            self._traffic.cancel(upload.call, upload.interrupted("another call took it over"))
        if upload and upload.size_bytes != size_bytes:
            self._drop(upload)  # One of the two is a mistake: the digest stands for one size.
            upload = None
        if upload is None:
            self._make_room(size_bytes, call.caller)
            upload = _Upload(key, size_bytes, Spooled(self._folder))
            self._under_way[key] = upload
        else:
            self._charge(upload, -1)
        if upload.timer:
            upload.timer.cancel()
        # What goes on counts for the caller as it is named now: it may have a new connection.
        upload.call, upload.caller, upload.users = call, call.caller, upload.users + 1
        self._charge(upload, 1)
        return upload

    def _make_room(self, size_bytes: int, caller: str) -> None:
        """Throw away what no call brings, the caller's own first. Raises COMPILE_QUEUE_FULL."""
        left = [each for each in self._under_way.values() if not each.users]
        left.sort(key=lambda each: each.caller != caller)
        while self.counts.total and not (
            self.counts.fits(caller, 1) and self.sizes.fits(caller, size_bytes)
        ):
            if not left:
                total = f"{self.counts.total} uploads of {self.sizes.total:,} bytes"
                raise errors.uploads_full(f"{total} have not ended")
            self._drop(left.pop(0))

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
        upload.users += 1
        limit_s = self._limits.current.caller_timeout_s
        await upload.data.write(data, limit_s, partial(self._leave, upload))

    def _leave(self, upload: _Upload, why: str = "") -> None:
        """End one use of an upload; ``why`` the disk did not take what it wrote, if so."""
        if why:
            self._drop(upload)
        upload.users -= 1
        if upload.users:
            return
        if self._under_way.get(upload.key) is upload:
            self._under_way[upload.key] = self._under_way.pop(upload.key)
            loop = asyncio.get_running_loop()
            upload.timer = loop.call_later(KEPT_S, self._drop, upload)
        else:
            self._charge(upload, -1)

    def _drop(self, upload: _Upload) -> None:
        if self._under_way.get(upload.key) is not upload:
            return
        del self._under_way[upload.key]
        if upload.timer:
            upload.timer.cancel()  # One that is over holds the upload too.
        if not upload.users:
            self._charge(upload, -1)

    def _charge(self, upload: _Upload, sign: int) -> None:
        self.counts.add(upload.caller, sign)
        self.sizes.add(upload.caller, sign * upload.size_bytes)


def _key(sha256: str, call: Call) -> _Key:
    """Return what names an upload. Raises INVALID_REQUEST."""
    return call.identity.namespace, call.identity.name, check_sha256(sha256, "sha256")
