"""An archive of stored values: a plain tar file, read and written as a stream.

::

    wasmkiln-cache.json                    what this is; its date: when it was exported
    module/<module>                        a module's value
    compiled/<module>/<fingerprint>        an artifact's value

A member is the value as it is stored under its name, followed by its further pieces; the
value's head says where each piece begins. A member's date is the time when the value expires,
counted from the export; 1970 stands for never.

Members' names are for people. A reader ignores them, since each value's signed head holds its
key. A reader accepts only what :class:`ArchiveWriter` writes, which is ustar with regular files:
it parses no extension headers, whose sizes an untrusted file could choose.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from wasmkilnd.cache.redis.value_reader import Whole
from wasmkilnd.cache.value.names import ValueKey

FORMAT = "wasmkiln cache archive"
VERSION = 1

_MANIFEST = "wasmkiln-cache.json"
_MAX_MANIFEST_BYTES = 64 * 1024
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_SKIP_BYTES = 1024 * 1024
_NEVER = 0


class ArchiveBroken(Exception):  # noqa: N818 - says what it is
    """This is not a readable, complete archive; the message says why."""


class ArchiveWriter:
    """Writes an archive, piece by piece, with ``write``."""

    def __init__(self, write: Callable[[bytes], object], exported_at: int, made_by: str) -> None:
        """Begin an archive; ``exported_at`` is in seconds since 1970."""
        self._write = write
        self._exported_at = exported_at
        manifest = {"format": FORMAT, "version": VERSION, "made_by": made_by}
        text = json.dumps(manifest, indent=2).encode() + b"\n"
        self._member(_MANIFEST, exported_at, [text])

    def add(self, whole: Whole, ttl_s: int) -> None:
        """Write a value with a TTL of ``ttl_s``; -1 for none."""
        expires_at = _NEVER if ttl_s < 0 else self._exported_at + ttl_s
        self._member(_name(whole.key), expires_at, [whole.value, *whole.parts])

    def close(self) -> None:
        """Write the end; without it a reader finds the archive cut off."""
        self._write(_END)

    def _member(self, name: str, date: int, content: list[bytes]) -> None:
        info = tarfile.TarInfo(name)
        info.size = sum(map(len, content))
        info.mtime = date
        info.mode = 0o644
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        for part in content:
            self._write(part)
        self._write(bytes(-info.size % _BLOCK))


@dataclass(slots=True)
class Member:
    """A value in an archive, to be read before the next one is asked for."""

    size_bytes: int
    ttl_s: int
    """The TTL that it had when it was exported; -1 for none."""
    _file: BinaryIO = field(repr=False)
    _left: int

    def read(self, size_bytes: int) -> bytes:
        """Return the next bytes, fewer where the value ends. Raises ArchiveBroken."""
        content = _exactly(self._file, min(size_bytes, self._left))
        self._left -= len(content)
        return content

    def skip(self) -> None:
        """Skip the bytes that were not read, without keeping them. Raises ArchiveBroken."""
        while self._left:
            self.read(_SKIP_BYTES)
        _exactly(self._file, -self.size_bytes % _BLOCK)


class ArchiveReader:
    """Reads an archive from an untrusted file, which may be a pipe."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the beginning. Raises ArchiveBroken."""
        self._file = file
        header = self._header()
        if header is None or header.size > _MAX_MANIFEST_BYTES:
            raise ArchiveBroken(_NOT_OURS)
        manifest = Member(header.size, 0, file, header.size)
        try:
            fields = json.loads(manifest.read(header.size))
        except (ValueError, RecursionError):
            fields = None
        if type(fields) is not dict or fields.get("format") != FORMAT:
            raise ArchiveBroken(_NOT_OURS)
        if fields.get("version") != VERSION:
            raise ArchiveBroken("it is of a version that this wasmkilnd does not know")
        manifest.skip()
        self._exported_at = int(header.mtime)

    def members(self) -> Iterator[Member]:
        """Return the values, one after the other. Raises ArchiveBroken."""
        while (header := self._header()) is not None:
            date = int(header.mtime)
            ttl_s = -1 if date == _NEVER else max(0, date - self._exported_at)
            member = Member(header.size, ttl_s, self._file, header.size)
            yield member
            member.skip()

    def _header(self) -> tarfile.TarInfo | None:
        """Return the next member's header, None at the end."""
        block = _exactly(self._file, _BLOCK)
        if block == bytes(_BLOCK):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except tarfile.HeaderError:
            raise ArchiveBroken(_NOT_OURS) from None
        if header.type != tarfile.REGTYPE or header.size < 0:
            raise ArchiveBroken(_NOT_OURS)
        return header


_NOT_OURS = "it is not what `wasmkilnd cache export` writes"


def _name(key: ValueKey) -> str:
    if key.fingerprint:
        return f"compiled/{key.module_sha256}/{key.fingerprint}"
    return f"module/{key.module_sha256}"


def _exactly(file: BinaryIO, size_bytes: int) -> bytes:
    """Read exactly ``size_bytes``: a read from a pipe may return fewer."""
    parts = []
    while size_bytes:
        part = file.read(size_bytes)
        if not part:
            raise ArchiveBroken("it is cut off")
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)
