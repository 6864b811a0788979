"""A proxy in front of a server that can be slow, thin, silent, cut off, or wrong."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path

_READ_BYTES = 64 * 1024
# No fault may hold a byte back for longer, whatever was asked for.
_LONGEST_PAUSE_S = 30.0
# A connection that was just accepted is among those that can be cut after this.
_BEGIN_S = 0.05


@dataclass(frozen=True)
class Line:
    """The state of the line. Unless it says so, it concerns only what comes from the server."""

    delay_s: float = 0.0
    """Before each chunk of bytes."""
    bytes_per_s: float = 0.0
    """0 for as fast as it can be."""
    swallow: bool = False
    """Accepts what is sent, and passes nothing on in either direction."""
    garbage: bytes = b""
    """Sent instead of the server's reply."""
    only_to: bytes = b""
    """What requests begin with that are answered so, or swallowed; the server has the others."""
    flip_one_in: int = 0
    """One of so many bytes is changed; 0 for none."""
    flip_once: bytes = b""
    """The next time that these bytes come, one bit of them is changed."""
    cut_after_bytes: int = 0
    """The connection ends after so many; 0 for never."""
    cut_once_after_bytes: int = 0
    """The first connection of all that carries so many ends; 0 for never."""
    stall_after_sent_bytes: int = 0
    """No more than that goes to the server, until the connection is cut; 0 for no end."""
    refuse: bool = False
    """Nobody listens."""


GOOD = Line()


class Proxy:
    """Passes connections to 127.0.0.1:``port`` on to a socket or port. In a thread of its own."""

    def __init__(self, target: Path | int, seed: int = 0) -> None:
        self._target = target
        self._random = random.Random(seed)
        self._line = GOOD
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        self.sent_bytes = self.received_bytes = self.cuts = 0
        """What it has read for the server, and from it; and how often that ended a connection."""

    def set(self, line: Line) -> None:
        """Set the state of the line, for present and new connections."""
        self._do(self._set(line))

    def cut(self) -> None:
        """End every connection."""
        self._do(self._cut())

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _set(self, line: Line) -> None:
        was, self._line = self._line, line
        if line.refuse and not was.refuse:
            await self._close()
        if was.refuse and not line.refuse:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server:
            self._server.close()
            self._server = None
        await self._cut()

    async def _end(self) -> None:
        await self._close()
        await asyncio.sleep(_BEGIN_S)
        await self._cut()
        await asyncio.sleep(0)  # What was aborted closes its socket.

    async def _cut(self) -> None:
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                back, forth = await (
                    asyncio.open_unix_connection(self._target)
                    if isinstance(self._target, Path)
                    else asyncio.open_connection("127.0.0.1", self._target)
                )
                ways = [
                    asyncio.create_task(self._carry_forth(reader, forth, writer)),
                    asyncio.create_task(self._carry_back(back, writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    forth.transport.abort()
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _carry_forth(
        self,
        reader: asyncio.StreamReader,
        forth: asyncio.StreamWriter,
        writer: asyncio.StreamWriter,
    ) -> None:
        sent = 0
        while chunk := await reader.read(_READ_BYTES):
            line = self._line
            sent, self.sent_bytes = sent + len(chunk), self.sent_bytes + len(chunk)
            if line.stall_after_sent_bytes and sent > line.stall_after_sent_bytes:
                await asyncio.Event().wait()
            if (line.garbage or line.swallow) and chunk.startswith(line.only_to):
                writer.write(line.garbage)
                await writer.drain()
                while line.only_to and await reader.read(_READ_BYTES):
                    pass  # The server is to see nothing of what follows.
            else:
                forth.write(chunk)
                await forth.drain()

    async def _carry_back(self, back: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carried = 0
        while chunk := await back.read(_READ_BYTES):
            line = self._line
            if line.delay_s or line.bytes_per_s:
                thin_s = len(chunk) / line.bytes_per_s if line.bytes_per_s else 0.0
                await asyncio.sleep(min(line.delay_s + thin_s, _LONGEST_PAUSE_S))
            if (line.swallow or line.garbage) and not line.only_to:
                continue
            if line.flip_one_in:
                chunk = self._flipped(chunk, line.flip_one_in)
            if line.flip_once and line.flip_once in chunk:
                changed = bytes((line.flip_once[0] ^ 1, *line.flip_once[1:]))
                chunk = chunk.replace(line.flip_once, changed, 1)
                self._line = GOOD
            carried, self.received_bytes = carried + len(chunk), self.received_bytes + len(chunk)
            cut_once = 0 if self.cuts else line.cut_once_after_bytes
            if any(0 < end < carried for end in (line.cut_after_bytes, cut_once)):
                self.cuts += 1
                writer.write(chunk[: len(chunk) // 2])
                return
            writer.write(chunk)
            await writer.drain()

    def _flipped(self, chunk: bytes, one_in: int) -> bytes:
        changed = bytearray(chunk)
        expected = len(chunk) / one_in
        count = int(expected) + (self._random.random() < expected % 1)
        for _ in range(count):
            changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)
