"""A server that speaks Redis's protocol well enough to be asked, and then lies."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_PART = 64 * 1024

LIES: dict[str, tuple[bytes, bytes]] = {
    # What it begins its answer with, and what it goes on with for ever.
    "a value of 10 GB": (b"$10000000000\r\n", b"x" * _PART),
    "a value that is a little larger than asked for": (b"$5300000\r\n", b"x" * _PART),
    "a length that is no number": (b"$1_000_000_000\r\n", b"x" * _PART),
    "a line without end": (b"+", b"x" * _PART),
    "an error without end": (b"-ERR ", b"x" * _PART),
    "an array of two billion": (b"*2147483647\r\n", b":1\r\n" * (_PART // 4)),
    "arrays in arrays": (b"", b"*1\r\n" * (_PART // 4)),
    "empty arrays": (b"", b"*0\r\n" * (_PART // 4)),
    "an array of empty values": (b"*1000000\r\n", b"$0\r\n\r\n" * (_PART // 6)),
    "answers that nobody asked for": (b"", b"+OK\r\n" * (_PART // 5)),
    "messages of a channel": (
        b"",
        b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n" * (_PART // 36),
    ),
    "pushes of version 3": (b"", b">2\r\n+invalidate\r\n+x\r\n" * (_PART // 22)),
    "maps of version 3": (b"%2147483647\r\n", b"+a\r\n:1\r\n" * (_PART // 8)),
    "nothing but bytes": (b"", b"\x00" * _PART),
}
_COMMAND = re.compile(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n")
_HANDSHAKE = {b"CLIENT", b"SELECT", b"AUTH", b"PING", b"HELLO"}


class LyingServer:
    """Answers the handshake, and everything else, or from the first byte on, with a lie."""

    def __init__(self, lie: str, *, from_the_start: bool) -> None:
        self._begin, self._go_on = LIES[lie]
        self._from_the_start = from_the_start
        self.sent_bytes = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while commands := _COMMAND.findall(await reader.read(_PART)):
                if not self._from_the_start and _HANDSHAKE.issuperset(commands):
                    writer.write(b"+OK\r\n" * len(commands))
                    continue
                writer.write(self._begin)
                while True:
                    writer.write(self._go_on)
                    self.sent_bytes += len(self._go_on)
                    await writer.drain()
        writer.close()


@asynccontextmanager
async def lying_server(folder: Path, lie: str, *, from_the_start: bool) -> AsyncIterator[str]:
    """Run one in this process, which takes next to no memory; return its URL."""
    server = LyingServer(lie, from_the_start=from_the_start)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_unix_server(accept, folder / "lies.sock")
    try:
        yield f"unix://{folder}/lies.sock"
    finally:
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listening.close()
