"""``wasmkilnd cache``: list, remove, verify and move the values of the tiers below memory.

Each command finds the cache as ``serve`` does, by the same settings, and runs the embedded server
if no daemon does. All work beside running daemons. Values are taken as they are stored: nothing is
signed or packed again. One value at a time is in memory, and only if its head verifies.

``export`` and ``import`` move values between a shared tier and an object store at a URL, which may
be a directory. Each value is verified whole before any of it is stored.

What ``--json`` prints is a public interface: add fields, never rename or remove one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import re
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import click
from wasmkiln.attestation import peek
from wasmkiln.cli.text import one_line

from wasmkilnd import model
from wasmkilnd.cache import host_store
from wasmkilnd.cache import value as values
from wasmkilnd.cache.object_store import Bucket, ObjectStore, prefix_of
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.cache.value import Opened, ValueRejected
from wasmkilnd.commands.shared import cell, json_option, print_table, ready
from wasmkilnd.errors import CannotUse, TierUnavailable
from wasmkilnd.model import NAMESPACE_NAME, Artifact, CacheKey, Evicted, Module
from wasmkilnd.model import RejectionCause as Cause
from wasmkilnd.options import host_options, open_bucket, redis_access
from wasmkilnd.pins import pinned_in
from wasmkilnd.redis import embedded
from wasmkilnd.redis.servers import NO_ANSWER, RedisLink
from wasmkilnd.redis_address import RedisAddress
from wasmkilnd.settings import Settings, object_store_url
from wasmkilnd.settings_loader import Decorator, load, options
from wasmkilnd.signing.keys import read_keys
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry import logs

# An artifact's key, or a module's digest.
Key: TypeAlias = "CacheKey | str"
# What ``--json`` prints.
Row: TypeAlias = "dict[str, Any]"
Shared: TypeAlias = "_Redis | _Objects"
Tier: TypeAlias = "_Redis | _Objects | _Host"
What: TypeAlias = Artifact | Module | ValueRejected
# Why nobody trusted vouches for a value, if so, the id of the key, and the size of the payload.
Signed: TypeAlias = tuple[model.Refusal | None, str, int]

_RANGE_BYTES, _CHUNK_BYTES = 1024 * 1024, 512 * 1024
_HEAD_BYTES = 8192  # Enough for the head of nearly every artifact.
_BATCH, _PAGE = 128, 1000
_TIMEOUT_S = 10.0  # Longer than in a daemon: no caller waits for the reply.
_LOADING_S = 60.0  # The embedded server listens before it has loaded its data.
_MAX_REPORTED = 20  # Values that are reported one by one: a store may hold any number.
_ADVICE = "; trust their key with `wasmkilnd keys trust`, or check that these are the right keys"


class BadValuesFound(Exception):  # noqa: N818 - an answer
    """The command succeeded and found bad values; the message says how many."""

    exit_code = 3


# ---- Commands and their options


def _shaped(pattern: str, words: str) -> Callable[[click.Context, click.Parameter, str], str]:
    def check(context: click.Context, parameter: click.Parameter, value: str) -> str:
        if (value or parameter.required) and not re.fullmatch(pattern, value):
            raise click.BadParameter(f"expected {words}")
        return value

    return check


_text: Callable[..., Decorator] = functools.partial(click.option, default="")
_flag: Callable[..., Decorator] = functools.partial(click.option, is_flag=True)
_HEX = _shaped("[0-9a-f]{4,64}", "4 to 64 hexadecimal digits")
_NAME = _shaped(NAMESPACE_NAME.pattern, "1 to 63 lowercase letters, digits and hyphens")
_URL = _shaped(
    "[a-z0-9]+://.*",
    "a URL, since there are no archives any more: name an existing directory as file:///DIR, or a"
    " bucket; `tar` packs and pipes a directory, as docs/how-to/cache.md shows",
)
_PLACE = click.argument("url", callback=_URL)
_ENGINE = _text("--engine", help="Of an engine: wasmtime-50.0.1, or wasmtime for all.")
_MODULE = _text("--module", callback=_HEX, help="Of a module: the beginning of its SHA-256.")
_SHARED = ["redis", "object_store"]
_tier = functools.partial(_text, "--tier", default="redis", help="Which tier; redis if not given.")
_TIER = _tier(type=click.Choice([*_SHARED, "host_store"]))
_SHARED_TIER = _tier(type=click.Choice(_SHARED))
_NAMESPACE = _text("--namespace", callback=_NAME, help="A namespace, if not the default one.")
_TOTALS = _flag("--totals", help="Print only the sums by engine and kind.")
_ALL = _flag("--all", "everything", help="Everything; needs --yes.")
_YES = _flag("--yes", help="Yes, everything.")
_PINNED = _flag("--pinned", help="What belongs to pinned modules, too.")
_DRY_RUN = _flag("--dry-run", help="Report only; delete nothing.")


@click.group()
def cache() -> None:
    """List, remove, verify and move the values of the cache that daemons share.

    Each command finds the cache as `serve` does, by the same flags, variables and file. With the
    embedded server, each works whether a daemon runs or not.
    """


def _command(*own: Decorator, verifies: bool = False, makes: bool = False) -> Callable[..., Any]:
    """Add a command, which gets the open tier.

    With ``verifies``, a key has to be trusted. With ``makes``, create the embedded server if there
    never was one.
    """

    def add(work: Callable[..., Awaitable[None]]) -> click.Command:
        @functools.wraps(work)
        def run(namespace: str, tier: str = "redis", **given: Any) -> None:
            settings = ready(load(given.pop("flags"), os.environ, given.pop("config")).settings)

            async def with_tier() -> None:
                where = settings, namespace, _sealer(settings, verifies=verifies)
                if tier == "host_store":
                    return await work(_Host(*where), **given)
                is_redis = tier == "redis"
                async with _redis(*where, makes=makes) if is_redis else _objects(*where) as opened:
                    return await work(opened, **given)

            asyncio.run(with_tier())

        command: Callable[..., Any] = run
        # What comes later shows earlier in the help.
        for option in (options, json_option, _NAMESPACE, *reversed(own)):
            command = option(command)
        return cache.command(work.__name__.removesuffix("_values"))(command)

    return add


# ---- Open a tier


def _interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt at once: asyncio's own handler would wait for the next await."""
    raise KeyboardInterrupt


def _sealer(settings: Settings, *, verifies: bool) -> Sealer:
    # Only errors: the command prints what an operator needs.
    logs.configure("text", "error", sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    keys = read_keys(settings)
    if verifies and not keys.trusted:
        why = f"no key is trusted here, and there is none in {settings.effective_keys_dir}"
        raise CannotUse(f"{why} (set --keys-dir or WASMKILN_TRUSTED_KEYS)")
    return Sealer(keys)


@contextlib.asynccontextmanager
async def _redis(
    settings: Settings, namespace: str, sealer: Sealer, *, makes: bool
) -> AsyncIterator[_Redis]:
    """Open the server that a daemon of these settings uses, and leave it as it was found."""
    url = settings.redis_url.get_secret_value()
    timeout_s = max(settings.redis_timeout_s, _TIMEOUT_S)
    server = embedded.EmbeddedServer(settings.state_dir, settings.embedded_redis_bytes)
    async with contextlib.AsyncExitStack() as opened:
        try:
            shared = embedded.SharedServer(url, redis_access(settings), server, timeout_s)
            if shared.link is None:
                raise CannotUse("there is no shared cache: WASMKILN_REDIS_URL is none")
            # Before the start, since an interrupted start has to be undone too.
            opened.push_async_callback(server.stop)
            opened.push_async_callback(shared.close)
            if not url:
                # Not is_dir: it raises without permission to look.
                if not makes and not os.path.isdir(embedded.server_folder(settings.state_dir)):  # noqa: PTH112, ASYNC240
                    why = "there is no cache yet: no daemon has run with the state directory"
                    raise TierUnavailable(f"{why} {settings.state_dir}")
                await server.start()
                with contextlib.suppress(TierUnavailable):
                    await shared.link.run(("EXISTS", b"loaded"))
                # A server that loads its data says so; one that does not answer hangs.
                if shared.link.why_down not in ("", NO_ANSWER):
                    ready_again = asyncio.create_task(shared.link.ready())
                    await asyncio.wait([ready_again], timeout=_LOADING_S)
            yield _Redis(settings, namespace, sealer, shared.link)
        except TierUnavailable as failure:
            where = f"Redis at {RedisAddress.parse(url)}" if url else "embedded Valkey"
            raise CannotUse(f"{where}: {failure}") from None


@contextlib.asynccontextmanager
async def _objects(
    settings: Settings, namespace: str, sealer: Sealer, url: str = ""
) -> AsyncIterator[_Objects]:
    """Open the object store at ``url``, or else that of the settings."""
    try:
        url = object_store_url(url)
    except ValueError as failure:
        raise CannotUse(f"cannot use the URL of an object store: {failure}") from None
    timeout_s = max(settings.object_store_timeout_s, _TIMEOUT_S)
    patient = settings.model_copy(update={"object_store_timeout_s": timeout_s})
    async with contextlib.AsyncExitStack() as opened:
        if (bucket := open_bucket(patient, url)) is None:
            raise CannotUse("there is no object store: WASMKILN_OBJECT_STORE_URL is none")
        opened.push_async_callback(bucket.close)
        try:
            yield _Objects(settings, namespace, sealer, bucket)
        except TierUnavailable as failure:  # Not of the tier that it is copied from or to.
            raise CannotUse(str(failure)) from None


# ---- What a tier does for the commands


class _Found(NamedTuple):
    """What verifying a value found."""

    name: bytes
    delete: Callable[[], Awaitable[bool]]
    # "artifacts" or "modules" if it is good, "gone" if it is not there any more, or why it is bad.
    what: str | ValueRejected = "gone"
    value: bytes = b""


class _Values:
    """What a namespace has in a tier that daemons share."""

    store: RedisStore | ObjectStore

    def __init__(self, settings: Settings, namespace: str, sealer: Sealer) -> None:
        self.where = settings, namespace, sealer
        self.bytes_read, self.limit_bytes, self.sealer = 0, settings.max_artifact_bytes, sealer
        self._prefix = settings.redis_prefix + (f"ns:{namespace}:" if namespace else "")
        self._pins, self._pinned = (settings.state_dir, namespace), set[str]()
        unused = "_metrics artifact_bytes module_bytes"  # By commands.
        self._more: Any = dict.fromkeys(unused.split())
        self._more["is_pinned"] = self._pinned.__contains__

    def _open(self, tail: values.Payload, size_bytes: int, key: Key) -> Opened:
        """Verify the head of a value, and that it is about ``key``."""
        opened = values.open_head(tail, self.sealer)
        if self.store.name_of(opened.what.key) != self.store.name_of(key):
            raise ValueRejected(Cause.WRONG_KEY, "the value belongs to another key")
        values.check_attestation(opened.what, self.sealer)
        if opened.stored_bytes != size_bytes:
            raise ValueRejected(Cause.FORMAT, "the value's length is not what its head says")
        return opened


class _Objects(_Values):
    """What a namespace has in an object store."""

    def __init__(self, settings: Settings, namespace: str, sealer: Sealer, bucket: Bucket) -> None:
        super().__init__(settings, namespace, sealer)
        self.store: ObjectStore = ObjectStore(bucket, prefix_of(self._prefix), sealer, **self._more)

    async def keys(self, engine: str = "", module: str = "") -> list[Key]:
        """Return the keys of chosen values, modules first."""
        return [key for key, _ in await self._listed(engine, module)]

    async def rows(self, engine: str, module: str) -> list[Row]:
        """Describe the chosen values by their names and sizes: nothing is read."""
        listed = await self._listed(engine, module)
        return [_blank(key, size_bytes, None) for key, size_bytes in listed]

    async def remove(self, engine: str, module: str, *, pinned: bool) -> Evicted:
        """Remove what one of ``engine`` and ``module`` chooses, or everything."""
        stay, gone = set() if pinned else pinned_in(*self._pins), Evicted()
        scope = model.EvictScope(spares=stay.__contains__)
        listed = await self._listed(engine, module)
        for start in range(0, len(listed), _PAGE):
            gone += await self.store.delete(listed[start : start + _PAGE], scope)
        return gone

    async def read(self, key: Key) -> _Found:
        """Read a value and verify it."""

        async def delete() -> bool:
            await self.store.remove(key)
            return True

        found = _Found(self.store.name_of(key).encode(), delete)
        try:
            data = await self.store.whole(key, values.most_stored_bytes(self.limit_bytes))
            if data is None:
                return found
            self.bytes_read += len(data)
            opened = self._open(data, len(data), key)
            return found._replace(what=_check(opened, data), value=bytes(data))
        except ValueRejected as bad:
            return found._replace(what=ValueRejected(bad.cause, bad.why))

    async def has(self, key: Key) -> bool:
        """Return whether a value is there."""
        return await self.store.size(key) is not None

    async def _listed(self, engine: str, module: str) -> Sequence[tuple[Key, int]]:
        pages = [
            page for kind in ("module", "compiled") async for page in self.store.pages(kind, module)
        ]
        return [each for page in pages for each in page if _is_of(_engine_of(each[0]), engine)]


class _Redis(_Values):
    """What a namespace has in Redis."""

    def __init__(self, settings: Settings, namespace: str, sealer: Sealer, link: RedisLink) -> None:
        super().__init__(settings, namespace, sealer)
        more = {"ttl_s": settings.cache_ttl_s, "reports_usage": False, **self._more}
        self.store: RedisStore = RedisStore(link, self._prefix, sealer, **more)

    async def keys(self, engine: str = "", module: str = "") -> list[Key]:
        """Return the keys of chosen values, modules first, each once."""
        pages = [page async for page in self.store.pages(module)]
        named = {self.store.name_of(key): key for page in pages for key in page}
        return [key for key in named.values() if _is_of(_engine_of(key), engine)]

    async def rows(self, engine: str, module: str) -> list[Row]:
        """Describe the chosen values by their heads."""
        rows, keys, anyone = [], await self.keys(engine, module), _Anyone(self.sealer.keys)
        for start in range(0, len(keys), _BATCH):
            some = keys[start : start + _BATCH]
            looked = await self.store.look(some, _HEAD_BYTES)
            for key, (stored_bytes, ttl_s, end) in zip(some, looked, strict=True):
                try:
                    tail = await self._tail(key, end)
                    opened = values.open_head(tail, anyone)
                    signed = anyone.refusal, values.stamped_by(tail), opened.size_bytes
                    rows.append(_row(key, opened.what, stored_bytes, ttl_s, signed))
                except ValueRejected as rejected:
                    rows.append(_row(key, rejected, stored_bytes, ttl_s))
        return [row for row in rows if row["stored_bytes"] >= 0]  # The others have gone.

    async def remove(self, engine: str, module: str, *, pinned: bool) -> Evicted:
        """Remove what one of ``engine`` and ``module`` chooses, or everything."""
        keys, gone = await self.keys(engine, module), Evicted()
        modules, engines = (set(map(_module_of, keys)), set(map(_engine_of, keys)))
        stay = set() if pinned else await self.store.kept(modules)
        for each in itertools.product(modules if module else [""], engines if engine else [""]):
            gone += await self.store.evict(model.EvictScope(*each, spares=stay.__contains__))
        return gone

    async def read(self, key: Key) -> _Found:
        """Read a value and verify it; twice if it fails, for a daemon may replace it."""
        name = self.store.name_of(key)
        for _ in range(2):
            [(size_bytes, _ttl_s, end)] = await self.store.look([key], _RANGE_BYTES)
            found = _Found(name, functools.partial(self._delete, key, end))
            if size_bytes < 0:
                break
            try:
                tail = await self._tail(key, end)
                opened, parts = self._open(tail, size_bytes, key), list[bytes]()
                for start in range(0, begins := size_bytes - len(tail), _RANGE_BYTES):
                    last = min(start + _RANGE_BYTES, begins) - 1
                    parts += await self.store.link.run(("GETRANGE", name, start, last))
                found = found._replace(value=b"".join((*parts, tail)))
                self.bytes_read += size_bytes
                return found._replace(what=_check(opened, found.value))
            except ValueRejected as bad:
                # Not the exception itself: its traceback holds the value.
                found = found._replace(what=ValueRejected(bad.cause, bad.why), value=b"")
        return found

    async def _delete(self, key: Key, end: bytes | None) -> bool:
        """Delete a value that still has the end that was read; return whether it had."""
        [(_, _, now)] = await self.store.look([key], _RANGE_BYTES)
        if is_same := now == end:
            await self.store.remove(key)
        return is_same

    async def has(self, key: Key) -> bool:
        """Return whether a value is there. If its module is pinned, what is stored stays."""
        [(there_bytes, _, _)] = await self.store.look([key])
        self._pinned.update(await self.store.kept([_module_of(key)]))
        return there_bytes >= 0

    async def _tail(self, key: Key, end: bytes | None) -> bytes:
        """Return the end of a value with its whole head, given some of it."""
        if end and values.head_bytes(end) > len(end):
            [(_, _, end)] = await self.store.look([key], values.head_bytes(end))
        return end or b""  # Also for a key that holds a list or the like.


class _Host:
    """What a namespace has in the host store of this machine."""

    def __init__(self, settings: Settings, namespace: str, sealer: Sealer) -> None:
        options, self.bytes_read = host_options(settings), 0
        if not options.limit_bytes:
            raise CannotUse("host_store_dir is none, or host_store_bytes is 0")
        self._options = replace(options, namespace=namespace)
        self._sealer, self._pins = sealer, (settings.state_dir, namespace)
        host_store.check_root(self._options.directory)

    async def rows(self, engine: str, module: str) -> list[Row]:
        """Describe the chosen entries."""
        rows = []
        for path, key, what in self._each(host_store.Entry.described):
            signed: Signed = (None, "", 0)
            if isinstance(what, Artifact):
                _, signer = peek(what.attestation) or (None, "")
                signed = self._sealer.verify(what, key), signer, what.size_bytes
            if what and key.module_sha256.startswith(module):
                rows.append(_row(key, what, host_store.measure(path)[0], None, signed))
        return [row for row in rows if row["stored_bytes"] and _is_of(row["engine"] or "", engine)]

    async def remove(self, engine: str, module: str, *, pinned: bool) -> Evicted:
        """Remove what one of ``engine`` and ``module`` chooses, or everything."""
        stay, gone = set() if pinned else pinned_in(*self._pins), Evicted()
        for row in await self.rows(engine, module):
            key = CacheKey(row["module"], row["fingerprint"])
            if key.module_sha256 in stay:
                gone += Evicted(pinned=1)
            elif host_store.remove_entry(self._options, key):
                gone += Evicted(artifacts=1, bytes=row["stored_bytes"])
        return gone

    async def check_all(self) -> AsyncIterator[_Found]:
        """Verify all entries that there are now."""

        def check(entry: host_store.Entry) -> Artifact:
            artifact = entry.verified(self._sealer)
            entry.check(artifact)
            self.bytes_read += artifact.size_bytes
            return artifact

        for path, key, what in self._each(check):
            delete = functools.partial(host_store.remove_entry, self._options, key)
            found = _Found(os.fsencode(path), functools.partial(asyncio.to_thread, delete))
            yield found._replace(what="artifacts" if isinstance(what, Artifact) else what or "gone")

    def _each(
        self, look: Callable[[host_store.Entry], Artifact]
    ) -> Iterator[tuple[Path, CacheKey, Artifact | ValueRejected | None]]:
        """Return what ``look`` says of each entry: what it is, why it is bad, None if gone."""
        try:
            for path, key in host_store.entries_in(self._options.directory):
                found: Artifact | ValueRejected | None = None
                for _ in range(2):  # A daemon may be replacing it.
                    try:
                        entry = host_store.open_entry(self._options, key)
                        found = look(entry) if entry else None
                        break
                    except ValueRejected as rejected:
                        found = ValueRejected(rejected.cause, rejected.why)  # Without its frames.
                yield path, key, found
        except OSError as failure:
            raise host_store.cannot("read an entry", failure) from None


def _is_of(engine_id: str, engine: str) -> bool:
    return not engine or engine in (engine_id, engine_id.rpartition("-")[0])


def _engine_of(key: Key) -> str:
    return "" if isinstance(key, str) else key.engine_id


def _module_of(key: Key) -> str:
    return key if isinstance(key, str) else key.module_sha256


def _check(opened: Opened, value: values.Payload) -> str:
    """Verify the payload of a whole value whose head is verified. Return what to count it as."""
    view = memoryview(value)
    values.check_frames(opened, (view[each.offset : each.ends] for each in opened.frames))
    return "artifacts" if isinstance(opened.what, Artifact) else "modules"


# ---- ls

_FIELDS = "what module fingerprint kind engine target cpu changed_settings raw_bytes stored_bytes"
_FIELDS += " expires_in_s finished_on signed_by trust unreadable"


@_command(_ENGINE, _MODULE, _TOTALS, _TIER)
async def ls(tier: Tier, engine: str, module: str, totals: bool, as_json: bool) -> None:
    """List all values: sizes, ages, engines, the keys that signed them, and sums by engine."""
    rows = await tier.rows(engine, module)
    # A module comes before its artifacts.
    rows.sort(key=lambda row: (row["module"], row["engine"] or "", row["fingerprint"] or ""))
    total = Counter(values=0, raw_bytes=0, stored_bytes=0)
    sums: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        bad = row["unreadable"]
        of = ("unreadable", bad["cause"]) if bad else (row["engine"] or row["what"], row["kind"])
        for each in (total, sums[of]):
            each.update(values=1, raw_bytes=row["raw_bytes"], stored_bytes=row["stored_bytes"])
    kinds = [{"what": what, "kind": kind, **sums[what, kind]} for what, kind in sorted(sums)]
    if as_json:
        for document in [{"values": kinds, "total": total}] if totals else rows:
            click.echo(json.dumps(document))
        return
    if rows and not totals:
        print_table(rows)
        click.echo()
    print_table([*kinds, {"what": "total", "kind": None, **total}])


class _Anyone(Sealer):
    """Lets heads be read whoever signed them, and keeps what is wrong with the last signature."""

    refusal: model.Refusal | None = None

    def check_stamp(self, message: bytes, stamp: bytes) -> None:
        """Accept it."""
        self.refusal = super().check_stamp(message, stamp)


def _row(
    key: Key, what: What, stored_bytes: int, ttl_s: int | None, signed: Signed = (None, "", 0)
) -> Row:
    """Return the row of a value; ``what`` is why it cannot be read, if it cannot."""
    if not isinstance(what, ValueRejected) and what.key != key:
        what = ValueRejected(Cause.WRONG_KEY, "the value belongs to another key")
    row = _blank(key, stored_bytes, ttl_s)
    if isinstance(what, ValueRejected):
        return row | {"unreadable": {"cause": what.cause.value, "why": what.why}}
    refusal, signer, raw_bytes = signed
    is_known = refusal and refusal.cause in (Cause.STRANGER.value, Cause.REVOKED.value)
    row["trust"] = (refusal.cause if is_known else "forged") if refusal else "trusted"
    row |= {"kind": what.kind.value, "raw_bytes": raw_bytes, "signed_by": signer}
    if isinstance(what, Artifact):
        attested, spec = peek(what.attestation), what.spec
        row["finished_on"] = attested[0].finished_on if attested else None
        row |= {"engine": spec.engine.id, "target": spec.target, "cpu": spec.cpu}
        row["changed_settings"] = dict(sorted(spec.changed_settings.items()))
    return row


def _blank(key: Key, stored_bytes: int, ttl_s: int | None) -> Row:
    """Return what is known of a value without reading it."""
    row: Row = dict.fromkeys(_FIELDS.split()) | {"changed_settings": {}, "raw_bytes": 0}
    row |= {"what": "module" if isinstance(key, str) else "artifact", "module": _module_of(key)}
    row |= {"fingerprint": getattr(key, "fingerprint", None), "engine": _engine_of(key) or None}
    return row | {"stored_bytes": stored_bytes, "expires_in_s": ttl_s}


# ---- rm


@_command(_ENGINE, _MODULE, _ALL, _YES, _PINNED, _TIER)
async def rm(tier: Tier, everything: bool, yes: bool, as_json: bool, **chosen: Any) -> None:
    """Remove a module with its artifacts, an engine's artifacts, or everything.

    What is pinned stays. Daemons keep what they have in memory and may store it again: `wasmkiln
    evict` removes values from every tier.
    """
    count = sum(map(bool, (chosen["engine"], chosen["module"], everything)))
    if count != 1 or (everything and not yes):
        raise click.UsageError("choose one of --module, --engine, and --all with --yes")
    _end("removed", asdict(await tier.remove(**chosen)), as_json=as_json)


# ---- scrub


@_command(_DRY_RUN, _TIER, verifies=True)
async def scrub(tier: Tier, dry_run: bool, as_json: bool) -> None:
    """Verify every value completely, and delete the bad ones.

    Daemons may run meanwhile. Exits with 0 if all values are good, and with 3 if some are bad.
    """
    bad = list[tuple[_Found, ValueRejected]]()
    done: Row = dict.fromkeys(("artifacts", "modules", "deleted", "gone", "other_format"), 0)
    done |= {"bad": Counter(), "dry_run": dry_run}
    if isinstance(tier, _Host):
        each = tier.check_all()
    else:
        each = (await tier.read(key) for key in await tier.keys())
    async for found in each:
        if isinstance(found.what, str):
            done[found.what] += 1
        elif found.what.cause is Cause.VERSION:
            done["other_format"] += 1
        else:
            bad.append((found, found.what))
    # If no value at all verifies, the keys at hand are most likely the wrong ones.
    of_strangers = any(rejected.cause is Cause.STRANGER for _, rejected in bad)
    done["kept_all"] = of_strangers and not done["artifacts"] + done["modules"]
    for found, rejected in bad:
        keep = done["kept_all"] and rejected.cause is Cause.STRANGER
        # If it is still the one that failed: a daemon may have replaced it.
        deleted = not (keep or dry_run) and await found.delete()
        name, cause = os.fsdecode(found.name), rejected.cause.value
        done["bad"][cause] += 1
        done["deleted"] += deleted
        why = "signed by an untrusted key, as all values are: kept" if keep else rejected.why
        told = {"name": name, "cause": cause, "why": why, "deleted": deleted}
        click.echo(json.dumps(told) if as_json else f"bad: {cell('bad', told)}")
    done["bytes_read"] = tier.bytes_read
    _end("summary", done, as_json=as_json)


# ---- export and import


@_command(_PLACE, _ENGINE, _MODULE, _SHARED_TIER, verifies=True)
async def export_values(tier: Shared, url: str, engine: str, module: str, as_json: bool) -> None:
    """Write all values that verify to URL: a bucket, or a directory as file:///DIR.

    Existing values stay. New ones get the names by which daemons look for them. With --engine,
    write the engine's artifacts and their modules. Exits with 3 if it left out bad values.
    """
    moved = _moved()
    async with _objects(*tier.where, url=url) as target:
        keys = await tier.keys(module=module)
        modules = {_module_of(key) for key in keys if _is_of(_engine_of(key), engine)}
        chosen = [key for key in keys if key in modules or _is_of(_engine_of(key), engine)]
        await _move(tier, chosen, target, moved)
    for signer in filter(None, map(tier.sealer.get, moved["signers"])):
        click.echo(f"trust this key where you import the values: {signer.hex}", err=True)
    _end("exported", moved, as_json=as_json)


@_command(_PLACE, _SHARED_TIER, verifies=True, makes=True)
async def import_values(tier: Shared, url: str, as_json: bool) -> None:
    """Store all values of URL, a bucket or a directory, as if they were made now.

    Each value is verified completely before it is stored, and keeps its signature. So first trust
    the key of the site that it comes from, with `wasmkilnd keys trust`. Exits with 3 if it left
    out bad values.
    """
    moved = _moved()
    try:
        async with _objects(*tier.where, url=url) as source:
            await _move(source, await source.keys(), tier, moved)
    except CannotUse as failure:
        before = f"{moved['artifacts'] + moved['modules']} values were imported before"
        raise CannotUse(f"cannot import {url}: {failure}; {before}") from None
    _end("imported", moved, as_json=as_json)


async def _move(source: Shared, keys: Sequence[Key], target: Shared, moved: Row) -> None:
    """Store what verifies of ``keys``, unless it is there, and count what became of each."""
    for key in keys:
        name, _, what, value = await source.read(key)
        if isinstance(what, ValueRejected):
            moved["refused"][what.cause.value] += 1
            if moved["refused"].total() <= _MAX_REPORTED:
                click.echo(one_line(f"left out: {os.fsdecode(name)}: {what}"), err=True)
            continue
        if value and await target.has(key):
            what = "kept"
        elif value:
            chunks = (value[at : at + _CHUNK_BYTES] for at in range(0, len(value), _CHUNK_BYTES))
            what = what if await target.store.store(key, chunks, len(value)) else "kept"
        moved[what] += 1
        if what in ("artifacts", "modules"):
            moved["stored_bytes"] += len(value)
            moved["signers"][values.stamped_by(value)] += 1


# ---- Count and print


def _moved() -> Row:
    # Only archives had duplicates.
    names = ("artifacts", "modules", "stored_bytes", "gone", "kept", "duplicates")
    return {**dict.fromkeys(names, 0), "signers": Counter(), "refused": Counter()}


def _end(done: str, counts: Row, *, as_json: bool) -> None:
    """Print a summary. Raise BadValuesFound if there are bad values."""
    text = json.dumps({done: counts}) if as_json else f"{done}: {cell(done, counts) or 'nothing'}"
    click.echo(text)
    bad: Counter[str] = counts.get("bad") or counts.get("refused") or Counter()
    # Values in another format are no bad values: other daemons can read them.
    if bad.total() > bad[Cause.VERSION.value]:
        causes = ", ".join(f"{count} {cause}" for cause, count in bad.most_common())
        raise BadValuesFound(f"bad values: {causes}{_ADVICE if bad[Cause.STRANGER.value] else ''}")
