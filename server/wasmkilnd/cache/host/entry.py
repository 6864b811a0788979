"""One entry: what its four files hold, how they are written, and how they are checked.

An entry is written aside and appears by a rename of its folder, so it is whole or not there. Each
file is opened relative to the folder's descriptor, without following a link, and is checked on
its own descriptor: nothing can be exchanged between the check and the reading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from wasmkiln.artifact import header_text
from wasmkiln.host_layout import ARTIFACT, ATTESTATION, HEAD, HEADER
from wasmkiln.v1.types_pb2 import ArtifactHeader

from wasmkilnd.cache.host.folders import admit, check_ours
from wasmkilnd.cache.host.options import BLOCK_BYTES, HostOptions, on_disk
from wasmkilnd.cache.value.format import (
    HEADER_OFFSET,
    MAX_HEADER_BYTES,
    Opened,
    Stamp,
    write_artifact_head,
)
from wasmkilnd.cache.value.names import ValueKey
from wasmkilnd.cache.value.pieces import RAW, Body, Piece, cut, decoded
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.cache.value.verify import open_value
from wasmkilnd.model import STAMP_BYTES, Artifact, CacheKey
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wire import CHUNK_BYTES, frame, payload_views

HeaderOf: TypeAlias = Callable[[Artifact], ArtifactHeader]
"""Translates an artifact into the header that the daemon sends, without what depends on a call."""

FileId: TypeAlias = "tuple[int, int, int, int] | None"
"""Device, inode, size and ctime of a file: while they are the same, so are its bytes."""
EntryId: TypeAlias = tuple[FileId, ...]

FILES = (ARTIFACT, HEADER, ATTESTATION, HEAD)

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
MAX_HEAD_BYTES = HEADER_OFFSET + MAX_HEADER_BYTES + STAMP_BYTES
"""Of the file ``head``: the head of a value, and the stamp of the header beside it."""
# As JSON for people it is indented, and holds the attestation in base64.
_MAX_HEADER_TEXT_BYTES = 4 * MAX_HEADER_BYTES

# Part of what is signed, so that no signature for another purpose passes for one of a header.
_PURPOSE = b"wasmkiln host store header\0"


@dataclass(frozen=True, slots=True)
class Content:
    """What the files of an entry hold."""

    files: dict[str, Sequence[bytes | memoryview]] = field(repr=False)

    @property
    def disk_bytes(self) -> int:
        """What the store counts for the entry."""
        sizes = (sum(map(len, chunks)) for chunks in self.files.values())
        return BLOCK_BYTES + sum(map(on_disk, sizes))


def content_of(
    artifact: Artifact, chunks: Sequence[memoryview], header_of: HeaderOf, stamp: Stamp
) -> Content:
    """Return what to write for ``artifact``, whose bytes are ``chunks`` of CHUNK_BYTES."""
    pieces = tuple(Piece(len(chunk), hashlib.sha256(chunk).hexdigest()) for chunk in chunks)
    body = Body(RAW, artifact.size_bytes, pieces)
    body.check()
    text = header_text(header_of(artifact))
    head = write_artifact_head(artifact, body, stamp)
    files: dict[str, Sequence[bytes | memoryview]] = {
        ARTIFACT: chunks,
        HEADER: [text],
        HEAD: [head, stamp(_about(head, text))],
    }
    if artifact.attestation:
        files[ATTESTATION] = [artifact.attestation]
    return Content(files)


def value_head(head: bytes) -> bytes:
    """Return the head of the stored value that the file ``head`` begins with."""
    return head[:-STAMP_BYTES]


def write_aside(path: Path, content: Content, options: HostOptions) -> EntryId:
    """Write an entry as the new folder ``path``, and its bytes to the disk. Raises OSError."""
    path.mkdir(mode=0o700)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        written = {
            name: _write_file(folder, name, chunks, options)
            for name, chunks in content.files.items()
        }
        admit(folder, options.folder_mode, options.group)
    finally:
        os.close(folder)
    return tuple(written.get(name) for name in FILES)


def entry_id(path: Path) -> EntryId | None:
    """Return the identity of the entry at ``path``; None if there is none, or no artifact in it."""
    found = [_stat(path / name) for name in FILES]
    return tuple(found) if found[0] else None


def disk_bytes_at(path: Path) -> int:
    """Return what the store counts for the entry at ``path``; 0 if there is none."""
    found = entry_id(path)
    return BLOCK_BYTES + sum(on_disk(each[2]) for each in found if each) if found else 0


class OpenEntry:
    """An entry whose folder is open. Its methods raise ValueRejected and OSError."""

    def __init__(self, folder: int, key: CacheKey, verifier: Sealer) -> None:
        """``folder`` is a descriptor, which the caller closes."""
        self._folder = folder
        self._key = key
        self._verifier = verifier
        self._head = b""

    def open_head(self) -> Opened[Artifact]:
        """Return what the entry's head says: verified as that of a value in Redis."""
        with self._open(HEAD) as (descriptor, found):
            if found.st_size > MAX_HEAD_BYTES:
                raise ValueRejected(Cause.FORMAT, "head is longer than any head can be")
            self._head = _read(descriptor, found.st_size)
        named = ValueKey(self._key.module_sha256, self._key.fingerprint)
        opened = open_value(value_head(self._head), named, self._verifier)
        if not isinstance(opened.what, Artifact):  # Not possible: the key has a fingerprint.
            raise ValueRejected(Cause.WRONG_KEY, "head is about a module")
        if opened.first:
            raise ValueRejected(Cause.FORMAT, "head is longer than its header says")
        if opened.body.codec != RAW:
            raise ValueRejected(Cause.FORMAT, "head is about an encoded artifact")
        return Opened(opened.what, opened.body, opened.first)

    def verify(self, opened: Opened[Artifact], *, keep: bool) -> tuple[Artifact, EntryId]:
        """Check all files by the head that ``open_head`` returned, every byte of them.

        Return the artifact, with frames if ``keep``, and the identity of what was checked.
        """
        artifact = opened.what
        before = self.identity()
        self._check_header()
        if artifact.attestation:
            self._compare(ATTESTATION, artifact.attestation)
        elif before[FILES.index(ATTESTATION)]:
            raise ValueRejected(Cause.FORMAT, f"{ATTESTATION} is of an unsigned artifact")
        frames = self._check_pieces(opened.body, keep=keep)
        if self.identity() != before:
            raise ValueRejected(Cause.DIGEST, "the files changed while they were being checked")
        return dataclasses.replace(artifact, frames=frames), before

    def identity(self) -> EntryId:
        """Return the identities of the files."""
        return tuple(_stat(name, self._folder) for name in FILES)

    def _check_pieces(self, body: Body, *, keep: bool) -> tuple[bytes, ...]:
        frames = []
        with self._open(ARTIFACT) as (descriptor, found):
            if found.st_size != body.size_bytes:
                cause = Cause.TRUNCATED if found.st_size < body.size_bytes else Cause.FORMAT
                raise ValueRejected(cause, f"{ARTIFACT} has {found.st_size} bytes")
            for place, piece in enumerate(body.pieces):
                [raw] = body.unpack(place, [_read(descriptor, piece.size_bytes)])
                if keep:
                    frames.append(frame(raw))
        return tuple(frames)

    def _check_header(self) -> None:
        """Check that a trusted key signed the header together with this head.

        A daemon of another version may have written it, so it is not made again to compare it.
        """
        with self._open(HEADER) as (descriptor, found):
            if found.st_size > _MAX_HEADER_TEXT_BYTES:
                raise ValueRejected(Cause.FORMAT, f"{HEADER} is longer than any header can be")
            text = _read(descriptor, found.st_size)
        message = _about(value_head(self._head), text)
        if self._verifier.check_stamp(message, self._head[-STAMP_BYTES:]):
            raise ValueRejected(Cause.DIGEST, f"{HEADER} is not what was signed with the head")

    def _compare(self, name: str, expected: bytes) -> None:
        with self._open(name) as (descriptor, found):
            if found.st_size != len(expected) or _read(descriptor, found.st_size) != expected:
                raise ValueRejected(Cause.DIGEST, f"{name} does not hold what the head says")

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[int, os.stat_result]]:
        try:
            descriptor = os.open(name, _READ, dir_fd=self._folder)
        except FileNotFoundError:
            raise ValueRejected(Cause.INCOMPLETE, f"{name} is gone") from None
        except OSError as failure:
            if stat.S_ISREG(os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_mode):
                if isinstance(failure, PermissionError):
                    raise ValueRejected(Cause.FOREIGN, f"the daemon may not read {name}") from None
                raise failure from None
            raise ValueRejected(Cause.FOREIGN, f"{name} is no regular file") from None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ValueRejected(Cause.FOREIGN, f"{name} is no regular file")
            check_ours(found, name)
            if found.st_nlink != 1:
                raise ValueRejected(Cause.FOREIGN, f"{name} has {found.st_nlink} names")
            yield descriptor, found
        finally:
            os.close(descriptor)


def _about(head: bytes, header: bytes) -> bytes:
    """Return what is signed of a header: that it belongs to this head."""
    return b"".join((_PURPOSE, hashlib.sha256(head).digest(), hashlib.sha256(header).digest()))


def _write_file(
    folder: int, name: str, chunks: Sequence[bytes | memoryview], options: HostOptions
) -> FileId:
    descriptor = os.open(name, _WRITE, 0o600, dir_fd=folder)
    try:
        for chunk in chunks:
            left = memoryview(chunk)
            while left:
                left = left[os.write(descriptor, left) :]
        admit(descriptor, options.file_mode, options.group)
        os.fdatasync(descriptor)
        return _id_of(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _read(descriptor: int, size_bytes: int) -> bytes:
    """Read ``size_bytes``; fewer at the end of the file."""
    found = os.read(descriptor, size_bytes)
    while len(found) < size_bytes and (more := os.read(descriptor, size_bytes - len(found))):
        found += more
    return found


def _stat(name: str | Path, folder: int | None = None) -> FileId:
    try:
        return _id_of(os.stat(name, dir_fd=folder, follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _id_of(found: os.stat_result) -> FileId:
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def chunks_of(artifact: Artifact) -> Sequence[memoryview]:
    """Return the bytes of ``artifact``, decoded, in pieces of CHUNK_BYTES. Raises ValueRejected."""
    views = payload_views(decoded(artifact).frames)
    if all(len(view) == CHUNK_BYTES for view in views[:-1]):
        return views
    return cut(b"".join(views))
