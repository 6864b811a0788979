"""The tier in an object store, below Redis: a bucket, or a directory that hosts share.

It keeps what Redis may lose. Below the path of ``object_store_url`` and the prefix of a namespace,
an object has the name of the key in Redis, with ``/`` for ``:`` and without braces, and the same
bytes (``cache.value``):

- ``3/compiled/<module>/<engine>/<fingerprint>`` is an artifact, ``3/module/<module>`` a module.

An object is created once, so two daemons that write one do no harm, and a reader gets it whole by
one request. A large one, sent to a bucket in parts, may take the place of an equal one that came
meanwhile. Nobody asks what is there: a look-up is a GET, and ``held`` goes by what this daemon has
seen. Ages are the business of the bucket's own rules. ``Bucket`` is what all namespaces share:
``Files`` or ``Remote``, its threads, time-outs and breaker. A large value is verified when all of
it is in memory, so one thread of each namespace reads those, and a namespace holds one at a time.

Other daemons may have other keys and another ``value_max_age_s``. So of what does not verify here:

- damaged, twice in a row, or signed by a revoked key: it is deleted;
- too old: it stays until this daemon has a new one, which replaces that very object;
- a stranger's: it stays, and is counted. Nothing is stored in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import re
import secrets
import stat
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

import structlog

from wasmkilnd.cache import shared_tier, value
from wasmkilnd.cache.shared_tier import READS_AT_ONCE, Key, SharedTier, module_of
from wasmkilnd.cache.value import Opened, ValueRejected
from wasmkilnd.errors import CannotUse, DoesNotFit, TierUnavailable
from wasmkilnd.files.threads import Jobs, Threads, finished
from wasmkilnd.model import Artifact, CacheKey, Evicted, EvictScope, Module, TierUsage
from wasmkilnd.model import RejectionCause as Cause
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.waits.budgets import Allowance, Breaker

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
# Names of objects and their sizes, a part of a listing.
Page: TypeAlias = list[tuple[str, int]]
# What tells an object from the one that takes its place.
Version: TypeAlias = "tuple[Any, ...]"

# Larger objects are sent in parts, and read one at a time.
_ONE_REQUEST_BYTES = 8 * 1024 * 1024
_LISTING_S = 30.0  # The same for a page of a listing, and for deleting what is on it.
_PAGE = 1000
_REFUSED_S = 10.0  # How long writes wait after the store has refused one.
_TOLD_S = 600.0  # How often the log tells of refusals of one kind.
_MAX_REMEMBERED, _MAX_REJECTED = 100_000, 10_000
_SEEN_S = 3600.0  # Something else may have deleted what was seen earlier.
_REJECTED_S = 600.0  # How long a bad value that stays there is not read again.
# Good for daemons with other keys, or another ``value_max_age_s``.
_STAY = frozenset({Cause.STRANGER, Cause.TOO_OLD})
_STALE_S = 3600.0  # Nobody writes one file for so long.
_ASIDE = ".new"  # Where files are until they are whole.
_PROBE = "3/nothing"

_HEX = "[0-9a-f]{64}"
_NAME = re.compile(rf"3/(?:module/({_HEX})|compiled/({_HEX})/([A-Za-z0-9.+!_-]+)/({_HEX}))")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Without waiting for the writer of a FIFO.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What a stranger who may write to the directory can put in the place of a file.
_NO_FILE = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO})
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSALS = _NO_FILE | _FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.EOPNOTSUPP}
# Not implemented, and full.
_NEVER = ("501", "507")
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist")

log = structlog.get_logger("wasmkilnd.cache")


class _NoFolder(FileNotFoundError):  # noqa: N818 - says what is there
    """Something else is in the place of a folder, such as a link: nothing is looked for there."""


class Refused(TierUnavailable):
    """The store answers, and refuses this operation. That says nothing of any other."""


class _Silent(TierUnavailable):
    """The store does not answer."""


class _Late(_Silent):
    """Nor in time, which may be so of this one request."""


class Stored:
    """An object that was found. Its end is had first, then all of it, once and in order.

    The end is the last that arrives: all before it is in memory until it is taken.
    """

    def __init__(self, size_bytes: int, version: Version, chunks: Iterator[Any]) -> None:
        self.size_bytes, self.version, self._coming = size_bytes, version, chunks
        self._held, self._missing_bytes = deque[memoryview](), size_bytes

    def end(self, size_bytes: int) -> bytes:
        """Return the last bytes, or all if there are fewer. Block; raise ValueRejected."""
        for chunk in self._coming:
            self._held.append(memoryview(chunk))
            self._missing_bytes -= len(chunk)
            if self._missing_bytes < 0:
                raise ValueRejected(Cause.FORMAT, "the value is longer than its store said")
        parts = list[memoryview]()
        for chunk in reversed(self._held):
            parts.append(chunk[max(0, len(chunk) - size_bytes) :])
            size_bytes -= len(parts[-1])
        return b"".join(reversed(parts))

    def take(self, size_bytes: int) -> Iterator[memoryview]:
        """Return the next bytes, in pieces; fewer where the object ends."""
        while size_bytes and self._held:
            chunk = self._held.popleft()
            if rest := chunk[size_bytes:]:
                self._held.appendleft(rest)
            size_bytes -= len(chunk) - len(rest)
            yield chunk[: len(chunk) - len(rest)]

    def verified(
        self,
        key: Key,
        sealer: Sealer,
        is_too_large: Callable[[Opened], bool],
        accept: frozenset[str],
    ) -> Artifact | Module | None:
        """Return the value, each frame checked as it is taken.

        Return None for one that is too large, or that is deleted meanwhile.

        Raise ValueRejected.
        """
        try:
            head_bytes = value.head_bytes(self.end(value.TRAILER_BYTES))
            opened = value.open_value(self.end(head_bytes), key, sealer, accept)
            frames = list[bytes]()
            if opened.stored_bytes != self.size_bytes:
                raise ValueRejected(Cause.FORMAT, "the value's length is not what its head says")
            if is_too_large(opened):
                return None
            for index, one in enumerate(opened.frames):
                stored = b"".join(self.take(one.stored_bytes))
                frames.append(opened.ready(index, stored))
            return value.with_frames(opened, frames)
        except FileNotFoundError:
            return None
        finally:
            self._held.clear()  # Its bytes do not count any more.


class Files:
    """Objects as plain files of a directory, which has to be there: a mount may be missing.

    A file appears whole, by link(2), which replaces nothing. Below the directory no symbolic link
    is followed. Methods block, and raise OSError.
    """

    errors = (OSError,)

    def __init__(self, root: str) -> None:
        self._root = root

    def get(self, name: str) -> Stored | None:
        """Return an object; None if there is none. Raise ValueRejected if it is no plain file."""
        *above, last = name.split("/")
        try:
            with self._folder(above) as folder:
                chunks = _chunks(os.open(last, _READ, dir_fd=folder))
            found = next(chunks)
        except _NoFolder:
            raise _no_file() from None
        except FileNotFoundError:
            return None
        except OSError as failure:
            raise (_no_file() if failure.errno in _NO_FILE else failure) from None
        if not stat.S_ISREG(found.st_mode):
            raise _no_file()
        return Stored(found.st_size, _version_of(found), chunks)

    def put(self, name: str, chunks: Iterable[bytes], size_bytes: int, over: Version = ()) -> bool:
        """Write an object in the place of ``over``, or of nothing; return whether it did.

        So many bytes are in it before they are packed.
        """
        if self.look(name)[1] != over:
            return False
        *above, last = name.split("/")
        for _ in range(5):
            # Who evicts may remove the folder meanwhile: then make it again. Where there is
            # something else in its place, that harms this object and no other.
            with (
                contextlib.suppress(FileNotFoundError),
                self._folder((above[0], _ASIDE), make=True) as asides,
                self._folder(above, make=True) as folder,
            ):
                return _create(asides, folder, last, chunks, over)
        raise TierUnavailable("the object's folder is no folder, or removed again and again")

    def look(self, name: str) -> tuple[int | None, Version]:
        """Return size and version of an object; None and nothing if there is none."""
        *above, last = name.split("/")
        with contextlib.suppress(FileNotFoundError), self._folder(above) as folder:
            found = os.stat(last, dir_fd=folder, follow_symlinks=False)
            return found.st_size, _version_of(found)
        return None, ()

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, of which some may not be there, and folders that are empty then.

        Raise PermissionError after all the others are deleted.
        """
        refused = list[PermissionError]()
        for name in names:
            *above, last = name.split("/")
            absent = FileNotFoundError, NotADirectoryError
            with _noted(refused, PermissionError), contextlib.suppress(*absent):
                with self._folder(above) as folder:
                    _remove(folder, last)
                while above[-3:-2] == ["compiled"] or above[-2:-1] == ["compiled"]:
                    *above, last = above
                    with self._folder(above) as folder, contextlib.suppress(OSError):
                        os.rmdir(last, dir_fd=folder)
        for refusal in refused:
            raise refusal

    def pages(self, prefix: str) -> Iterator[Page]:
        """Return all objects below ``prefix``. Raise PermissionError after all the others."""
        page, refused = Page(), list[PermissionError]()
        with contextlib.suppress(FileNotFoundError), self._folder(prefix.split("/")) as folder:
            for name, size_bytes in _walk(folder, refused):
                page.append((f"{prefix}/{name}", size_bytes))
                if len(page) == _PAGE:
                    yield page
                    page = []
        yield page
        for refusal in refused:
            raise refusal

    @contextlib.contextmanager
    def _folder(self, parts: Iterable[str], *, make: bool = False) -> Iterator[int]:
        try:
            folder = os.open(self._root, _FOLDER)
        except (FileNotFoundError, NotADirectoryError):
            raise OSError(errno.ENODEV, "there is no such directory") from None
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o770, dir_fd=folder)
                try:
                    below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                except OSError as failure:
                    raise _NoFolder if failure.errno in _NO_FILE else failure from None
                above, folder = folder, below
                os.close(above)
            yield folder
        except OSError as failure:
            raise _absent(failure) from None
        finally:
            os.close(folder)

    def why(self, failure: Exception) -> tuple[str, bool]:
        """Return what is wrong, and whether the store refuses, or does not answer."""
        reason = getattr(failure, "strerror", None) or repr(failure)
        refuses = getattr(failure, "errno", None) in _REFUSALS
        return f"the object store in {self._root}: {reason}", refuses


def _chunks(descriptor: int) -> Iterator[Any]:
    """Return what a file is, then its bytes; close it when nobody takes any more."""
    try:
        yield os.fstat(descriptor)
        while chunk := os.read(descriptor, value.FRAME_BYTES):
            yield chunk
    except OSError as failure:
        raise _absent(failure) from None
    finally:
        os.close(descriptor)


def _absent(failure: OSError) -> OSError:
    """Return ``failure``; that nothing is there for one of NFS, where another host deleted it."""
    return FileNotFoundError(failure.strerror) if failure.errno == errno.ESTALE else failure


def _no_file() -> ValueRejected:
    return ValueRejected(Cause.FORMAT, "it is no plain file")


def _version_of(found: os.stat_result) -> Version:
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _create(asides: int, folder: int, name: str, chunks: Iterable[bytes], over: Version) -> bool:
    """Write a file aside, and give it its name if that is still ``over``'s, or nobody's.

    Return whether it was. Delete what writers left there that were killed.
    """
    with os.scandir(asides) as left:
        for each in left:
            with contextlib.suppress(OSError):  # Another daemon does the same.
                if each.stat(follow_symlinks=False).st_mtime < time.time() - _STALE_S:
                    os.unlink(each.name, dir_fd=asides)
    aside = secrets.token_hex(8)
    descriptor = os.open(aside, _WRITE, 0o640, dir_fd=asides)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(descriptor)
        if not over:
            os.link(aside, name, src_dir_fd=asides, dst_dir_fd=folder, follow_symlinks=False)
        elif _version_of(os.stat(name, dir_fd=folder, follow_symlinks=False)) == over:
            os.rename(aside, name, src_dir_fd=asides, dst_dir_fd=folder)
        else:
            return False
        os.fsync(folder)
    except FileExistsError:
        return False
    except FileNotFoundError:  # The chunks are gone, too: do not write the rest for the whole.
        raise TierUnavailable("the object was removed while it was written") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside, dir_fd=asides)
    return True


def _remove(folder: int, name: str) -> None:
    """Remove a file. A directory in its place gets another name, with all that is in it."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        os.rename(name, f".{secrets.token_hex(8)}", src_dir_fd=folder, dst_dir_fd=folder)


def _walk(
    folder: int, refused: list[PermissionError], levels: int = 2
) -> Iterator[tuple[str, int]]:
    """Return all files below a folder. Folders that are gone by then have none.

    Nor have those that nobody here may read, which are noted as ``refused``, and those below as
    many ``levels`` as names have: a stranger's may have no end.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            with _noted(refused, PermissionError), contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    if not levels:
                        continue
                    below = os.open(entry.name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                    try:
                        for name, size_bytes in _walk(below, refused, levels - 1):
                            yield f"{entry.name}/{name}", size_bytes
                    finally:
                        os.close(below)
                    continue
                yield entry.name, entry.stat(follow_symlinks=False).st_size


@contextlib.contextmanager
def _noted(failures: list[E], kind: type[E]) -> Iterator[None]:
    """Go on after a failure of this kind, which is added to ``failures``."""
    try:
        yield
    except kind as failure:
        failures.append(failure)


class Remote:
    """Objects in a bucket. Methods block, and raise what obstore raises.

    Its asynchronous calls can abort the interpreter at its end: so all are synchronous.
    """

    def __init__(self, url: str, timeout_s: float, largest_bytes: int) -> None:
        """``timeout_s`` bounds a silence while a request is read.

        Raise CannotUse.
        """
        import obstore  # It takes time, and most daemons have no bucket.
        from obstore import exceptions, store

        self._obstore, self._kinds = obstore, exceptions
        self.errors = (exceptions.BaseError, OSError, ValueError)
        plain = any(
            os.environ.get(f"{each}_ALLOW_HTTP", "").lower() in ("true", "1")
            for each in ("AWS", "GOOGLE", "AZURE")
        )

        def options(longest_s: float, **more: Any) -> Any:
            return {"timeout": timedelta(seconds=longest_s), "allow_http": plain, **more}

        # A request that nobody answers holds a thread until it ends, and a write its place in the
        # queue: no request writes more than ``_ONE_REQUEST_BYTES``. A time-out of silence would
        # also end what takes long to send.
        read_s = timeout_s + _LISTING_S + largest_bytes / shared_tier.READ_BYTES_PER_S
        written_s = timeout_s + _ONE_REQUEST_BYTES / shared_tier.WRITTEN_BYTES_PER_S
        clients = (
            options(read_s, read_timeout=timedelta(seconds=timeout_s)),
            options(written_s),
            options(timeout_s + _LISTING_S),
        )
        try:
            # Retries are ours: the breaker's, and those of writes.
            self._reading, self._writing, self._listing = (
                store.from_url(url, client_options=each, retry_config={"max_retries": 0})
                for each in clients
            )
        except (exceptions.BaseError, ValueError) as failure:
            why = str(failure).partition("\n")[0]
            raise CannotUse(f"cannot use object_store_url: {why}") from None

    def get(self, name: str) -> Stored | None:
        """Return an object as ``Files.get``."""
        with self._absent():
            found = self._obstore.get(self._reading, name)
            meta, chunks = found.meta, iter(found.stream(min_chunk_size=value.FRAME_BYTES))
            return Stored(meta["size"], _version_in(meta), chunks)
        return None

    def put(self, name: str, chunks: Iterable[bytes], size_bytes: int, over: Version = ()) -> bool:
        """Write an object as ``Files.put``."""
        try:
            if size_bytes > _ONE_REQUEST_BYTES:
                # A policy without ListBucket refuses to say that nothing is there.
                with contextlib.suppress(self._kinds.PermissionDeniedError):
                    if self.look(name)[1] != over:
                        return False
                # In parts of 5 MiB. Another daemon that does the same now writes an equal value.
                self._obstore.put(
                    self._writing, name, chunks, use_multipart=True, max_concurrency=1
                )
            else:
                data = b"".join(chunks)
                mode: Any = dict(over) or "create"
                self._obstore.put(self._writing, name, data, mode=mode, use_multipart=False)
        except (self._kinds.AlreadyExistsError, self._kinds.PreconditionError):
            return False
        except self._kinds.GenericError as failure:
            if (status := _status(failure)) == "409":  # Another daemon writes it now.
                return False
            if status == "413" or "<Code>EntityTooLarge</Code>" in str(failure):
                raise DoesNotFit("the object store takes no object of its size") from None
            raise
        return True

    def look(self, name: str) -> tuple[int | None, Version]:
        """Return size and version as ``Files.look``."""
        with self._absent():
            found = self._obstore.head(self._reading, name)
            return found["size"], _version_in(found)
        return None, ()

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, of which some may not be there."""
        try:
            self._obstore.delete(self._listing, names)
        except FileNotFoundError:  # Not all stores tell it apart; some stop there.
            for name in names:
                with self._absent():
                    self._obstore.delete(self._listing, name)

    def pages(self, prefix: str) -> Iterator[Page]:
        """Return all objects below ``prefix``."""
        for page in self._obstore.list(self._listing, prefix=prefix, chunk_size=_PAGE):
            yield [(each["path"], each["size"]) for each in page]

    @contextlib.contextmanager
    def _absent(self) -> Iterator[None]:
        """Pass over that an object is not there, but not that the bucket is not."""
        try:
            yield
        except FileNotFoundError as failure:
            if _NO_BUCKET.search(str(failure)):
                raise

    def why(self, failure: Exception) -> tuple[str, bool]:
        """Return what is wrong, and whether the store refuses, or does not answer.

        The error's own text holds the whole request: take what is known to be no secret.
        """
        text, errors = str(failure), self._kinds
        code = re.search(r"<Code>(\w{1,64})</Code>", text)
        told = f" ({code[1]})" if code else ""
        if status := _status(failure):
            passes = status in ("408", "429") or (status[0] == "5" and status not in _NEVER)
            return f"the object store answers {status}{told}", not passes
        kinds = (errors.PermissionDeniedError, errors.UnauthenticatedError, FileNotFoundError)
        if isinstance(failure, (*kinds, errors.NotSupportedError, errors.InvalidPathError)):
            return f"the object store refuses: {type(failure).__name__}{told}", True
        if "BadScheme" in text:
            return "the object store has no TLS: permit it with AWS_ALLOW_HTTP=true", True
        host = re.search(r"https?://(?:[^/\s@]*@)?([\w.:\[\]-]+)", text)
        where = f" at {host[1]}" if host else ""
        late = " in time" if re.search(r"\bkind: Timeout", text) else ""
        return f"the object store{where} does not answer{late}", False


def _version_in(meta: Any) -> Version:
    """Return what a bucket says of an object, and takes back as a condition."""
    return tuple((each, meta[each]) for each in ("e_tag", "version") if meta[each])


def _status(failure: Exception) -> str:
    found = re.search(r"status code: (\d{3})", str(failure))
    return found[1] if found else ""


class Bucket(Breaker):
    """The way to the store, for all namespaces. For one event loop."""

    tier = "object_store"

    def __init__(self, url: str, *, timeout_s: float, largest_bytes: int) -> None:
        """Make ready, which may take a second. Raise CannotUse."""
        super().__init__(timeout_s=timeout_s)
        self.url, path = url, urlsplit(url)
        is_here = path.scheme == "file"
        self.store = Files(unquote(path.path)) if is_here else Remote(url, timeout_s, largest_bytes)
        self._readers = Threads(READS_AT_ONCE, "wasmkiln-object-read")
        self._writers = Threads(4, "wasmkiln-object-write")
        # By namespace.
        self._large = defaultdict[str, Threads](partial(Threads, 1, "wasmkiln-object-large"))
        # Why the store refuses reads, writes, deletions and listings, and when the log told it.
        self._refusals, self._told_s = dict[str, str](), dict[str, float]()
        self._writes_again_s = 0.0
        self._jobs = Jobs()

    @property
    def refusal(self) -> str:
        """What the store, which answers, refuses; empty if nothing."""
        return "; ".join(f"refuses {kind}: {why}" for kind, why in self._refusals.items())

    @property
    def is_down(self) -> bool:
        """Whether writes wait: while no call goes through, or writes were just refused."""
        return super().is_down or time.monotonic() < self._writes_again_s

    async def ready(self) -> None:
        """Return when writes go through."""
        while self.is_down:
            await super().ready()
            await asyncio.sleep(self._writes_again_s - time.monotonic())

    @property
    def description(self) -> str:
        """Where the store is, and whether it answers."""
        return f"objects in {self.url}{'' if self.up else ', which does not answer yet'}"

    async def start(self) -> None:
        """Wait until it is known whether the store answers."""
        with contextlib.suppress(TierUnavailable):
            await self.run(partial(self.store.look, _PROBE))

    async def run(
        self,
        work: Callable[[], T],
        *,
        kind: str = "reads",
        more: Allowance | None = None,
        large_of: str | None = None,
    ) -> T:
        """Return what ``work`` returns in a thread, within the time-out and ``more``.

        It is the one that reads large values of a namespace if that is given.

        Its ``kind`` is also ``writes``, ``deletions`` or ``listings``. Each is asked of the store
        though it refused another one: a refusal may be about one object. A write that is late, or
        fails, is no outage while reads are answered.
        Raise TierUnavailable, Refused by the store, and ValueRejected if ``work`` does.
        """
        self.check()
        threads = self._readers if large_of is None else self._large[large_of]
        if is_write := kind in ("writes", "deletions"):
            threads = self._writers
        try:
            found = await self._wait(work, threads, more)
        except Refused as refusal:
            self.answered(done=False)
            self._note_refusal(kind, str(refusal))
            raise
        except _Silent as outage:
            is_late = isinstance(outage, _Late)
            if not (is_write and is_late):
                self.failed(str(outage), late=is_write or is_late)
            raise
        self.answered()
        self._refusals.pop(kind, None)
        return found

    async def probe(self) -> None:
        """Ask the store anything."""
        with contextlib.suppress(Refused):
            await self._wait(partial(self.store.look, _PROBE), self._readers)

    async def missing_rights(self, prefix: str, *, reads: bool, writes: bool) -> str:
        """Write, read and delete an object that nobody looks for; return what does not work."""
        name = f"{prefix}3/compiled/{'0' * 64}/probe/{secrets.token_hex(32)}"
        steps: list[tuple[str, bool, Callable[[], object]]] = [
            ("write", writes, partial(self.store.put, name, [b"probe"], 5)),
            ("read", reads, partial(self.store.get, name)),
            ("delete", writes, partial(self.store.delete, [name])),
        ]
        missing = list[str]()
        for what, _, work in (step for step in steps if step[1]):
            try:
                await self._wait(work, self._writers)
            except (TierUnavailable, ValueRejected) as failure:
                missing.append(f"cannot {what} an object: {failure}")
        return "; ".join(missing)

    async def close(self) -> None:
        """Ask no more; give calls under way a moment to end."""
        await self.stop()
        await self._jobs.end()

    async def _wait(
        self, work: Callable[[], T], threads: Threads, more: Allowance | None = None
    ) -> T:
        """Wait for ``work`` in a thread, which goes on if it takes too long.

        The wait for a thread has a time-out of its own, which says nothing of the store. Raise
        TierUnavailable: Refused or _Silent if the store is to blame.
        """
        more, began_s = more or Allowance(), [time.monotonic()]

        def begin() -> T:
            began_s.append(time.monotonic())
            return work()

        job = self._jobs.add(threads.submit(begin))
        try:
            while not await finished(job, lambda: began_s[-1] + self.timeout_s + more.seconds):
                if job.cancel():
                    raise TierUnavailable("all threads of this daemon wait for the object store")
                if len(began_s) > 1:
                    raise _Late(f"the object store does not answer within {self.timeout_s:g} s")
                await asyncio.sleep(0)  # It begins at this moment.
            try:
                return job.result()
            except (ValueRejected, TierUnavailable):
                self.answered()
                raise
            except Exception as failure:
                if not isinstance(failure, self.store.errors):
                    log.exception("a defect: cannot use the object store")
                    raise TierUnavailable("cannot use the object store: a defect") from failure
                why, refuses = self.store.why(failure)
                raise (Refused if refuses else _Silent)(why) from None
        finally:
            del job  # A failed job holds its traceback, which holds this frame.

    def _note_refusal(self, kind: str, why: str) -> None:
        """Remember a refusal until one of its kind succeeds; reads may do so in turns."""
        now_s = time.monotonic()
        self._refusals[kind] = why
        if kind == "writes":
            self._writes_again_s = now_s + _REFUSED_S
        if now_s - self._told_s.get(kind, -_TOLD_S) >= _TOLD_S:
            self._told_s[kind] = now_s
            log.warning(f"tier refuses {kind}", tier=self.tier, detail=why)


@dataclass(eq=False)
class ObjectStore(SharedTier[Bucket]):
    """Artifacts and modules of one namespace in the object store."""

    name = "object_store"

    def __post_init__(self) -> None:
        super().__post_init__()
        # What this daemon read or wrote, and when.
        self._seen = dict[Key, float]()
        # What is bad and there, and until when it is not read again.
        self._rejected = dict[Key, tuple[Cause, Version, float]]()
        # What is being evicted: nothing of it is read.
        self._going = list[EvictScope]()

    @property
    def refusal(self) -> str:
        """What the store, which answers, refuses; empty if nothing."""
        return self.link.refusal

    @property
    def strangers(self) -> int:
        """How many values that strangers signed this daemon has met there."""
        return sum(cause is Cause.STRANGER for cause, *_ in self._rejected.values())

    def usage(self) -> TierUsage:
        """Return zeros: nobody counts the objects."""
        return TierUsage()

    async def _put(self, what: Artifact | Module) -> None:
        """Store a value, unless one is there, or was within the last hour; replace an old one."""
        if self._saw(what.key):
            return
        cause, version, _ = self._rejected.get(what.key, (None, (), 0.0))
        over = version if cause is Cause.TOO_OLD else ()
        chunks = value.written(what, self._sealer)
        # Else what is there may be the bad one.
        if await self.store(what.key, chunks, what.size_bytes, over) or not cause:
            self._rejected.pop(what.key, None)
            self._see(what.key)

    async def store(
        self, key: Key, chunks: Iterable[bytes], size_bytes: int, over: Version = ()
    ) -> bool:
        """Store a value's bytes in the place of ``over``, or of nothing; return whether it did."""
        work = partial(self.link.store.put, self.name_of(key), chunks, size_bytes, over)
        return await self.link.run(work, kind="writes", more=Allowance(math.inf))

    async def held(self, keys: Sequence[CacheKey]) -> frozenset[CacheKey]:
        """Return which of ``keys`` this daemon has seen there within the last hour."""
        return frozenset(filter(self._saw, keys))

    async def evict(self, scope: EvictScope) -> Evicted:
        """Delete what is in ``scope`` and not pinned, a listing's page at a time.

        Nothing of it is read meanwhile.
        """
        self.check_writes()
        module_sha256, engine_id, gone = scope.module_sha256, scope.engine_id, Evicted()
        refused = list[Refused]()
        self._going.append(scope)
        try:
            self._forget_all(scope)
            with _noted(refused, Refused):
                if module_sha256 and (size_bytes := await self.size(module_sha256)) is not None:
                    gone += await self.delete([(module_sha256, size_bytes)], scope)
            for kind in ("compiled",) if module_sha256 or engine_id else ("compiled", "module"):
                with _noted(refused, Refused):
                    async for page in self.pages(kind, module_sha256):
                        meant = [each for each in page if _is_in(scope, each[0])]
                        with _noted(refused, Refused):
                            gone += await self.delete(meant, scope)
            for refusal in refused:
                raise refusal
            return gone
        finally:
            self._forget_all(scope)  # What was written meanwhile may be gone.
            self._going.remove(scope)

    async def remove(self, key: Key) -> None:
        """Delete a value."""
        self._seen.pop(key, None)
        delete = partial(self.link.store.delete, [self.name_of(key)])
        await self.link.run(delete, kind="deletions")
        self._rejected.pop(key, None)

    async def pages(self, kind: str, beginning: str = "") -> AsyncIterator[list[tuple[Key, int]]]:
        """Return keys and sizes of all values of a ``kind``, or of those of one module."""
        is_whole = kind == "compiled" and len(beginning) == 64
        prefix = f"{self.prefix}3/{kind}" + (f"/{beginning}" if is_whole else "")
        listing, start = self.link.store.pages(prefix), len(self.prefix)
        step, more = partial(next, listing, None), Allowance(_LISTING_S)
        while (page := await self.link.run(step, kind="listings", more=more)) is not None:
            found = ((_NAME.fullmatch(name, start), size_bytes) for name, size_bytes in page)
            keys = ((_key(*name.groups("")), size_bytes) for name, size_bytes in found if name)
            yield [each for each in keys if module_of(each[0]).startswith(beginning)]

    def name_of(self, key: Key) -> str:
        """Return the name of an artifact, whose engine must be known, or of a module."""
        if isinstance(key, str):
            return f"{self.prefix}3/module/{key}"
        return f"{self.prefix}3/compiled/{key.module_sha256}/{key.engine_id}/{key.fingerprint}"

    async def size(self, key: Key) -> int | None:
        """Return the size of a stored value; None if there is none."""
        return (await self.link.run(partial(self.link.store.look, self.name_of(key))))[0]

    async def whole(self, key: Key, limit_bytes: int) -> bytes | None:
        """Return the bytes of a stored value, unverified. Raise ValueRejected."""
        stored = await self.link.run(partial(self.link.store.get, self.name_of(key)))
        if stored is None:
            return None
        if stored.size_bytes > limit_bytes:  # Daemons with a higher limit use it.
            raise ValueRejected(Cause.VERSION, "it is above max_artifact_bytes")
        more = Allowance(stored.size_bytes / shared_tier.READ_BYTES_PER_S)
        return await self.link.run(partial(stored.end, stored.size_bytes), more=more)

    async def delete(self, page: Sequence[tuple[Key, int]], scope: EvictScope) -> Evicted:
        """Delete values whose sizes are given, but for what ``scope`` leaves."""
        go = [each for each in page if not scope.leaves(module_of(each[0]))]
        if go:
            names = [self.name_of(key) for key, _ in go]
            delete = partial(self.link.store.delete, names)
            await self.link.run(delete, kind="deletions", more=Allowance(_LISTING_S))
        artifacts = sum(isinstance(key, CacheKey) for key, _ in go)
        sizes = sum(size_bytes for _, size_bytes in go)
        return Evicted(artifacts, len(go) - artifacts, sizes, pinned=len(page) - len(go))

    async def _find(self, key: Key) -> list[Version] | None:
        """Return a list for the version that ``_open`` meets; None to look for nothing."""
        *_, until_s = self._rejected.get(key, (0.0,))
        is_named = isinstance(key, str) or key.engine_id
        is_wanted = is_named and not self.is_going(key) and time.monotonic() >= until_s
        return [()] if is_wanted else None

    async def _open(
        self, key: Key, met: list[Version], allowance: Allowance
    ) -> Artifact | Module | None:
        """Read a value, and verify it in the same thread; note the version of what is there."""
        name, moving, store = self.name_of(key), Allowance(), self.link.store
        limit_bytes = (self.module_bytes if isinstance(key, str) else self.artifact_bytes)()
        verify = partial(
            Stored.verified,
            key=key,
            sealer=self._sealer,
            is_too_large=partial(self._is_too_large, name=name),
            accept=allowance.accept,
        )

        def begin() -> Stored | Artifact | Module | None:
            if (stored := store.get(name)) is None:
                return None
            met.append(stored.version)
            if stored.size_bytes > value.most_stored_bytes(limit_bytes):
                log.info("stored value is larger than the limit", key=name)
                return None
            moving.seconds = stored.size_bytes / shared_tier.READ_BYTES_PER_S
            allowance.seconds += moving.seconds
            return stored if stored.size_bytes > _ONE_REQUEST_BYTES else verify(stored)

        found = await self.link.run(begin, more=moving)
        if isinstance(found, Stored):
            found = await self.link.run(partial(verify, found), more=moving, large_of=self.prefix)
        self._forget(key)
        if found is None or self.is_going(key):
            return None
        self._see(key)
        return found

    async def _discard(self, key: Key, met: list[Version], rejected: ValueRejected) -> None:
        """Delete a bad value, or let it stay, and do not read it for some minutes.

        If another daemon has replaced it meanwhile, a good one goes, which costs a compile.
        """
        self._count_rejected(self.name_of(key), rejected)
        self._forget(key)
        if len(self._rejected) >= _MAX_REJECTED:
            del self._rejected[next(iter(self._rejected))]
        self._rejected[key] = rejected.cause, met[-1], time.monotonic() + _REJECTED_S
        if self.writes and rejected.cause not in _STAY:
            with contextlib.suppress(TierUnavailable):
                await self.remove(key)

    def is_going(self, key: Key) -> bool:
        """Return whether ``key`` is being evicted."""
        return any(_is_in(scope, key) and not scope.leaves(module_of(key)) for scope in self._going)

    def _forget_all(self, scope: EvictScope) -> None:
        for key in [each for each in (*self._seen, *self._rejected) if _is_in(scope, each)]:
            self._forget(key)

    def _forget(self, key: Key) -> None:
        self._seen.pop(key, None)
        self._rejected.pop(key, None)

    def _saw(self, key: Key) -> bool:
        """Return whether this daemon knows that it is there, and nothing will have deleted it."""
        return time.monotonic() < self._seen.get(key, -_SEEN_S) + _SEEN_S

    def _see(self, key: Key) -> None:
        """Remember that it is there; forget what was seen first where there is too much."""
        self._seen.pop(key, None)
        if len(self._seen) >= _MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = time.monotonic()


def prefix_of(prefix: str) -> str:
    """Return what names begin with for a ``prefix`` of keys in Redis."""
    steps = (step for step in re.split("[:/]", prefix) if step.strip("."))
    return "".join(f"{step}/" for step in steps)


def _key(module: str, of: str, engine_id: str, fingerprint: str) -> Key:
    """Return the key of a name, given the groups of ``_NAME``."""
    return module or CacheKey(of, fingerprint, engine_id)


def _is_in(scope: EvictScope, key: Key) -> bool:
    """Return whether ``scope`` means ``key``, pinned or not."""
    if scope.engine_id:
        return isinstance(key, CacheKey) and key.engine_id == scope.engine_id
    return scope.module_sha256 in ("", module_of(key))
