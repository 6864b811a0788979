"""``wasmkilnd cache``: list, remove, verify and move the values of Redis and the host store.

Each command finds the cache as ``serve`` does, by the same settings, and runs the embedded server
if no daemon does. All work beside running daemons. Values are taken as they are stored: nothing is
signed or packed again, and a value is read in ranges, never held whole.

An archive is a line with its version; then, for each value, its length, its seconds to live (0 for
ever) and its bytes as Redis has them (``cache.value``); then a length of 0. A reader trusts nothing
in it: a value is verified whole before any of it is stored. Raise ``_VERSION`` with the layout or
with ``CACHE_FORMAT``.

What ``--json`` prints is a public interface: add fields, never rename or remove one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NoReturn, TypeAlias, TypeVar, cast

import click
from wasmkiln.attestation import peek
from wasmkiln.cli.text import elapsed, one_line, size

from wasmkilnd.cache import host_store
from wasmkilnd.cache import value as values
from wasmkilnd.cache.embedded import EmbeddedServer, EmbeddedUnavailable, server_folder
from wasmkilnd.cache.redis_link import RedisLink
from wasmkilnd.cache.redis_servers import NO_ACCESS, NO_ANSWER, AccessUnusable, connect
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.cache.value import Opened, ValueRejected
from wasmkilnd.commands.as_owner import act_as_owner, settings_of
from wasmkilnd.config.flags import Decorator, some_options
from wasmkilnd.config.schema import Settings
from wasmkilnd.config.values.quantity import parse_bytes, parse_seconds
from wasmkilnd.config.values.types import NO_DIRECTORY
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import NAMESPACE_NAME, Artifact, CacheKey, Evicted, EvictScope, Module, Refusal
from wasmkilnd.model import RejectionCause as Cause
from wasmkilnd.options import host_options, redis_access
from wasmkilnd.pins import pinned_in
from wasmkilnd.ports import Recorder
from wasmkilnd.redis_address import BadRedisUrl, RedisAddress
from wasmkilnd.signing.keys import read_keys
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.logs import pipeline

T = TypeVar("T")
Key: TypeAlias = "CacheKey | str"
"""An artifact's key, or a module's digest."""
Row: TypeAlias = "dict[str, Any]"
"""What ``ls --json`` prints of a value."""
Tell: TypeAlias = "Callable[[bytes, str, str, bool], None]"
"""Called with the name of a bad value, the cause, why, and whether it was deleted."""

_RANGE_BYTES = 1024 * 1024
_HEAD_BYTES = 8192  # Enough for the head of nearly every artifact.
_BATCH = 128
_AT_ONCE = 4  # Values that are verified at once: enough to hide the latency of the server.
_SPOOL_BYTES = 8 * 1024 * 1024  # A larger value goes to a temporary file on its way.
_TIMEOUT_S = 10.0  # Longer than in a daemon: no caller waits for the reply.
_LOADING_S = 60.0  # The embedded server listens before it has loaded its data.
_YEARS_S = 10 * 366 * 86400
_MAX_REPORTED = 20  # Values that are reported one by one: an archive may hold any number.

_ARCHIVE, _VERSION = b"wasmkiln cache archive ", b"2\n"
_TAR_OF_0_6 = b"wasmkiln-cache.json\0"
_RECORD = struct.Struct(">QI")


class CacheCommandFailed(Exception):  # noqa: N818 - says what happened
    """The command failed; the message says why and what to do."""


class BadValuesFound(Exception):  # noqa: N818 - an answer
    """The command succeeded and found bad values; the message says how many."""


# ---- Options


def _by(parse: Callable[[str], T], expected: str = "") -> Callable[..., T]:
    def read(context: click.Context, parameter: click.Parameter, value: str) -> T:
        try:
            return parse(value)
        except ValueError as error:
            raise click.BadParameter(expected or str(error)) from None

    return read


def _matched(shape: re.Pattern[str], value: str) -> str:
    if value and not shape.fullmatch(value):
        raise ValueError
    return value


_HELP = {"help_option_names": ["-h", "--help"]}
_BEGINNING = functools.partial(_matched, re.compile(r"[0-9a-f]{4,64}"))
_NAMESPACE = functools.partial(_matched, NAMESPACE_NAME)
_engine = click.option(
    *("--engine", "engine"),
    default="",
    metavar="ENGINE",
    help="Only artifacts of an engine: wasmtime-50.0.1, or wasmtime for all versions.",
)
_module = click.option(
    *("--module", "module"),
    default="",
    callback=_by(_BEGINNING, "expected 4 to 64 lowercase hexadecimal digits"),
    metavar="SHA256",
    help="Only this module and its artifacts; the first digits of the digest are enough.",
)
_tier = click.option(
    *("--tier", "on_host"),
    type=click.Choice(["redis", "host_store"]),
    default="redis",
    show_default=True,
    callback=lambda context, parameter, value: value == "host_store",
    help="The cache that daemons share in Redis, or the host store of this machine.",
)
_rate = click.option(
    *("--rate", "bytes_per_s"),
    default="0",
    callback=_by(parse_bytes),
    metavar="SIZE",
    help="Bytes a second to move at most, such as 20MiB, so that others who use the server are"
    " not disturbed.  [default: no limit]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a command finds the cache."""

    settings: Settings
    namespace: str


def _place(*more: str) -> Decorator:
    """Add the flags that locate the cache, and those of ``more``; the command gets ``place``."""
    names = ("state_dir", "keys_dir", "trusted_keys", "embedded_redis_bytes", "cache_ttl_s", *more)
    flags = some_options(lambda n: n in names or n.startswith(("redis_", "host_store_")))

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def placed(*args: Any, namespace: str, **given: Any) -> Any:
            # Acts as the owner of the state directory before it opens a file.
            settings = settings_of(given.pop("flags"), given.pop("config"))
            return command(*args, place=_Place(settings, namespace), **given)

        return click.option(
            "--namespace",
            default="",
            callback=_by(_NAMESPACE, "expected 1 to 63 lowercase letters, digits or hyphens"),
            metavar="NAME",
            help="The namespace whose values it is about.  [default: the default namespace]",
        )(flags(placed))

    return decorate


@click.group(context_settings=_HELP)
def cache() -> None:
    """List, remove, verify and move the values of the cache that daemons share in Redis.

    Each command finds the cache as `serve` does, by the same flags, variables and file. With the
    embedded server, each works whether a daemon runs or not.
    """


# ---- Open a tier


@dataclass(slots=True)
class _Tier:
    """What a namespace has in Redis, open."""

    settings: Settings
    sealer: Sealer
    store: RedisStore
    pinned: set[str]
    """Modules whose values shall not expire when they are stored."""
    bytes_per_s: int
    """How much may be moved; 0 for no limit."""
    moved_bytes: int = 0
    _due_s: float = 0.0

    async def moved(self, size_bytes: int) -> None:
        """Wait for as long as moving ``size_bytes`` should take."""
        self.moved_bytes += size_bytes
        if self.bytes_per_s:
            now_s = time.monotonic()
            self._due_s = max(self._due_s, now_s) + size_bytes / self.bytes_per_s
            await asyncio.sleep(self._due_s - now_s)

    async def chosen(self, engine: str = "", module: str = "") -> AsyncIterator[list[Key]]:
        """Return the keys of chosen values, modules first, in batches, each once."""
        seen: set[bytes] = set()
        async for page in self.store.pages(module):
            named = {self.store.name_of(key): key for key in page if _is_of(key, engine)}
            new = [key for name, key in named.items() if name not in seen]
            seen.update(named)
            for some in _batches(new, _BATCH):
                yield some


def _is_of(key: Key, engine: str) -> bool:
    return not engine or (isinstance(key, CacheKey) and _is_engine(key.engine_id, engine))


def _is_engine(engine_id: str, engine: str) -> bool:
    return not engine or engine in (engine_id, engine_id.rpartition("-")[0])


def _module_of(key: Key) -> str:
    return key if isinstance(key, str) else key.module_sha256


def _batches(items: Sequence[T], most: int) -> Iterator[list[T]]:
    return (list(items[start : start + most]) for start in range(0, len(items), most))


def _run(
    place: _Place,
    work: Callable[[_Tier], Awaitable[T]],
    *,
    bytes_per_s: int = 0,
    ttl_s: int = 0,
    make: bool = False,
    verifies: bool = False,
) -> T:
    """Run ``work`` on the tier that a daemon of these settings uses; return its result.

    What is stored lives for ``ttl_s``, not for what settings say. With ``make``, create the
    embedded server if there never was one. With ``verifies``, a key has to be trusted.
    """
    settings, pinned = place.settings, set[str]()
    sealer, url = _sealer(settings, verifies=verifies), settings.redis_url.get_secret_value()
    prefix = settings.redis_prefix + (f"ns:{place.namespace}:" if place.namespace else "")

    async def with_tier() -> T:
        async with _link(settings, url, make=make) as link:
            store = RedisStore(
                link,
                prefix,
                sealer,
                cast("Recorder", None),  # It records what daemons do.
                ttl_s=ttl_s or settings.cache_ttl_s,
                renews=False,
                artifact_bytes=lambda: settings.max_artifact_bytes,
                module_bytes=lambda: settings.max_module_bytes,
                is_pinned=pinned.__contains__,
                reports_usage=False,
            )
            return await work(_Tier(settings, sealer, store, pinned, bytes_per_s))

    try:
        return asyncio.run(with_tier())
    except TierUnavailable as failure:
        where = f"Redis at {RedisAddress.parse(url)}" if url else "embedded Valkey"
        raise CacheCommandFailed(f"{where}: {failure}") from None


def _sealer(settings: Settings, *, verifies: bool) -> Sealer:
    # Only errors: the command prints what an operator needs.
    pipeline.configure("text", "error", sys.stderr)

    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt  # As Ctrl-C, so that unfinished work is undone.

    signal.signal(signal.SIGTERM, interrupted)
    keys = read_keys(settings)
    if verifies and not keys.trusted:
        raise CacheCommandFailed(
            f"cannot verify any value: no key is trusted here, and there is none in"
            f" {settings.effective_keys_dir} (set --keys-dir or WASMKILN_TRUSTED_KEYS)"
        )
    return Sealer(keys)


@asynccontextmanager
async def _link(settings: Settings, url: str, *, make: bool) -> AsyncIterator[RedisLink]:
    """Open the server that a daemon of these settings uses, and leave it as it was found."""
    if url == "none":
        raise CacheCommandFailed(
            "this configuration has no shared cache: WASMKILN_REDIS_URL is none"
        )
    access, patience_s = redis_access(settings), 0.0
    async with AsyncExitStack() as opened:
        try:
            if not url:
                embedded = _embedded(settings, make=make)
                # Before the start, since an interrupted start has to be undone too.
                opened.push_async_callback(embedded.stop)
                url, access, patience_s = await embedded.start(), NO_ACCESS, _LOADING_S
            server = connect(url, access, timeout_s=settings.redis_timeout_s)
        except EmbeddedUnavailable as failure:
            raise CacheCommandFailed(f"cannot use the embedded server: {failure}") from None
        except (BadRedisUrl, AccessUnusable) as failure:
            raise CacheCommandFailed(str(failure)) from None
        link = RedisLink(server, timeout_s=max(settings.redis_timeout_s, _TIMEOUT_S))
        opened.push_async_callback(link.close)
        await _answers(link, f"{settings.redis_prefix}3:module:", patience_s)
        yield link


def _embedded(settings: Settings, *, make: bool) -> EmbeddedServer:
    # Not is_dir: it raises without permission to look.
    if not make and not os.path.isdir(server_folder(settings.state_dir)):  # noqa: PTH112
        raise CacheCommandFailed(
            f"there is no cache yet: no daemon has run with the state directory"
            f" {settings.state_dir} (choose another with --state-dir, or a server with"
            " --redis-url)"
        )
    return EmbeddedServer(settings.state_dir, settings.embedded_redis_bytes)


async def _answers(link: RedisLink, name: str, patience_s: float) -> None:
    """Return once the server answers, which may first load its data. Raise TierUnavailable."""
    try:
        async with asyncio.timeout(patience_s or None):
            while True:
                with contextlib.suppress(TierUnavailable):
                    await link.run(("EXISTS", name))
                    return
                # A server that loads its data says so; one that does not answer hangs.
                if not patience_s or link.why_down == NO_ANSWER:
                    raise TierUnavailable(link.why_down)
                await link.ready()
    except TimeoutError:
        raise TierUnavailable(link.why_down) from None


def _host(place: _Place, *, verifies: bool = False) -> tuple[host_store.HostOptions, Sealer]:
    """Return where a namespace is in the host store, and who is trusted."""
    sealer, options = _sealer(place.settings, verifies=verifies), host_options(place.settings)
    if not options.limit_bytes:
        is_none = place.settings.host_store_dir == NO_DIRECTORY
        why = "host_store_dir is none" if is_none else "host_store_bytes is 0"
        raise CacheCommandFailed(f"this configuration has no host store: {why}")
    options = options.of_namespace(place.namespace, options.limit_bytes)
    act_as_owner(options.directory)
    if not options.directory.is_dir():
        raise CacheCommandFailed(
            f"there is no host store yet in {options.directory} (choose another directory with"
            " --host-store-dir)"
        )
    with _as_failed():
        host_store.check_root(options.directory)
    return options, sealer


# ---- Read a value


class _Value:
    """A value in Redis or a file, which ``read(start, size_bytes)`` reads.

    Its methods raise ValueRejected for a bad value.
    """

    def __init__(self, read: Callable[[int, int], Awaitable[bytes]], size_bytes: int) -> None:
        self._read = read
        self._size_bytes = size_bytes
        self.tail = b""
        """The end of the value, as it was read."""

    async def open(self, sealer: Sealer, key: Key | None = None) -> Opened:
        """Verify the head, and that it is about ``key`` if that is given."""
        self.tail = await self._end(_RANGE_BYTES)
        if values.head_bytes(self.tail) > len(self.tail):
            self.tail = await self._end(values.head_bytes(self.tail))
        if key is None:
            opened = values.open_head(self.tail, sealer)
            values.check_attestation(opened.what, sealer)
        else:
            opened = values.open_value(self.tail, key, sealer)
        of = opened.what.key if isinstance(opened.what, Artifact) else None
        if of and isinstance(key, CacheKey) and of.engine_id != key.engine_id:
            raise ValueRejected(Cause.WRONG_KEY, "the value is of another engine")
        if opened.stored_bytes != self._size_bytes:
            raise ValueRejected(Cause.FORMAT, "the value's length is not what its head says")
        return opened

    async def check(self, opened: Opened, keep: Callable[[bytes], object] | None = None) -> None:
        """Verify the payload; hand the bytes of the whole value to ``keep``, in order."""
        digest, beginning = hashlib.sha256(), b""
        begins = self._size_bytes - len(self.tail)
        for index, each in enumerate(opened.frames):
            start, end = each.offset, each.offset + each.stored_bytes
            if start >= begins:
                stored = self.tail[start - begins : end - begins]
            else:
                stored = await self._exactly(start, each.stored_bytes)
            raw = await asyncio.to_thread(_taken, opened, index, stored, digest)
            beginning = beginning or raw[:8]
            if keep:
                keep(stored)
        values.check_payload(opened.what, digest.hexdigest(), beginning)
        if keep:
            keep(self.tail[-values.head_bytes(self.tail) :])

    async def _end(self, most_bytes: int) -> bytes:
        size_bytes = min(self._size_bytes, most_bytes)
        return await self._exactly(self._size_bytes - size_bytes, size_bytes)

    async def _exactly(self, start: int, size_bytes: int) -> bytes:
        found = await self._read(start, size_bytes) if size_bytes else b""
        if len(found) != size_bytes:
            raise ValueRejected(Cause.TRUNCATED, "the value is cut off, or was replaced meanwhile")
        return found


def _taken(opened: Opened, index: int, stored: bytes, digest: Any) -> bytes:
    raw = opened.unpack(index, stored)
    digest.update(raw)
    return raw


@dataclass(frozen=True, slots=True)
class _Read:
    """What reading a value whole from Redis found; neither ``opened`` nor ``rejected`` if gone."""

    opened: Opened | None = None
    rejected: ValueRejected | None = None
    tail: bytes | None = None
    """The end of the value; None if the key holds a list or the like."""


async def _read(
    tier: _Tier, key: Key, spool: IO[bytes] | None = None, limit_bytes: int | None = None
) -> _Read:
    """Verify a value, which may go to ``spool``; twice if it fails: a daemon may replace it."""
    name, result = tier.store.name_of(key), _Read()

    async def read(start: int, size_bytes: int) -> bytes:
        [found] = await tier.store.link.run(("GETRANGE", name, start, start + size_bytes - 1))
        await tier.moved(len(found))
        return cast("bytes", found)

    for _ in range(2):
        [(size_bytes, _, end)] = await tier.store.look([key], 1)
        if size_bytes < 0:
            return _Read()
        value = _Value(read, size_bytes)
        try:
            if end is None:
                raise _no_string()
            opened = await value.open(tier.sealer, key)
            _check_size(opened.size_bytes, limit_bytes)
            if spool:
                spool.seek(0)
                spool.truncate()
            await value.check(opened, spool.write if spool else None)
            return _Read(opened, tail=value.tail)
        except ValueRejected as rejected:
            # Not the exception itself: its traceback holds the value.
            bad = ValueRejected(rejected.cause, rejected.why)
            result = _Read(rejected=bad, tail=None if end is None else value.tail)
    return result


def _no_string() -> ValueRejected:
    return ValueRejected(Cause.FORMAT, "the key holds a list, a hash or the like, not a string")


def _check_size(size_bytes: int, limit_bytes: int | None) -> None:
    if limit_bytes is not None and size_bytes > limit_bytes:
        why = f"it is larger than this configuration accepts ({limit_bytes} bytes)"
        raise ValueRejected(Cause.FORMAT, why)


# ---- ls

_ORDERS: Mapping[str, Callable[[Row], Any]] = {
    # A module comes before its artifacts.
    "module": lambda row: (row["module"], row["engine"] or "", row["fingerprint"] or ""),
    "size": lambda row: -row["stored_bytes"],
    "age": lambda row: row["finished_on"] or "~",
    "expiry": lambda row: float("inf") if row["expires_in_s"] is None else row["expires_in_s"],
}
_COLUMNS = (
    *("module", "what", "kind", "target", "cpu", "settings", ">raw", ">stored"),
    *(">compiled", ">expires in", "signed by"),
)


@cache.command(context_settings=_HELP)
@_engine
@_module
@click.option(
    *("--sort", "order"),
    type=click.Choice(list(_ORDERS)),
    default="module",
    show_default=True,
    help="Sort by module, largest first, oldest first, or first to expire first.",
)
@click.option("--totals", is_flag=True, help="Print only the sums by engine and kind.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a line a value, or the sums.")
@_tier
@_place()
def ls(
    engine: str, module: str, order: str, totals: bool, as_json: bool, on_host: bool, place: _Place
) -> None:
    """List all values: sizes, ages, engines, the keys that signed them, and sums by engine."""

    async def look(tier: _Tier) -> list[Row]:
        rows = []
        async for keys in tier.chosen(engine, module):
            found = zip(keys, await tier.store.look(keys, _HEAD_BYTES), strict=True)
            rows += [await _row(tier, key, *each) for key, each in found if each[0] >= 0]
        return rows

    rows = _rows_on_host(place, engine, module) if on_host else _run(place, look)
    rows.sort(key=_ORDERS[order])
    sums: dict[tuple[str, str], Row] = {}
    for row in rows:
        of = row["engine"] or row["what"], row["kind"]
        if row["unreadable"]:
            of = "unreadable", row["unreadable"]["cause"]
        _add(sums.setdefault(of, _add({})), 1, row)
    total = functools.reduce(
        lambda sum_, one: _add(sum_, one["values"], one), sums.values(), _add({})
    )
    kinds = [{"what": what, "kind": kind, **sums[what, kind]} for what, kind in sorted(sums)]
    if as_json:
        for document in [{"values": kinds, "total": total}] if totals else rows:
            _say_json(document)
        return
    if not totals:
        _print_table(_COLUMNS, [_cells(row) for row in rows])
        click.echo()
    cells = [
        *((each["what"], each["kind"], *_sizes(each)) for each in kinds),
        ("total", "", *_sizes(total)),
    ]
    _print_table(("what", "kind", ">values", ">raw", ">stored"), cells)


def _sizes(sum_: Row) -> tuple[str, str, str]:
    return str(sum_["values"]), size(sum_["raw_bytes"]), size(sum_["stored_bytes"])


def _add(sum_: Row, values: int = 0, more: Row | None = None) -> Row:
    sum_["values"] = sum_.get("values", 0) + values
    for name in ("raw_bytes", "stored_bytes"):
        sum_[name] = sum_.get(name, 0) + (more[name] if more else 0)
    return sum_


class _AnyKey:
    """Lets heads be read whoever signed them, and keeps what the sealer says of the signature."""

    refusal: Refusal | None = None

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def check_stamp(self, message: bytes, stamp: bytes) -> Refusal | None:
        """Return None."""
        self.refusal = self._sealer.check_stamp(message, stamp)
        return None


async def _row(
    tier: _Tier, key: Key, stored_bytes: int, ttl_s: int | None, tail: bytes | None
) -> Row:
    anyone = _AnyKey(tier.sealer)
    try:
        if tail is None:
            raise _no_string()
        if values.head_bytes(tail) > len(tail):
            [(_, _, tail)] = await tier.store.look([key], values.head_bytes(tail))
        opened = values.open_head(tail or b"", cast("Sealer", anyone))
    except ValueRejected as rejected:
        return _described(key, stored_bytes, ttl_s, rejected)
    signer, raw_bytes = values.stamped_by(tail or b""), opened.size_bytes
    return _described(key, stored_bytes, ttl_s, opened.what, raw_bytes, signer, anyone.refusal)


def _described(
    key: Key,
    stored_bytes: int,
    ttl_s: int | None,
    what: Artifact | Module | ValueRejected,
    raw_bytes: int = 0,
    signer: str = "",
    refusal: Refusal | None = None,
) -> Row:
    """Return the row of a value; ``what`` is why it cannot be read, if it cannot."""
    if (what.key if isinstance(what, Artifact) else getattr(what, "sha256", key)) != key:
        what = ValueRejected(Cause.WRONG_KEY, "the value belongs to another key")
    spec = what.spec if isinstance(what, Artifact) else None
    attested = peek(what.attestation) if isinstance(what, Artifact) else None
    bad, trust = (what if isinstance(what, ValueRejected) else None), "trusted"
    if refusal:
        is_known = refusal.cause in (Cause.STRANGER.value, Cause.REVOKED.value)
        trust = refusal.cause if is_known else "forged"
    named = key.engine_id if isinstance(key, CacheKey) else None
    return {
        "what": "artifact" if isinstance(key, CacheKey) else "module",
        "module": _module_of(key),
        "fingerprint": key.fingerprint if isinstance(key, CacheKey) else None,
        "kind": None if isinstance(what, ValueRejected) else what.kind.value,
        "engine": (spec.engine.id if spec else named) or None,
        "target": spec.target if spec else None,
        "cpu": spec.cpu if spec else None,
        "changed_settings": dict(sorted(spec.changed_settings.items())) if spec else {},
        "raw_bytes": 0 if bad else raw_bytes,
        "stored_bytes": stored_bytes,
        "expires_in_s": ttl_s,
        "finished_on": attested[0].finished_on if attested else None,
        "signed_by": None if bad else signer,
        "trust": None if bad else trust,
        "unreadable": {"cause": bad.cause.value, "why": bad.why} if bad else None,
    }


def _rows_on_host(place: _Place, engine: str, module: str) -> list[Row]:
    options, sealer = _host(place)
    rows = []
    for path, key in _on_host(options, module):
        with _as_failed(), host_store.open_entry(options, key) as entry:
            if not entry or not (stored_bytes := host_store.measure(path)[0]):
                continue
            try:
                found = entry.described()
            except ValueRejected as rejected:
                row = _described(key, stored_bytes, None, rejected)
            else:
                attested, refusal = peek(found.attestation), sealer.verify(found, key)
                signer = attested[1] if attested else ""
                row = _described(key, stored_bytes, None, found, found.size_bytes, signer, refusal)
            if _is_engine(row["engine"] or "", engine):
                rows.append(row)
    return rows


def _on_host(options: host_store.HostOptions, module: str = "") -> Iterator[tuple[Path, CacheKey]]:
    with _as_failed():
        for path, key in host_store.entries_in(options.directory):
            if key.module_sha256.startswith(module):
                yield path, key


@contextmanager
def _as_failed() -> Iterator[None]:
    try:
        yield
    except TierUnavailable as failure:
        raise CacheCommandFailed(str(failure)) from None
    except OSError as failure:
        raise CacheCommandFailed(str(host_store.cannot("read an entry", failure))) from None


def _cells(row: Row) -> tuple[str, ...]:
    bad, trust = row["unreadable"], row["trust"]
    settings = ",".join(f"{name}={value}" for name, value in row["changed_settings"].items())
    signed_by = f"{row['signed_by'] or ''}"[:12] + ("" if trust == "trusted" else f", {trust}")
    compiled = "-"
    with contextlib.suppress(ValueError):
        made = datetime.strptime(row["finished_on"] or "", "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        compiled = f"{elapsed(time.time() - made.timestamp())} ago"
    return (
        *(row["module"][:12], row["engine"] or row["what"], row["kind"] or "-"),
        *(row["target"] or "-", row["cpu"] or "-", settings or "-"),
        *("-" if bad else size(row["raw_bytes"]), size(row["stored_bytes"]), compiled),
        "never" if row["expires_in_s"] is None else elapsed(row["expires_in_s"]),
        f"unreadable: {bad['cause']}: {bad['why']}" if bad else signed_by,
    )


# ---- rm


@cache.command(context_settings=_HELP)
@_engine
@_module
@click.option("--all", "everything", is_flag=True, help="Everything; needs --yes.")
@click.option("--yes", is_flag=True, help="Yes, everything.")
@click.option("--pinned", is_flag=True, help="What belongs to pinned modules, too.")
@_json
@_tier
@_place()
def rm(engine: str, module: str, everything: bool, yes: bool, pinned: bool, **given: Any) -> None:
    """Remove a module with its artifacts, an engine's artifacts, or everything.

    What is pinned stays. Daemons keep what they have in memory and may store it again: `wasmkiln
    evict` removes values from every tier.
    """
    if sum(map(bool, (engine, module, everything))) != 1:
        raise click.UsageError("choose what to remove: one of --module, --engine and --all")
    if everything and not yes:
        raise click.UsageError("--all removes every value of the namespace: add --yes to do it")
    place: _Place = given["place"]

    async def work(tier: _Tier) -> Evicted:
        keys: list[Key] = [module]
        if len(module) < 64:  # A whole digest needs no look at the names of all values.
            keys = [key async for page in tier.chosen(engine, module) for key in page]
        modules, gone = set(map(_module_of, keys)), Evicted()
        stay = set() if pinned else await tier.store.kept(modules)
        scopes = [EvictScope(spares=stay.__contains__)]
        if engine:
            engines = {key.engine_id for key in keys if isinstance(key, CacheKey)}
            scopes = [EvictScope(engine_id=each, spares=stay.__contains__) for each in engines]
        elif module:
            scopes = [EvictScope(each, spares=stay.__contains__) for each in modules]
        for scope in scopes:
            gone += await tier.store.evict(scope)
        return gone

    if given["on_host"]:
        gone = _removed_on_host(place, engine, module, pinned=pinned)
    else:
        gone = _run(place, work)
    if given["as_json"]:
        _say_json({"removed": asdict(gone)})
        return
    of_them = f"{gone.artifacts} artifacts and {gone.modules} modules"
    click.echo(f"removed {of_them} ({size(gone.bytes)})")
    if gone.pinned:
        click.echo(f"{gone.pinned} are pinned, and stayed (see --pinned)")


def _removed_on_host(place: _Place, engine: str, module: str, *, pinned: bool) -> Evicted:
    stay = set() if pinned else pinned_in(place.settings.state_dir, place.namespace)
    options, gone = _host(place)[0], Evicted()
    for row in _rows_on_host(place, engine, module):
        if row["module"] in stay:
            gone += Evicted(pinned=1)
        elif host_store.remove_entry(options, CacheKey(row["module"], row["fingerprint"])):
            gone += Evicted(1, 0, row["stored_bytes"])
    return gone


# ---- scrub


@dataclass
class _Scrubbed:
    """What a scrub found, as ``--json`` says it."""

    artifacts: int = 0
    modules: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    deleted: int = 0
    other_format: int = 0
    old_format_deleted: int = 0
    gone: int = 0
    bytes_read: int = 0
    dry_run: bool = False
    kept_all: bool = False
    """Whether values of untrusted keys were kept because no value verified."""


@cache.command(context_settings=_HELP)
@click.option("--dry-run", is_flag=True, help="Report only; delete nothing.")
@click.option(
    "--delete-old-format",
    is_flag=True,
    help="Also delete what versions up to 0.6.0 stored, once none of their daemons runs.",
)
@_rate
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a line a bad value, a summary.")
@_tier
@_place("max_artifact_bytes")
def scrub(
    dry_run: bool,
    delete_old_format: bool,
    bytes_per_s: int,
    as_json: bool,
    on_host: bool,
    place: _Place,
) -> None:
    """Verify every value completely, and delete the bad ones.

    Daemons may run meanwhile. Exits with 0 if all values are good, and with 3 if some are bad.
    """
    if on_host and (bytes_per_s or delete_old_format):
        raise click.UsageError("--rate and --delete-old-format are for the tier redis")

    def tell(name: bytes, cause: str, why: str, deleted: bool) -> None:
        if as_json:
            _say_json({"name": os.fsdecode(name), "cause": cause, "why": why, "deleted": deleted})
        else:
            done = "deleted" if deleted else "kept"
            click.echo(one_line(f"BAD ({done}) {os.fsdecode(name)}: {cause}: {why}"))

    report = _Scrubbed(dry_run=dry_run)

    async def work(tier: _Tier) -> None:
        await _scrub(_checked_in_redis(tier), report, tell)
        async for names in tier.store.of_format_2():
            report.other_format += len(names)
            if delete_old_format and not dry_run:
                gone = await tier.store.link.run(*(("UNLINK", name) for name in names))
                report.old_format_deleted += sum(gone)
        report.bytes_read = tier.moved_bytes

    if on_host:
        asyncio.run(_scrub(_checked_on_host(*_host(place, verifies=True), report), report, tell))
    else:
        _run(place, work, bytes_per_s=bytes_per_s, verifies=True)
    if as_json:
        _say_json({"summary": vars(report)})
    else:
        for line in _summary(report):
            click.echo(line)
    if report.kept_all:
        raise BadValuesFound(
            "no value is signed by a key that is trusted here, so none was deleted for that: check"
            " that these are the right keys (--keys-dir, WASMKILN_TRUSTED_KEYS)"
        )
    if report.bad:
        raise BadValuesFound(f"bad values: {_counts(report.bad)}")


@dataclass(frozen=True, slots=True)
class _Checked:
    """What verifying a value found."""

    name: bytes
    counts_as: str
    """The number in _Scrubbed that it adds to, unless it is rejected."""
    rejected: ValueRejected | None
    delete: Callable[[], Awaitable[bool]]


async def _checked_in_redis(tier: _Tier) -> AsyncIterator[_Checked]:
    """Verify all values that there are now. Raise TierUnavailable."""
    keys = [key async for page in tier.chosen() for key in page]
    with _progress("verifying", len(keys)) as advance:

        async def check(key: Key) -> _Checked:
            found, name = await _read(tier, key), tier.store.name_of(key)
            advance(1)
            counts_as = "artifacts" if isinstance(key, CacheKey) else "modules"
            delete = functools.partial(tier.store.delete_if, name, found.tail or b"")
            return _Checked(name, counts_as if found.opened else "gone", found.rejected, delete)

        for some in _batches(keys, _AT_ONCE):
            for checked in await asyncio.gather(*map(check, some)):
                yield checked


async def _checked_on_host(
    options: host_store.HostOptions, sealer: Sealer, report: _Scrubbed
) -> AsyncIterator[_Checked]:
    """Verify all entries of the host store that there are now."""
    for path, key in _on_host(options):
        counts_as, rejected = "gone", None
        for _ in range(2):  # A daemon may be removing it.
            try:
                with _as_failed(), host_store.open_entry(options, key) as entry:
                    if entry:
                        artifact = entry.verified(sealer)
                        entry.check(artifact)
                        report.bytes_read += artifact.size_bytes
                        counts_as = "artifacts"
                rejected = None
                break
            except ValueRejected as failure:
                rejected = failure
        delete = functools.partial(asyncio.to_thread, host_store.remove_entry, options, key)
        yield _Checked(os.fsencode(path), counts_as, rejected, delete)


async def _scrub(found: AsyncIterator[_Checked], report: _Scrubbed, tell: Tell) -> None:
    """Count what was found, and delete what is bad.

    A value is deleted only if it fails to verify twice in a row and is still the one that failed:
    a daemon may be replacing it. If no value at all verifies, values of untrusted keys are kept,
    since the keys at hand are then most likely the wrong ones.
    """
    untrusted: list[tuple[_Checked, ValueRejected]] = []

    async def reject(checked: _Checked, rejected: ValueRejected, *, keep: bool = False) -> None:
        deleted = not (keep or report.dry_run) and await checked.delete()
        report.bad[rejected.cause.value] += 1
        report.deleted += deleted
        why = "signed by an untrusted key, as all values are: kept" if keep else rejected.why
        tell(checked.name, rejected.cause.value, why, deleted)

    async for checked in found:
        if checked.rejected is None:
            setattr(report, checked.counts_as, getattr(report, checked.counts_as) + 1)
        elif checked.rejected.cause is Cause.VERSION:
            report.other_format += 1
        elif checked.rejected.cause is Cause.STRANGER:
            untrusted.append((checked, checked.rejected))
        else:
            await reject(checked, checked.rejected)
    report.kept_all = bool(untrusted) and not report.artifacts + report.modules
    for checked, rejected in untrusted:
        await reject(checked, rejected, keep=report.kept_all)


def _summary(report: _Scrubbed) -> Iterator[str]:
    good = f"{report.artifacts} artifacts and {report.modules} modules are good"
    yield f"{good} ({size(report.bytes_read)} read)"
    if report.bad:
        yield f"{report.bad.total()} bad, {report.deleted} deleted: {_counts(report.bad)}"
    if report.old_format_deleted:
        yield f"{report.old_format_deleted} keys of versions up to 0.6.0 deleted"
    if left := report.other_format - report.old_format_deleted:
        yield f"{left} in another version's format: left alone (see --delete-old-format)"
    if report.gone:
        yield f"{report.gone} were deleted or expired meanwhile"


def _counts(causes: Counter[str]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in causes.most_common())


# ---- export and import


@dataclass
class _Moved:
    """What was copied and what was not, as ``--json`` says it."""

    artifacts: int = 0
    modules: int = 0
    stored_bytes: int = 0
    signers: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    gone: int = 0
    kept: int = 0
    duplicates: int = 0

    def count(self, opened: Opened, tail: bytes) -> None:
        """Count a value that was copied."""
        self.artifacts += isinstance(opened.what, Artifact)
        self.modules += isinstance(opened.what, Module)
        self.stored_bytes += opened.stored_bytes
        self.signers[values.stamped_by(tail)] += 1

    def refuse(self, what: str, rejected: ValueRejected) -> None:
        """Count a value that is left out, and say why of the first few."""
        self.refused[rejected.cause.value] += 1
        if self.refused.total() <= _MAX_REPORTED:
            click.echo(one_line(f"left out: {what}: {rejected}"), err=True)

    def sum_up(self, done: str, *, as_json: bool, err: bool = False) -> None:
        """Print the summary. Raise BadValuesFound if values were left out because they are bad."""
        lines = [f"{done} {self.artifacts} artifacts and {self.modules} modules"]
        lines[0] += f" ({size(self.stored_bytes)})"
        for count, what in (
            (self.kept, "existed already, and were kept"),
            (self.duplicates, "were in the file more than once"),
            (self.gone, "were deleted or expired meanwhile"),
        ):
            lines += [f"{count} {what}"] if count else []
        click.echo(json.dumps({done: vars(self)}) if as_json else "\n".join(lines), err=err)

    def raise_if_bad(self) -> None:
        """Raise BadValuesFound if values were left out because they are bad."""
        if (more := self.refused.total() - _MAX_REPORTED) > 0:
            click.echo(f"left out: {more} more", err=True)
        # Values in another format are no bad values: other daemons can read them.
        if self.refused.total() > self.refused[Cause.VERSION.value]:
            advice = "; trust their key with `wasmkilnd keys trust` if you know it"
            advice = advice if self.refused[Cause.STRANGER.value] else ""
            raise BadValuesFound(f"left out bad values: {_counts(self.refused)}{advice}")


@cache.command(name="export", context_settings=_HELP)
@click.argument("file", metavar="FILE")
@_engine
@_module
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@_rate
@_json
@_place("max_artifact_bytes")
def export_values(
    file: str, engine: str, module: str, force: bool, bytes_per_s: int, as_json: bool, place: _Place
) -> None:
    """Write all values that verify to FILE, or to standard output if that is "-".

    With --engine, write the engine's artifacts and their modules. Exits with 3 if it left out
    bad values.
    """
    moved, limit_bytes = _Moved(), place.settings.max_artifact_bytes

    async def work(tier: _Tier, archive: IO[bytes]) -> list[str]:
        archive.write(_ARCHIVE + _VERSION)
        keys = [key async for page in tier.chosen(engine, module) for key in page]
        if engine:
            keys = [*dict.fromkeys(map(_module_of, keys)), *keys]
        with _progress("exporting", len(keys)) as advance:
            for some in _batches(keys, _BATCH):
                found = await tier.store.look(some)
                for key, (size_bytes, ttl_s, _) in zip(some, found, strict=True):
                    if size_bytes >= 0:
                        await one(tier, key, 0 if ttl_s is None else max(1, ttl_s), archive)
                    advance(1)
        archive.write(_RECORD.pack(0, 0))
        return [key.hex for key in map(tier.sealer.get, moved.signers) if key]

    async def one(tier: _Tier, key: Key, ttl_s: int, archive: IO[bytes]) -> None:
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
            found = await _read(tier, key, cast("IO[bytes]", spool), limit_bytes)
            if found.opened:
                archive.write(_RECORD.pack(spool.tell(), ttl_s))
                spool.seek(0)
                shutil.copyfileobj(spool, archive, _RANGE_BYTES)
                moved.count(found.opened, found.tail or b"")
            elif found.rejected:
                moved.refuse(tier.store.name_of(key).decode(), found.rejected)
            else:
                moved.gone += 1

    with _written(file, force=force) as archive:
        work_there = functools.partial(work, archive=archive)
        signers = _run(place, work_there, bytes_per_s=bytes_per_s, verifies=True)
    # Standard output may be the archive.
    moved.sum_up("exported", as_json=as_json, err=file == "-")
    for key in signers:
        click.echo(f"trust this key where you import the file: {key}", err=True)
    moved.raise_if_bad()


@cache.command(name="import", context_settings=_HELP)
@click.argument("file", metavar="FILE")
@click.option("--replace", is_flag=True, help="Replace values that exist already.")
@click.option(
    *("--ttl", "ttl_s"),
    default="0",
    callback=_by(parse_seconds),
    metavar="DURATION",
    help="The TTL of each value here, instead of what it had left.",
)
@_rate
@_json
@_place("max_artifact_bytes")
def import_values(
    file: str, replace: bool, ttl_s: float, bytes_per_s: int, as_json: bool, place: _Place
) -> None:
    """Store the values in FILE, or on standard input if that is "-".

    Each value is verified completely before it is stored, and keeps its signature. So first trust
    the key of the site that it comes from, with `wasmkilnd keys trust`. Exits with 3 if it left
    out bad values.
    """
    if ttl_s > _YEARS_S or 0 < ttl_s < 1:
        raise click.BadParameter("expected 1 s to 10 years", param_hint="--ttl")
    moved, shown = _Moved(), "standard input" if file == "-" else file

    async def work(tier: _Tier, read_from: IO[bytes]) -> None:
        taking = _Import(tier, moved, fixed_ttl=ttl_s > 0, replace=replace)
        try:
            await taking.run(read_from)
        except (ValueRejected, TierUnavailable) as failure:
            before = f"{moved.artifacts + moved.modules} values were imported before"
            if isinstance(failure, TierUnavailable):
                raise TierUnavailable(f"{failure}; {before}") from None
            raise CacheCommandFailed(f"cannot import {shown}: {failure.why}; {before}") from None

    options: Row = {"bytes_per_s": bytes_per_s, "ttl_s": int(ttl_s), "make": True}
    try:
        with (
            contextlib.nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as f
        ):
            _run(place, functools.partial(work, read_from=f), **options, verifies=True)
    except OSError as failure:
        raise CacheCommandFailed(f"cannot read {file}: {failure.strerror}") from None
    moved.sum_up("imported", as_json=as_json)
    moved.raise_if_bad()


class _Import:
    """Stores the values of an archive that verify, and no others."""

    def __init__(self, tier: _Tier, moved: _Moved, *, fixed_ttl: bool, replace: bool) -> None:
        """With ``fixed_ttl``, do not heed what a value had left to live."""
        self._tier = tier
        self._moved = moved
        self._fixed_ttl = fixed_ttl
        self._replace = replace
        self._seen: set[bytes] = set()
        self._limit_bytes = tier.settings.max_artifact_bytes

    async def run(self, archive: IO[bytes]) -> None:
        """Raise ValueRejected if the archive itself is broken, and TierUnavailable."""
        start, number = archive.read(len(_ARCHIVE + _VERSION)), 0
        if start.startswith(_TAR_OF_0_6):
            raise _broken(
                "it was written by version 0.6.0 or older, in another format: export it again with"
                " the version that you import it with"
            )
        if not start.startswith(_ARCHIVE):
            raise _broken("it is not what `wasmkilnd cache export` writes")
        if start != _ARCHIVE + _VERSION:
            raise _broken("it is of a version that this wasmkilnd does not know")
        with _progress("importing", _size_of(archive)) as advance:
            while True:
                record = archive.read(_RECORD.size)
                if len(record) != _RECORD.size:
                    raise _broken("it is cut off")
                size_bytes, left_s = _RECORD.unpack(record)
                if not size_bytes:
                    return
                number += 1
                with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
                    self._fill(spool, archive, size_bytes)
                    await self._take(
                        cast("IO[bytes]", spool), size_bytes, left_s, f"value {number}"
                    )
                advance(size_bytes)

    def _fill(self, spool: Any, archive: IO[bytes], left_bytes: int) -> None:
        # A value whose payload is within the limit has no more bytes than this.
        most_bytes = self._limit_bytes * 65 // 64 + 2 * values.MAX_HEADER_BYTES
        while left_bytes:
            if not (chunk := archive.read(min(left_bytes, _RANGE_BYTES))):
                raise _broken("it is cut off")
            left_bytes -= len(chunk)
            if spool.tell() + len(chunk) <= most_bytes:
                spool.write(chunk)

    async def _take(self, spool: IO[bytes], size_bytes: int, left_s: int, what: str) -> None:
        async def read(start: int, size_bytes: int) -> bytes:
            spool.seek(start)
            return spool.read(size_bytes)

        value, store = _Value(read, size_bytes), self._tier.store
        try:
            _check_size(size_bytes - spool.tell() + self._limit_bytes, self._limit_bytes)
            opened = await value.open(self._tier.sealer)
            key: Key = opened.what.key if isinstance(opened.what, Artifact) else opened.what.sha256
            name = store.name_of(key)
            what = name.decode()
            _check_size(opened.size_bytes, self._limit_bytes)
            [(there_bytes, _, _)] = await store.look([key])
            if name in self._seen:
                self._moved.duplicates += 1
            elif there_bytes >= 0 and not self._replace:
                self._moved.kept += 1
            else:
                await value.check(opened)
                await self._store(key, spool, opened, left_s, value.tail)
            self._seen.add(name)
        except ValueRejected as rejected:
            self._moved.refuse(what, rejected)

    async def _store(
        self, key: Key, spool: IO[bytes], opened: Opened, left_s: int, tail: bytes
    ) -> None:
        store, module = self._tier.store, _module_of(key)
        # What is pinned here does not expire here.
        self._tier.pinned.update(await store.kept([module]))
        # Before, not while: what is written slowly would expire before it is whole.
        await self._tier.moved(opened.stored_bytes)
        name = store.name_of(key)
        if self._replace:
            await store.link.run(("UNLINK", name))
        spool.seek(0)
        chunks = iter(lambda: spool.read(_RANGE_BYTES // 2), b"")
        if not await store.store(key, chunks, opened.stored_bytes):
            self._moved.kept += 1  # A daemon stored it in the meantime.
            return
        self._moved.count(opened, tail)
        shortens = 0 < left_s < self._tier.settings.cache_ttl_s and not self._fixed_ttl
        if shortens and module not in self._tier.pinned:
            await store.link.run(("EXPIRE", name, left_s))


def _broken(why: str) -> ValueRejected:
    return ValueRejected(Cause.FORMAT, why)


def _size_of(file: IO[bytes]) -> int:
    try:
        return os.fstat(file.fileno()).st_size
    except OSError:
        return 0


@contextmanager
def _written(file: str, *, force: bool) -> Iterator[IO[bytes]]:
    """Yield a file to write; it becomes ``file`` at the end, unless an error is raised."""
    if file == "-":
        if sys.stdout.isatty():
            raise click.UsageError("cannot write an archive to a terminal: redirect it to a file")
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except OSError as failure:
            # Else Python reports the error again when it flushes standard output at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            why = f"cannot write to standard output: {failure.strerror}"
            raise CacheCommandFailed(why) from None
        return
    path = Path(file)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not force:
            raise CacheCommandFailed(f"cannot write {file}: it exists already (see --force)")
        with aside.open("xb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        aside.replace(path)
    except OSError as failure:
        raise CacheCommandFailed(f"cannot write {file}: {failure.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


# ---- Print


def _say_json(document: Mapping[str, Any]) -> None:
    click.echo(json.dumps(document))


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Lay out ``rows`` below ``columns``; a column whose name begins with ">" is aligned right.

    Not rich's tables, which are too slow for many rows.
    """
    shown = [[each.removeprefix(">").upper() for each in columns]]
    shown += [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*shown, strict=True)]
    for row in shown:
        cells = (
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


@contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar on stderr if that is a terminal; yield what advances it."""
    if not sys.stderr.isatty() or not total:
        yield lambda step: None
        return
    with click.progressbar(length=total, label=text, show_pos=True, file=sys.stderr) as bar:

        def advance(step: int) -> None:
            bar.last_eta = 0.0  # Else it tells the time left only after a second.
            bar.update(step)

        yield advance
