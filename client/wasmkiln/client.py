"""The client of a daemon: each method once, as a coroutine that `Client` runs without a loop.

What waits, reads files or uses the CPU is behind `_send`, `_pause` and `_away`. Those of `Client`
block, so that its coroutines end at their first step; those of `AsyncClient` (aio.py) are awaited.
Nothing that a daemon sends is believed without a check: see assembly.py.

How `module` finds a module, by the shortest way that works:

1. loaded before by this client      nothing but a look into a dictionary
2. the host store of this machine    no call; the engine maps the file
3. the daemon                        it names a file of its host store, or sends the bytes
4. the engine of this process        only with fallback="compile"
   the daemon, for pulley64          only with fallback="portable"

A step that fails for a reason that the next one can heal is a miss, which the logger "wasmkiln"
mentions at the level DEBUG; that the fourth is taken, it mentions as a warning.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from wasmkiln import errors, loading, rpc
from wasmkiln._header_fields import Call
from wasmkiln._source import identify
from wasmkiln._untrusted import one_line, quoted
from wasmkiln.assembly import ZSTD, Assembly, package
from wasmkiln.attestation import TrustedKeys
from wasmkiln.credentials import Access, Connection, choose_switch, explained, is_local
from wasmkiln.host_store import HostStore
from wasmkiln.host_store import Refused as FileRefused
from wasmkiln.loading import Loaded, LoadedModules, compile_within, load_verified
from wasmkiln.shared import is_digest, parse_bytes
from wasmkiln.upload import Messages, Upload
from wasmkiln.v1 import admin_service_pb2 as admin
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1.types_pb2 import ArtifactKey

if TYPE_CHECKING:
    from typing import Concatenate, Literal, Protocol, Self, TypedDict, Unpack

    from google.protobuf.message import Message

    from wasmkiln._source import Source
    from wasmkiln.artifact import Artifact
    from wasmkiln.assembly import ProgressCallback
    from wasmkiln.attestation import KeySource
    from wasmkiln.credentials import TLS, Metadata
    from wasmkiln.host_store import CheckFiles, Entry
    from wasmkiln.loading import Engine, Kind
    from wasmkiln.v1.types_pb2 import ArtifactHeader

    Sink = rpc.One[Any] | Assembly

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="Sink")
S_co = TypeVar("S_co", covariant=True)
A_co = TypeVar("A_co", covariant=True)
Settings = Mapping[str, str | bool | int] | None

_log = logging.getLogger("wasmkiln")

# A year. gRPC counts nanoseconds in 64 bits, and reads a number that does not fit as the past.
MAX_TIMEOUT_S = 365 * 24 * 3600
# Four times the default limit of a daemon.
DEFAULT_MAX_ARTIFACT_BYTES = 1024**3

# The daemon refuses more keys in one call, and more bytes; see FindMissing in module_service.proto.
FIND_MISSING_KEYS = 10_000
FIND_MISSING_BYTES = 2 * 1024 * 1024
# How long a client that could not open a file which the daemon named asks for bytes.
_NO_FILES_S = 60.0
# How long a call whose caller has fast code already may look for optimised code.
_LOOK_S = 5.0
# How often a daemon is asked for what is no code.
_ASKED_TIMES = 3
_ADVICE = "pass the `settings` that `into` was made with, or leave out `into`"
_HEALTH = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
# What arguments were called until 0.7. These names still work.
_OLD_NAMES = {"module_sha256": "module", "everything": "all"}
# Why a file of the host store is not used.
_MISSES = (FileRefused, errors.IncompatibleEngine, OSError)


class Method(Generic[S_co, A_co]):
    """A method of both clients: `Client` returns what the coroutine does, `AsyncClient` awaits."""

    def __init__(self, flow: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        @wraps(flow)
        def run(client: Any, *arguments: Any, **options: Any) -> Any:
            for old, name in _OLD_NAMES.items():
                if value := options.pop(old, None):
                    options[name] = value
                    if old == "module_sha256" and not is_digest(value):
                        raise ValueError("module_sha256 is 64 lowercase hexadecimal digits")
            return client._run(flow(client, *arguments, **options))

        self._run: Any = run

    @overload
    def __get__(self, client: None, owner: Any) -> Callable[..., Any]: ...
    @overload
    def __get__(self, client: Client, owner: Any) -> S_co: ...
    @overload
    def __get__(self, client: Methods, owner: Any) -> A_co: ...
    def __get__(self, client: Methods | None, owner: Any) -> Any:
        """Return the method of a client."""
        return self._run.__get__(client, owner)


def method(
    flow: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Method[Callable[P, T], Callable[P, Coroutine[Any, Any, T]]]:
    """Make a method of a coroutine that has one type of results."""
    return Method(flow)


if TYPE_CHECKING:
    # The type of a loaded module follows from that of `into`.
    class How(TypedDict, total=False):
        engine: str | None
        target: str | None
        cpu: str | None
        settings: Settings
        fallback: Literal["compile", "portable"] | None
        accept_fast: bool
        timeout_s: float | None

    class _Module(Protocol):
        @overload
        def __call__(
            self, source: Source, *, into: Engine, kind: type[Kind] = ..., **how: Unpack[How]
        ) -> Kind: ...
        @overload
        def __call__(
            self, source: Source, *, into: Any = None, kind: Any = None, **how: Unpack[How]
        ) -> Any: ...

    class _AsyncModule(Protocol):
        @overload
        async def __call__(
            self, source: Source, *, into: Engine, kind: type[Kind] = ..., **how: Unpack[How]
        ) -> Kind: ...
        @overload
        async def __call__(
            self, source: Source, *, into: Any = None, kind: Any = None, **how: Unpack[How]
        ) -> Any: ...


class Methods(ABC):
    """What `Client` and `AsyncClient` have in common: arguments, methods and errors."""

    def __init__(
        self,
        address: str | None = None,
        *,
        profile: str | None = None,
        tls: TLS | bool | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        token_over_plaintext: bool | None = None,
        namespace: str | None = None,
        timeout_s: float | None = None,
        max_attempts: int | None = None,
        trusted_keys: TrustedKeys | KeySource | Iterable[KeySource] | None = None,
        max_artifact_bytes: int | str | None = None,
        host_store_dir: str | os.PathLike[str] | None = None,
        check_files: CheckFiles | None = None,
        compression: bool | None = None,
    ) -> None:
        if max_attempts is not None and max_attempts < 1:
            raise ValueError("max_attempts has to be at least 1, or None")
        self._access = Access.choose(
            address, profile, tls, token, token_file, token_over_plaintext, namespace
        )
        self._connection = Connection(self._access)
        self._timeout_s = choose_timeout_s(timeout_s)
        self._max_attempts = max_attempts
        if trusted_keys is None:
            trusted_keys = self._access.trusted_keys or None
        keys = TrustedKeys.choose(trusted_keys)
        max_bytes = choose_max_artifact_bytes(max_artifact_bytes)
        self._assembly = partial(Assembly, max_bytes=max_bytes, trusted_keys=keys)
        self._encodings = choose_encodings(compression, self._access.address)
        self._store = HostStore(host_store_dir, self._access.namespace, check_files, keys)
        self._loaded = LoadedModules()
        self._loading: dict[Any, Future[Any]] = {}
        self._no_files_until_s = 0.0

    @property
    def address(self) -> str:
        """The daemon's address."""
        return self._access.address

    @method
    async def load(
        self,
        source: Source,
        *,
        expected_sha256: str | None = None,
        engine: str | None = None,
        background: bool = False,
        timeout_s: float | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> modules.LoadResponse:
        """Upload a module, which the daemon validates and stores: the RPC Load. Idempotent.

        It loads into no engine and compiles nothing: for a module to run, call `module`.

        `source` is a path or the module's bytes. `background` lets calls without it go first.
        What is larger than 8 MiB goes in pieces: an upload that was cut goes on where it stood, in
        this call or, for ten minutes, in the next one. `on_progress` is called in this thread.

        Raise OSError when the path cannot be read, and NotWasm, ModuleTooLarge, DigestMismatch,
        ModuleInvalid, EngineUnknown, EngineLacksFeature, CompileTimeout, CompileMemoryLimit,
        CompilerCrashed or, for a component, ModuleQuarantined.
        """
        deadline = self._deadline(timeout_s)
        wanted = await self._wanted(source, engine, None, None, None)
        about = _about(sha256 := wanted.module_sha256, background=background)
        if wanted.size_bytes is None:
            raise ValueError("load needs a module's bytes or path; a digest has no bytes")
        upload = Upload(wanted, on_progress)
        if upload.is_large and expected_sha256 not in (None, sha256):
            raise errors.DigestMismatch(
                f"the module has the SHA-256 {sha256}, not {quoted(str(expected_sha256))}",
                metadata={"expected_sha256": str(expected_sha256), "actual_sha256": sha256},
            )

        async def once() -> modules.LoadResponse:
            if answer := await self._upload(upload, deadline, about):
                return answer
            wasm = await self._away(wanted.read)
            load = modules.LoadRequest(module=wasm, expected_sha256=expected_sha256, engine=engine)
            taking = rpc.One(modules.LoadResponse)
            return (await self._once(load, taking, deadline, about)).message()

        answer = await self._again(once, deadline, None, upload)
        if (answer.sha256, answer.size_bytes) != (sha256, wanted.size_bytes):
            raise errors.UnexpectedAnswer(
                f"loaded module {sha256} of {wanted.size_bytes} bytes, and the daemon's answer is "
                f"about {quoted(answer.sha256) or 'none'} of {answer.size_bytes} bytes"
            )
        return answer

    @method
    async def compile(
        self,
        source: Source,
        *,
        engine: str | None = None,
        target: str | None = None,
        cpu: str | None = None,
        settings: Settings = None,
        into: Any = None,
        skip_cache_lookup: bool = False,
        omit_artifact: bool = False,
        accept_fast: bool = False,
        background: bool = False,
        timeout_s: float | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Artifact:
        """Return a module's artifact, compiled now or before, with its digest verified.

        `source` is a path, the module's bytes, or its SHA-256 as 64 lowercase hexadecimal
        digits. The client asks by digest first, and uploads the module only when the daemon
        does not have it. The daemon has a default for every argument left out. With
        `skip_cache_lookup` the daemon compiles even if a tier holds the artifact. With
        `omit_artifact` the result has a header and no bytes. `background`, for warming, lets
        calls without it go first, until one of those asks for the same artifact. With
        `accept_fast` the artifact may be one of the engine's fast compiler (`header.is_fast`),
        while the daemon compiles the optimised one: ask again later. `on_progress`
        is called in this thread.

        Raise OSError when the path cannot be read, ModuleNotLoaded for an unknown digest,
        ArtifactMismatch when the artifact differs from the call or from its header,
        AttestationInvalid when there are trusted keys and none of them signed it, the errors of
        `load` but DigestMismatch, and TargetUnsupported, SettingUnknown, ModuleQuarantined or
        ArtifactTooLarge (the limit of the daemon, or `max_artifact_bytes`).
        """
        deadline = self._deadline(timeout_s)
        asked = engine, target, cpu, settings, into
        wanted = await self._wanted(source, *asked, accept_fast=accept_fast)
        request = wanted.request
        request.skip_cache_lookup, request.omit_artifact = skip_cache_lookup, omit_artifact
        return await self._obtain(wanted, deadline, None, background, on_progress)

    @cast("Callable[..., Method[_Module, _AsyncModule]]", Method)
    async def module(
        self,
        source: Source,
        *,
        engine: str | None = None,
        target: str | None = None,
        cpu: str | None = None,
        settings: Settings = None,
        into: Any = None,
        kind: type[Any] | None = None,
        fallback: Literal["compile", "portable"] | None = None,
        accept_fast: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """Return a module, loaded into an engine of this process and ready to instantiate.

        Return what this client loaded before; else map the artifact's file in this machine's
        host store, without a call; else ask the daemon for a file to map, or for the bytes.
        With `fallback="compile"`, compile in this process when the daemon cannot be reached, does
        not answer or shuts down; it gets one attempt and half of the time. With
        `fallback="portable"`, ask for code for `pulley64`, which wasmtime interprets, 10 to 20
        times slower than native code, when native code cannot be had: the daemon raises
        TargetUnsupported, or what it sends is for another architecture or system, or needs
        features that this CPU lacks. That code has the default cpu of its target, and stands in: a
        later call, at most one in ten minutes, looks for native code. Leave out `into`. Any other
        failure is raised.
        After `timeout_s` the call raises DeadlineExceeded, but the compile goes on in its thread.

        The arguments are those of `compile`, but the engine is that of `into`, a
        `wasmtime.Engine` or `wasmer.Store`, or else wasmtime where it is installed, or wasmer; of
        several versions that the host store knows, the newest that this process can load.
        Without `into`, `wasmkiln.engine_of(module)` is the engine, to make a Store with. `kind` is
        the type that the caller expects, such as `wasmtime.component.Component`: for another one,
        raise TypeError. The client keeps the 128 modules used last, and digests of unchanged files.
        With `accept_fast` and without `into`, the code may be a fast compiler's; a later call, at
        most one a second, looks for the optimised code, and returns that.

        Loading is running code: see `check_files`. Raise the errors of `compile` and `load`.
        """
        if fallback not in (None, "compile", "portable"):
            raise ValueError(f"fallback is 'compile', 'portable' or None, not {fallback!r}")
        portable = fallback == "portable"
        if (accept_fast or portable) and into is not None:
            what = "accept_fast" if accept_fast else "fallback='portable'"
            raise ValueError(
                f"with {what} the engine depends on the artifact: leave out `into`, and use "
                "wasmkiln.engine_of(module)"
            )
        # The engine of `into` says itself which version and settings it needs.
        named, engine = engine, engine or loading.engine_name(into)
        deadline = self._deadline(timeout_s)
        asked = named if loading.shown_by(into) else engine, target, cpu, settings, into
        wanted = await self._wanted(source, *asked, accept_fast=accept_fast)
        key = (wanted.module_sha256, engine, target, cpu, *sorted(wanted.settings.items()))
        wanted.must_run = fallback != "compile"
        look = partial(self._loaded.get, key, into, accept_fast, portable)
        if (held := look()) and not held.look_again():
            return loading.expected(kind, held.module)

        async def load() -> Any:
            if (meanwhile := look()) and meanwhile is not held:
                return meanwhile.module
            try:
                loaded = await self._from_store(wanted)
                if loaded is None:
                    if not wanted.compatibility:
                        wanted.engine = self._store.engine_id(engine, loading.fits)
                    if held or accept_fast:
                        loaded = await self._better(wanted, deadline, held)
                if loaded is None and fallback == "compile":
                    loaded = await self._from_daemon_or_here(wanted, deadline, engine)
                loaded = loaded or await self._from_daemon(wanted, deadline)
            except errors.WasmkilnError as failure:
                # Where versions or settings differ, portable code would not help.
                if not (portable and loading.is_unfit(failure)):
                    raise
                loaded = held or await self._portable(wanted, deadline, failure)
            return self._loaded.put(key, into, loaded)

        options = fallback, accept_fast, wanted.size_bytes is None
        module = await self._together((key, id(into), options), deadline, load)
        return loading.expected(kind, module)

    @method
    async def host_file(
        self,
        source: Source,
        *,
        engine: str | None = None,
        target: str | None = None,
        cpu: str | None = None,
        settings: Settings = None,
        timeout_s: float | None = None,
    ) -> Path:
        """Return the path of a module's artifact in this machine's host store.

        It was checked as `check_files` says; docs/how-to/host-store.md says how to open it. The
        daemon compiles what is not there yet. Raise the errors of `compile`, and
        HostFileUnavailable.
        """
        if self._store.is_off:
            why_not = "its host_store_dir, or WASMKILN_HOST_STORE_DIR, is 'none'"
            raise errors.HostFileUnavailable(
                f"this client uses no host store: {why_not}", metadata={"cause": "switched_off"}
            )
        deadline = self._deadline(timeout_s)
        wanted = await self._wanted(source, engine, target, cpu, settings)
        opening = partial(self._store.open, wanted, lambda *_: True)
        try:
            return await self._away(partial(self._path_of, opening))
        except _MISSES as why:
            _log.debug("not from the host store: %s", why)
        # Where the daemon has no file, its bytes would be of no use.
        wanted.request.accept_host_file = wanted.request.omit_artifact = True
        header = (await self._obtain(wanted, deadline)).header
        opening = partial(self._open_answered, wanted, header)
        try:
            return await self._away(partial(self._path_of, opening))
        except _MISSES as why:
            detail = one_line(str(why))
            cause = "refused" if header.HasField("host_file") else "not_named"
            raise errors.HostFileUnavailable(
                f"the daemon at {self.address} has the artifact of {header.size_bytes:,} bytes, "
                f"and this client has no file of it: {detail}",
                metadata={"cause": cause, "detail": detail},
            ) from why

    @method
    async def stats(self, *, timeout_s: float | None = None) -> modules.StatsResponse:
        """Return the daemon's counters since its start, and percentiles of its latest calls."""
        return await self._ask(modules.StatsRequest(), modules.StatsResponse, timeout_s)

    @method
    async def capabilities(
        self, *, timeout_s: float | None = None
    ) -> modules.GetCapabilitiesResponse:
        """Return the engines, targets, cpus, settings and limits of the daemon."""
        request = modules.GetCapabilitiesRequest()
        return await self._ask(request, modules.GetCapabilitiesResponse, timeout_s)

    @method
    async def find_missing(
        self, keys: Iterable[ArtifactKey | str], *, timeout_s: float | None = None
    ) -> list[ArtifactKey]:
        """Return the keys whose artifact no tier holds, in the order given.

        A digest stands for the default engine's artifact. The client asks in batches of as many
        keys as the daemon allows. Raise EngineUnknown, TargetUnsupported or SettingUnknown.
        """
        deadline = self._deadline(timeout_s)
        missing: list[ArtifactKey] = []
        for request in _in_batches(keys):
            answer = await self._ask(request, modules.FindMissingResponse, deadline)
            asked = iter(request.keys)
            for named in answer.missing:
                if named not in asked:  # which takes what comes before it: the order counts
                    name = quoted(named.module_sha256) or "none"
                    raise errors.UnexpectedAnswer(
                        f"the daemon reports a missing key that was not asked about: module {name}"
                    )
                missing.append(named)
        return missing

    @method
    async def evict(
        self,
        module: Source | None = None,
        *,
        engine: str | None = None,
        all: bool = False,  # noqa: A002 - the contract's name
        tier: Literal["memory", "host_store", "redis", "object_store"] | None = None,
        timeout_s: float | None = None,
    ) -> admin.EvictResponse:
        """Remove the artifacts of a module, of an engine, or all, from one tier or from every one.

        `module` is a path, bytes or a digest. What is pinned stays, and is counted in `pinned`; for
        a pinned module, raise ModulePinned. Raise OSError when the path cannot be read, and
        ValueError unless exactly one of the three scopes is given.
        """
        scope = await self._scope(module, engine=engine, all=all)
        request = admin.EvictRequest(tier=f"TIER_{(tier or 'unspecified').upper()}", **scope)
        return await self._ask(request, admin.EvictResponse, timeout_s)

    @method
    async def quarantined(self, *, timeout_s: float | None = None) -> admin.ListQuarantineResponse:
        """Return the modules that the daemon refuses because they broke a compiler."""
        request = admin.ListQuarantineRequest()
        return await self._ask(request, admin.ListQuarantineResponse, timeout_s)

    @method
    async def release(
        self,
        module: Source | None = None,
        *,
        all: bool = False,  # noqa: A002 - the contract's name
        timeout_s: float | None = None,
    ) -> admin.ReleaseQuarantineResponse:
        """Release one module, or every one, from quarantine, and forget its failures.

        `module` is a path, bytes or a digest. Raise OSError when the path cannot be read, and
        ValueError unless exactly one scope is given.
        """
        scope = await self._scope(module, all=all)
        request = admin.ReleaseQuarantineRequest(**scope)
        return await self._ask(request, admin.ReleaseQuarantineResponse, timeout_s)

    @method
    async def jobs(self, *, timeout_s: float | None = None) -> admin.ListJobsResponse:
        """Return what the daemon's engines work on, and what waits for them."""
        return await self._ask(admin.ListJobsRequest(), admin.ListJobsResponse, timeout_s)

    @method
    async def end_job(self, id: str, *, timeout_s: float | None = None) -> admin.EndJobResponse:  # noqa: A002 - the contract's name
        """End a job that `jobs` lists. Whoever waits for it gets JobEnded.

        The answer has the job as it was, or none if there is none of this id any more.
        """
        return await self._ask(admin.EndJobRequest(id=id), admin.EndJobResponse, timeout_s)

    @method
    async def pin(
        self,
        module: Source | None = None,
        *,
        timeout_s: float | None = None,
    ) -> admin.PinResponse:
        """Keep a module and all of its artifacts, now and later, whatever else needs room.

        `module` is a path, bytes or a digest. Raise ModuleNotLoaded if no tier knows the module,
        PinsFull if there are too many pins, and OSError when the path cannot be read.
        """
        request = admin.PinRequest(**await self._scope(module))
        return await self._ask(request, admin.PinResponse, timeout_s)

    @method
    async def unpin(
        self,
        module: Source | None = None,
        *,
        timeout_s: float | None = None,
    ) -> admin.UnpinResponse:
        """Unpin a module: its entries live as long as others from now on.

        `module` is a path, bytes or a digest. Raise OSError when the path cannot be read.
        """
        request = admin.UnpinRequest(**await self._scope(module))
        return await self._ask(request, admin.UnpinResponse, timeout_s)

    @method
    async def pins(self, *, timeout_s: float | None = None) -> admin.ListPinsResponse:
        """Return the pinned modules, and what each tier has of them."""
        return await self._ask(admin.ListPinsRequest(), admin.ListPinsResponse, timeout_s)

    @method
    async def drain(
        self, grace_s: float | None = None, *, timeout_s: float | None = None
    ) -> admin.DrainResponse:
        """End the daemon, as SIGTERM does. Return at once, before it has ended.

        New calls then raise ServerDraining. Running calls have `grace_s` seconds to finish;
        without it, the daemon's own shutdown_grace_s. A second call can only shorten the time:
        0 ends them at once. Raise ValueError for a negative grace.
        """
        request = admin.DrainRequest()
        if grace_s is not None:
            if not 0 <= grace_s <= MAX_TIMEOUT_S:
                raise ValueError("grace_s is a number of seconds, 0 or more")
            request.grace.FromNanoseconds(int(grace_s * 1e9))
        return await self._ask(request, admin.DrainResponse, timeout_s)

    @method
    async def undo_drain(self, *, timeout_s: float | None = None) -> admin.UndoDrainResponse:
        """Have a daemon that drains accept calls again.

        Raise ServerDraining where it is too late: no call runs any more, the grace is over, or a
        signal ends the daemon.
        """
        return await self._ask(admin.UndoDrainRequest(), admin.UndoDrainResponse, timeout_s)

    @method
    async def health(self, service: str = "", *, timeout_s: float | None = None) -> str:
        """Return the health of the daemon or of one service: "SERVING", "NOT_SERVING", …

        Raise WasmkilnError with the code NOT_FOUND for a service that the daemon does not have.
        """
        from google.protobuf.wrappers_pb2 import Int32Value, StringValue

        # On the wire, HealthCheckRequest{string service = 1} and HealthCheckResponse{enum status
        # = 1} look like these, so the client needs no other package.
        health = "/grpc.health.v1.Health/Check"
        asked = StringValue(value=service)
        status = (await self._ask(asked, Int32Value, timeout_s, path=health)).value
        return _HEALTH[status] if 0 <= status < len(_HEALTH) else f"STATUS_{status}"

    def _deadline(self, timeout_s: float | None) -> rpc.Deadline:
        return rpc.Deadline(self._timeout_s if timeout_s is None else choose_timeout_s(timeout_s))

    async def _scope(self, module: Source | None, **others: Any) -> dict[str, Any]:
        """Return the field that says what a call is about. Raise ValueError unless it is one."""
        given = {"module": module, **others}
        scope = {name: value for name, value in given.items() if value}
        if len(scope) != 1:
            raise ValueError(f"give exactly one of {', '.join(given)}")
        if source := scope.get("module"):
            return {"module_sha256": (await self._away(partial(identify, source)))[0]}
        return scope

    async def _ask(
        self,
        request: Message,
        kind: type[rpc.M],
        deadline: rpc.Deadline | float | None,
        path: str = "",
    ) -> rpc.M:
        """Call the method that takes this and answers with a message of this kind; return that."""
        until = deadline if isinstance(deadline, rpc.Deadline) else self._deadline(deadline)
        about = _about(getattr(request, "module_sha256", ""))

        async def once() -> rpc.M:
            return (await self._once(request, rpc.One(kind), until, about, path)).message()

        # Whoever asks how a daemon is wants to hear soon that it is away.
        is_of_code = kind is modules.FindMissingResponse
        return await self._again(once, until, None if is_of_code else _ASKED_TIMES)

    async def _once(
        self,
        request: Message | Messages,
        sink: S,
        deadline: rpc.Deadline,
        metadata: Metadata,
        path: str = "",
    ) -> S:
        """Call a method. Return the sink of its answer, or raise what its failure stands for."""
        import grpc

        access = self._access
        call: Any = {"metadata": metadata + access.metadata() + rpc.traced()}
        call["timeout"] = deadline.remaining_s()  # with no time left, grpc fails at once
        call["wait_for_ready"] = deadline.waits
        start_s, path = time.monotonic(), path or _path_of(type(request))  # type: ignore[arg-type]
        try:
            if callable(request):
                await self._send_in_pieces(path, request, sink, **call)
            else:
                await self._send(path, request.SerializeToString(), sink, **call)
            _log.debug("%s took %.3f s", path, time.monotonic() - start_s)
            return sink
        except grpc.RpcError as failure:
            error = rpc.error_from_rpc(failure, access.address, deadline.timeout_s)
        _log.debug("%s failed after %.3f s: %s", path, time.monotonic() - start_s, error)
        # Outside of the except block: otherwise the error would keep the RpcError alive.
        raise error

    async def _again(
        self,
        once: Callable[[], Coroutine[Any, Any, T]],
        deadline: rpc.Deadline,
        max_attempts: int | None = None,
        *moving: Upload | Assembly,
    ) -> T:
        """Do it once, and again where the error allows that. Return what it returns.

        Pauses grow until more of a module or an artifact has arrived than ever before. Raise the
        WasmkilnError of the last attempt, or of one that no other can heal. Where the deadline
        ends an attempt that brought nothing, raise the error before it, which says more.
        """
        attempt = moved_bytes = 0
        before: errors.WasmkilnError | None = None
        most = min(max_attempts or sys.maxsize, self._max_attempts or sys.maxsize)
        told = most < sys.maxsize  # soon over
        while True:
            attempt += 1
            try:
                return await once()
            except errors.WasmkilnError as failure:
                error = failure
            before_bytes, moved_bytes = moved_bytes, sum(each.moved_bytes for each in moving)
            if moved_bytes > before_bytes:
                attempt, before = 0, None
            if before and isinstance(error, errors.DeadlineExceeded):
                error = before
            pause_s, left_s = rpc.pause_s(error, attempt or 1), deadline.remaining_s()
            if attempt >= most or pause_s is None or pause_s >= left_s:
                if isinstance(error, errors.ConnectionFailed):
                    error = await self._away(partial(explained, error, self._access, left_s))
                raise error
            if not told:  # once, however often it fails
                told, what = True, (self.address, error.reason or error.code.name, left_s)
                _log.info("no answer yet from %s (%s): trying again for up to %.0f s", *what)
            before = error
            # gRPC connects while a call waits for it: between calls it looks every 5 s only.
            deadline.waits = most == sys.maxsize and isinstance(error, errors.ConnectionFailed)
            await self._pause(pause_s)

    async def _wanted(
        self,
        source: Source,
        engine: str | None,
        target: str | None,
        cpu: str | None,
        settings: Settings,
        into: Any = None,
        *,
        accept_fast: bool = False,
    ) -> Call:
        """Hash the source, unless it is a file whose digest this process knows."""
        sha256, module, kind, size_bytes = await self._away(partial(identify, source))
        asked = (engine or "", target or "", cpu or "", _texts(settings))
        shown = loading.shown_by(into)
        return Call(sha256, kind, *asked, accept_fast, source, module, size_bytes, into, shown)

    async def _obtain(
        self,
        wanted: Call,
        deadline: rpc.Deadline,
        max_attempts: int | None = None,
        background: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> Artifact:
        """Ask by digest; send the module if the daemon lacks it. Go on where an attempt was cut."""
        request, about = wanted.request, _about(wanted.module_sha256, background=background)
        request.accept_encodings[:] = self._encodings
        artifact = self._assembly(wanted, on_progress=on_progress)
        upload = Upload(wanted, on_progress)

        async def ask() -> Artifact:
            artifact.begin()
            try:
                return (await self._once(request, artifact, deadline, about)).finish()
            except errors.CompatibilityUnknown:
                if request.compatibility == wanted.compatibility:
                    raise
            request.compatibility = wanted.compatibility
            return (await self._once(request, artifact, deadline, about)).finish()

        async def once() -> Artifact:
            request.sha256 = wanted.module_sha256
            try:
                return await ask()
            except errors.ModuleNotLoaded:
                if wanted.size_bytes is None:
                    raise
            if await self._upload(upload, deadline, about):
                # Where no tier takes so large a module, it has to come with the request.
                with suppress(errors.ModuleNotLoaded):
                    return await ask()
            wasm: bytes | None = await self._away(wanted.read)
            request.module = wasm or b""
            return await ask()

        found = await self._again(once, deadline, max_attempts, upload, artifact)
        told = found.origin.name.lower(), upload.moved_bytes, artifact.moved_bytes
        _log.debug("artifact from %s: %d bytes sent in pieces, %d received", *told)
        return found

    async def _upload(
        self, upload: Upload, deadline: rpc.Deadline, about: Metadata
    ) -> modules.LoadResponse | None:
        """Send what the daemon lacks of a large module. Return None where one message does it."""
        path, query = _path_of(modules.UploadRequest), _path_of(modules.QueryUploadRequest)

        async def go_on() -> None:
            held = rpc.One(modules.QueryUploadResponse)
            await self._once(upload.query, held, deadline, about, query)
            upload.go_on(held.message().held_bytes)

        upload.told(upload.held_bytes)
        if not upload.is_large:
            return None
        try:
            await go_on()
        except errors.WasmkilnError as failure:
            if failure.code.name == "UNIMPLEMENTED":  # by an older daemon
                return None
            raise
        try:
            await self._once(upload.messages, upload, deadline, about, path)
            return upload.message().loaded
        except errors.WasmkilnError as failure:
            error = failure
        if isinstance(error, errors.DigestMismatch) and upload.call.module is None:
            raise upload.call.changed()
        if rpc.pause_s(error, 1) is not None:  # whether it got further, only the daemon knows
            with suppress(errors.WasmkilnError):
                await self._again(go_on, deadline, 2)
        raise error

    async def _together(
        self,
        key: tuple[Any, ...],
        deadline: rpc.Deadline,
        load: Callable[[], Coroutine[Any, Any, Any]],
    ) -> Any:
        """Load a module, or return what a call loads that came before with the same key.

        Its error reaches all who wait. But if it was cancelled, or more time may help, the next of
        them loads.
        """
        mine: Future[Any] = Future()
        mine.set_running_or_notify_cancel()  # a task that waits for it cannot cancel it
        while (first := self._loading.setdefault(key, mine)) is not mine:
            await self._wait_for(first, deadline.remaining_s())
            if not first.done():
                raise errors.DeadlineExceeded(
                    f"another call loads this module, and did not end in {deadline.timeout_s:g} s"
                )
            outcome = first.result()
            if isinstance(outcome, errors.WasmkilnError):
                raise outcome
            if outcome is not None:
                return outcome
        outcome = None
        try:
            outcome = await load()
            return outcome
        except errors.WasmkilnError as error:
            is_late = isinstance(error, errors.DeadlineExceeded)
            outcome = None if is_late or rpc.pause_s(error, 1) is not None else error
            raise
        finally:
            del self._loading[key]
            mine.set_result(outcome)

    async def _from_store(self, wanted: Call, *, fast: bool = False) -> Loaded | None:
        opening = partial(self._store.open, wanted, loading.fits, fast=fast)
        return await self._away(partial(self._load_opened, opening, wanted))

    async def _better(
        self, wanted: Call, deadline: rpc.Deadline, held: Loaded | None
    ) -> Loaded | None:
        """Return code that stands in and is here, or better one if the daemon has that at once."""
        held = held or await self._from_store(wanted, fast=True)
        if held is None:
            return None
        request = wanted.request
        soon = rpc.Deadline(min(deadline.remaining_s() / 2, _LOOK_S))
        try:
            request.omit_artifact = True
            header = (await self._obtain(wanted, soon, 1)).header
            request.omit_artifact = False
            return held if header.is_fast else await self._from_daemon(wanted, soon, 1)
        except errors.WasmkilnError as why:  # what stands in still works
            _log.debug("no better code of module %s: %s", wanted.module_sha256, why)
            return held

    async def _from_daemon(
        self, wanted: Call, deadline: rpc.Deadline, max_attempts: int | None = None
    ) -> Loaded:
        request = wanted.request
        takes_files = not self._store.is_off and time.monotonic() >= self._no_files_until_s
        request.accept_host_file = takes_files
        artifact = await self._obtain(wanted, deadline, max_attempts)
        if artifact.header.HasField("host_file"):
            opening = partial(self._open_answered, wanted, artifact.header)
            loaded = await self._away(partial(self._load_opened, opening, wanted))
            if loaded is not None:
                return loaded
            request.accept_host_file = False
            artifact = await self._obtain(wanted, deadline, max_attempts)
        # The bytes were verified on arrival.
        module = await self._away(partial(load_verified, artifact, wanted.into, advice=_ADVICE))
        return Loaded(module, artifact.header.is_fast)

    async def _from_daemon_or_here(
        self, wanted: Call, deadline: rpc.Deadline, engine: str
    ) -> Loaded:
        # A daemon that does not answer must leave time to compile here.
        half = rpc.Deadline(deadline.remaining_s() / 2)
        try:
            return await self._from_daemon(wanted, half, 1)
        except errors.WasmkilnError as failure:
            # A daemon that answers, and refuses this caller or fails, is not away.
            is_late = isinstance(failure, errors.DeadlineExceeded)
            if not is_late and failure.code.name != "UNAVAILABLE":
                raise
            error = failure
        wasm = await self._away(wanted.read)
        if wasm is None:
            raise error
        # Whoever waits for nothing but the log should read that modules are compiled here.
        _log.warning("compiling module %s here: %s", wanted.module_sha256, error)
        wanted.engine = engine
        compiling = partial(compile_within, deadline.remaining_s, wasm, wanted)
        try:
            return Loaded(await self._away(compiling), is_fast=False)
        except errors.IncompatibleEngine as here:
            raise here from error

    async def _portable(
        self, wanted: Call, deadline: rpc.Deadline, why: errors.WasmkilnError
    ) -> Loaded:
        _log.warning("loading portable code of module %s: %s", wanted.module_sha256, why)
        wanted = replace(wanted, target=loading.PORTABLE, cpu="")
        loaded = await self._from_store(wanted) or await self._from_daemon(wanted, deadline)
        loaded.is_portable = True
        return loaded

    def _open_answered(self, call: Call, header: ArtifactHeader) -> Entry:
        """Open the file that an answer names. Where that fails, ask for no files for a while."""
        try:
            if not header.HasField("host_file"):
                raise FileRefused("the daemon named no file: host_store_bytes has no room for it")
            return self._store.open_answered(call, header)
        except FileRefused:
            self._no_files_until_s = time.monotonic() + _NO_FILES_S
            raise

    def _load_opened(self, opening: Callable[[], Entry], wanted: Call) -> Loaded | None:
        """Open, check and load a file of the host store. Return None where that fails."""
        try:
            with closing(opening()) as entry:
                self._store.check(entry)
                module = load_verified(entry, wanted.into, explain=False)
                entry.check_unchanged()
                return Loaded(module, entry.header.is_fast)
        except _MISSES as why:
            if wanted.must_run and loading.is_unfit(why):  # the daemon has the same code
                raise
            _log.debug("not from the host store: %s", why)
            return None

    def _path_of(self, opening: Callable[[], Entry]) -> Path:
        """Open, check and close a file of the host store. Return its path."""
        with closing(opening()) as entry:
            self._store.check(entry)
            return entry.path

    async def _send_in_pieces(self, path: str, messages: Messages, sink: Any, **call: Any) -> None:
        """Call a method that takes messages and answers once, which gRPC's own threads send.

        grpc.aio loses the reason why a daemon refuses a stream that still is being sent.
        """
        import grpc

        letters: SimpleQueue[Any] = SimpleQueue()
        channel = self._connection.channel(grpc)  # kept until the call ends: see Connection
        running = channel.stream_unary(path).future(messages(letters.put), **call)
        running.add_done_callback(letters.put)
        try:
            while (news := await self._away(letters.get)) is not running:
                sink.told(news)
            if (wire := running.result()) is not None:
                sink.add(wire)
        finally:
            running.cancel()  # which also ends a thread that still waits for a letter

    @abstractmethod
    async def _send(self, path: str, wire: bytes, sink: Sink, **call: Any) -> None:
        """Call a method of the daemon. Hand the messages of the answer to `sink`, as bytes.

        One message or many are the same on the wire, so every answer is taken as a stream.
        """

    @abstractmethod
    async def _pause(self, pause_s: float) -> None:
        """Wait, or until the client is closed."""

    @abstractmethod
    async def _wait_for(self, other: Future[Any], timeout_s: float) -> None:
        """Wait until another call has ended, or so long."""

    @abstractmethod
    async def _away(self, work: Callable[[], T]) -> T:
        """Do what blocks: it reads files, uses the CPU, or waits for gRPC's threads."""


class Client(Methods):
    """A client of a wasmkiln daemon; safe for use by many threads at once.

    `address` is `host:port` or `unix:/path`; without one, the environment variable
    WASMKILN_ADDRESS, else 127.0.0.1:50051. Every call ends within `timeout_s` seconds, all
    attempts included; without one, WASMKILN_TIMEOUT_S, else 60. Until then a call for code is
    tried again where the error says that this makes sense, so it survives a daemon's restart.
    `max_attempts` bounds that; other calls have three attempts at most.

    `tls` is True for a daemon whose CA this system knows, a `TLS` with files, or False for
    plaintext. `token`, or the one in `token_file`, says who calls; the client reads files again
    when they change, and sends no token over plaintext to another machine, unless
    `token_over_plaintext`. `profile` names a daemon and all of this in profiles.toml. Without an
    argument the profile counts, or WASMKILN_PROFILE's, or without one the variables of the
    environment that docs/how-to/python.md lists.

    With `trusted_keys`, else those of WASMKILN_TRUSTED_KEYS, every artifact needs an
    attestation by one of them, both on arrival and when it is loaded. A key is hex, base64 or
    PEM, or a file or folder of keys. Checking needs `wasmkiln[verify]`.

    The client refuses an artifact above `max_artifact_bytes`; without one,
    WASMKILN_MAX_ARTIFACT_BYTES, which the daemon reads too, else 1 GiB.

    `module` and `host_file` look into the host store of this machine, at `host_store_dir`,
    WASMKILN_HOST_STORE_DIR, or where a daemon of this user or of the system has it; "none"
    switches that off. `namespace` is the caller's in the daemon's policy, of which the client looks
    for files there. `check_files` says what of a file is checked before it is mapped: digest
    and signature "always" or "once" per file and process, or its "owner" and mode alone; None
    is "once" with trusted keys and "owner" without.

    With `compression`, else WASMKILN_COMPRESSION, a daemon may send artifacts compressed by
    zstd, as it has them in Redis; this needs `wasmkiln[zstd]`. Without either, it may where
    that is installed and the daemon is on another machine.

    The client connects at the first call. Raise ValueError for invalid arguments. Every method
    raises subclasses of WasmkilnError (`wasmkiln.errors`): those that it names, and
    ConnectionFailed, DeadlineExceeded, InvalidRequest, CompileQueueFull, WorkerUnavailable,
    ServerDraining, UnexpectedAnswer and InternalFailure.
    """

    def close(self) -> None:
        """Close the connection and end running calls. May be called twice."""
        for channel in self._connection.close():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, flow: Coroutine[Any, Any, Any]) -> Any:
        try:
            flow.send(None)
        except StopIteration as end:
            return end.value
        flow.close()
        raise RuntimeError("a method of Client waits for an event loop: a defect of wasmkiln")

    async def _send(self, path: str, wire: bytes, sink: Sink, **call: Any) -> None:
        import grpc

        channel = self._connection.channel(grpc)  # kept until the call ends: see Connection
        running = channel.unary_stream(path)(wire, **call)
        try:
            for message in running:
                sink.add(message)
        finally:
            running.cancel()  # no effect once it has ended

    async def _pause(self, pause_s: float) -> None:
        self._connection.closed.wait(pause_s)

    async def _wait_for(self, other: Future[Any], timeout_s: float) -> None:
        wait([other], max(0.0, timeout_s))

    async def _away(self, work: Callable[[], T]) -> T:
        return work()


def choose_timeout_s(argument: float | None) -> float:
    """Return `argument`, else WASMKILN_TIMEOUT_S, else 60; a year at most. In seconds.

    Raise ValueError unless it is a positive, finite number.
    """
    chosen = _chosen("timeout_s", argument, 60.0, float, "a number of seconds")
    return min(chosen, float(MAX_TIMEOUT_S))


def choose_max_artifact_bytes(argument: int | str | None) -> int:
    """Return `argument`, else WASMKILN_MAX_ARTIFACT_BYTES, else 1 GiB. In bytes.

    Both may say 512MiB too. Raise ValueError unless the number is positive.
    """
    name, what = "max_artifact_bytes", "a size, such as 512MiB,"
    return _chosen(name, argument, DEFAULT_MAX_ARTIFACT_BYTES, parse_bytes, what)


def _chosen(name: str, argument: Any, default: T, parse: Callable[[Any], T], what: str) -> T:
    """Return a number: the argument, else the variable of its name, else the default."""
    value = argument
    if argument is None:
        name = f"WASMKILN_{name.upper()}"
        value = os.environ.get(name) or default
    number: Any = 0
    with suppress(ValueError):
        # Nothing that parses is imported for the default.
        number = default if value is default else parse(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} has to be {what} above 0, not {str(value)[:100]!r}")
    return cast("T", number)


def choose_encodings(argument: bool | None, address: str) -> tuple[str, ...]:
    """Return the encodings to ask a daemon at `address` for.

    `argument` wins over WASMKILN_COMPRESSION. Without either, ask for zstd where the package
    `zstandard` can be imported and the daemon is on another machine: on this one, decoding takes
    longer than the bytes. Raise ValueError for another value of the variable, and where zstd is
    wanted and the package is missing.
    """
    wanted = choose_switch("WASMKILN_COMPRESSION") if argument is None else argument
    if wanted and not package():
        raise ValueError("compression needs zstandard: pip install 'wasmkiln[zstd]'")
    if wanted is None:
        wanted = not is_local(address) and package() is not None
    return (ZSTD,) if wanted else ()


def _in_batches(keys: Iterable[ArtifactKey | str]) -> Iterator[modules.FindMissingRequest]:
    """Yield FindMissing requests, each with no more keys and bytes than the daemon allows.

    A digest becomes the key of the default engine's artifact. Raise TypeError for a single string,
    whose characters would be taken for keys.
    """
    if isinstance(keys, str):
        raise TypeError("find_missing takes a list of keys or digests, not one string")
    asked: Sequence[ArtifactKey] = [
        ArtifactKey(module_sha256=key) if isinstance(key, str) else key for key in keys
    ]
    # In a request, each key has its tag and its length, too.
    largest = max((key.ByteSize() + 4 for key in asked), default=1)
    at_once = max(1, min(FIND_MISSING_KEYS, FIND_MISSING_BYTES // largest))
    for start in range(0, len(asked), at_once):
        yield modules.FindMissingRequest(keys=asked[start : start + at_once])


def _texts(settings: Settings) -> dict[str, str]:
    """Return settings as the contract has them. Raise TypeError for what cannot be one."""
    if not isinstance(settings, (Mapping, type(None))):
        raise TypeError(f"settings is a dict of names and values, not {settings!r:.100}")
    found = {}
    for name, value in (settings or {}).items():
        text = str(value).lower() if isinstance(value, bool) else value
        if not (isinstance(name, str) and isinstance(text, (str, int))):
            raise TypeError(
                f"cannot use the setting {name!r:.100}: expected a text as its name, and a text, "
                f"a bool or an int as its value, not {value!r:.100}"
            )
        found[name] = str(text)
    return found


def _path_of(kind: type[Message]) -> str:
    """Return the path of the method that takes messages of this kind."""
    [service] = kind.DESCRIPTOR.file.services_by_name.values()
    return f"/{service.full_name}/{kind.__name__.removesuffix('Request')}"


def _about(sha256: str, *, background: bool = False) -> Metadata:
    """Return the metadata of a call about a module, by which a proxy may choose a daemon.

    See the comment on ModuleService in module_service.proto.
    """
    about: Metadata = (("wasmkiln-module", sha256),) if sha256 else ()
    return (*about, ("wasmkiln-priority", "background")) if background else about
