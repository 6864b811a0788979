"""From a wasm file, bytes or a digest to a loaded module, by the shortest way that works.

1. loaded before by this client      nothing but a look into a dictionary
2. the host store of this machine    no call; the engine maps the file
3. the daemon                        it names a file of its host store, or sends the bytes
4. the engine of this process        only with fallback="compile"

A step that fails for a reason that the next one can heal is a miss, which the logger "wasmkiln"
mentions at the level DEBUG.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from wasmkiln import errors, loading
from wasmkiln._asking import (
    FINAL,
    MISSES,
    Asking,
    FileChanged,
    identify_again,
    is_denied,
    no_file,
)
from wasmkiln._file_digests import identify_once
from wasmkiln._flow import Blocking, Deadline, RetryPolicy
from wasmkiln._header_fields import Call
from wasmkiln.host_store import FileChecks, HostStore, Refused
from wasmkiln.loading import Loaded, LoadedModules, compile_within, load_verified
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1.types_pb2 import ArtifactKey

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from wasmkiln._calls import Calls
    from wasmkiln._flow import Flow
    from wasmkiln._requests import IdentifiedModule, Source
    from wasmkiln.artifact import Artifact
    from wasmkiln.host_store import CheckFiles, Entry
    from wasmkiln.v1.module_service_pb2 import CompileRequest
    from wasmkiln.v1.types_pb2 import ArtifactHeader

    Read = Callable[[], IdentifiedModule]

_log = logging.getLogger("wasmkiln")

# How long a client that could not open a file which the daemon named asks for bytes.
_NO_FILES_S = 60.0
# How long a call whose caller has fast code already may look for optimised code.
_LOOK_S = 5.0
_ADVICE = "pass the `settings` that `into` was made with, or leave out `into`"
# How often a call begins anew because its module's file changed meanwhile.
_MAX_CHANGES = 3


class Modules:
    """The methods of a client that look into the host store, as flows of steps."""

    def __init__(
        self,
        calls: Calls,
        host_store_dir: str | os.PathLike[str] | None,
        check_files: CheckFiles | None,
    ) -> None:
        self._calls = calls
        self._store = HostStore(host_store_dir, calls.access.namespace)
        self._checks = FileChecks(check_files, calls.trusted_keys)
        self._loaded = LoadedModules()
        self._no_files_until_s = 0.0

    def module(
        self,
        source: Source,
        request: CompileRequest,
        *,
        into: Any,
        fallback: str | None,
        timeout_s: float | None,
    ) -> Flow[Any]:
        deadline = self._calls.deadline(timeout_s)
        if fallback not in (None, "compile"):
            raise ValueError(f"fallback is 'compile' or None, not {fallback!r}")
        request.engine = request.engine or loading.engine_name(into)
        if request.accept_fast and into is not None:
            raise ValueError(
                "with accept_fast the engine depends on the artifact: leave out `into`, and use "
                "wasmkiln.engine_of(module)"
            )
        asking = Asking(source, request, request.engine, into, fallback, deadline)
        for _ in range(_MAX_CHANGES):
            with suppress(FileChanged):
                return (yield from self._module(asking))
        return (yield from self._module(asking))

    def _module(self, asking: Asking) -> Flow[Any]:
        request, into = asking.request, asking.into
        identified, kind = yield Blocking(partial(identify_once, asking.source))
        request.sha256, request.engine = identified.sha256, asking.engine
        asked = (request.engine, request.target, request.cpu, *sorted(request.settings.items()))
        key = identified.sha256, *asked
        read = partial(identify_again, asking.source, identified.sha256)
        call = Call(request, identified.sha256, kind)
        held = self._loaded.get(key, into)
        if held is not None and (request.accept_fast or not held.is_fast):
            if not held.look_again():
                return held.module
            loaded = yield from self._optimised(call, read, asking)
            loaded = loaded or held
        else:
            loaded = yield from self._found(call, read, asking)
        return self._loaded.put(key, into, loaded)

    def _found(self, call: Call, read: Read, asking: Asking) -> Flow[Loaded]:
        """Return the module from wherever it is."""
        accepts_fast = call.request.accept_fast
        loaded = yield from self._from_store(call, asking.into)
        if loaded is not None:
            return loaded
        fast = (yield from self._from_store(call, None, fast=True)) if accepts_fast else None
        call.request.engine = self._store.engine_id(call.request.engine, loading.fits)
        if fast is not None:
            return (yield from self._better(fast, call, read, asking))
        if asking.fallback is None:
            return (yield from self._from_daemon(call, read, asking.into, asking.deadline, None))
        return (yield from self._from_daemon_or_here(call, read, asking))

    def _better(self, fast: Loaded, call: Call, read: Read, asking: Asking) -> Flow[Loaded]:
        """Return what the daemon has, which may be optimised code, or else the fast code."""
        soon = Deadline(min(asking.deadline.remaining_s() / 2, _LOOK_S))
        try:
            return (yield from self._from_daemon(call, read, asking.into, soon, RetryPolicy(1)))
        except FINAL:
            raise
        except errors.WasmkilnError as why:
            _log.debug("fast code of module %s, from the host store: %s", call.module_sha256, why)
            return fast

    def _optimised(self, call: Call, read: Read, asking: Asking) -> Flow[Loaded | None]:
        """Return the module with optimised code, if that can be had at once; None if not."""
        plain = modules.CompileRequest()
        plain.CopyFrom(call.request)
        plain.accept_fast = False
        call = Call(plain, call.module_sha256, call.kind)
        loaded = yield from self._from_store(call, asking.into)
        if loaded is not None:
            return loaded
        key = ArtifactKey(
            module_sha256=call.module_sha256,
            engine=plain.engine,
            target=plain.target,
            cpu=plain.cpu,
            settings=plain.settings,
        )
        remaining_s = max(0.001, min(asking.deadline.remaining_s(), _LOOK_S))
        try:
            once, soon = RetryPolicy(1), Deadline(remaining_s)
            if (yield from self._calls.find_missing([key], remaining_s, once)):
                return None
            return (yield from self._from_daemon(call, read, asking.into, soon, once))
        except errors.WasmkilnError as why:  # the fast code still works
            _log.debug("no optimised code of module %s: %s", call.module_sha256, why)
            return None

    def host_file(
        self, source: Source, request: CompileRequest, *, timeout_s: float | None
    ) -> Flow[Path]:
        if self._store.is_off:
            raise errors.HostFileUnavailable(
                "this client uses no host store: its host_store_dir, or WASMKILN_HOST_STORE_DIR, "
                "is 'none'",
                metadata={"cause": "switched_off"},
            )
        deadline = self._calls.deadline(timeout_s)
        identified, kind = yield Blocking(partial(identify_once, source))
        request.sha256 = identified.sha256
        call = Call(request, identified.sha256, kind)
        opening = partial(self._store.open, call, _any)
        path: Path
        try:
            path = yield Blocking(partial(self._checked_path, opening))
            return path
        except MISSES as why:
            _log.debug("not from the host store: %s", why)
        request.accept_host_file = True
        read = partial(identify_again, source, identified.sha256)
        artifact = yield from self._calls.obtain(call, read, deadline)
        opening = partial(self._open_answered, call, artifact.header)
        try:
            path = yield Blocking(partial(self._checked_path, opening))
            return path
        except MISSES as why:
            raise no_file(self._calls.access.address, artifact.header, why) from why

    def _from_store(self, call: Call, into: Any, *, fast: bool = False) -> Flow[Loaded | None]:
        opening = partial(self._store.open, call, loading.fits, fast=fast)
        loaded: Loaded | None = yield Blocking(partial(self._load_opened, opening, into))
        return loaded

    def _from_daemon(
        self, call: Call, read: Read, into: Any, deadline: Deadline, retry: RetryPolicy | None
    ) -> Flow[Loaded]:
        call.request.accept_host_file = (
            not self._store.is_off and time.monotonic() >= self._no_files_until_s
        )
        artifact: Artifact = yield from self._calls.obtain(call, read, deadline, retry=retry)
        header = artifact.header
        if header.HasField("host_file"):
            opening = partial(self._open_answered, call, header)
            loaded: Loaded | None = yield Blocking(partial(self._load_opened, opening, into))
            if loaded is not None:
                return loaded
            call.request.accept_host_file = False
            artifact = yield from self._calls.obtain(call, read, deadline, retry=retry)
        # The bytes were verified on arrival.
        module = yield Blocking(partial(load_verified, artifact, into, advice=_ADVICE))
        return Loaded(module, artifact.header.is_fast)

    def _from_daemon_or_here(self, call: Call, read: Read, asking: Asking) -> Flow[Loaded]:
        # A daemon that does not answer must leave time to compile here.
        half = Deadline(asking.deadline.remaining_s() / 2)
        try:
            return (yield from self._from_daemon(call, read, asking.into, half, RetryPolicy(1)))
        except FINAL:
            raise
        except errors.WasmkilnError as failure:
            error = failure
        identified = yield Blocking(read)
        if identified.module is None:
            raise error
        # Whoever waits for nothing but the log should read that every module is compiled here.
        level = logging.WARNING if is_denied(error) else logging.DEBUG
        _log.log(level, "compiling module %s here: %s", identified.sha256, error)
        call.request.engine = asking.engine
        compiling = partial(compile_within, asking.deadline, identified, call.request, asking.into)
        try:
            return Loaded((yield Blocking(compiling)), is_fast=False)
        except errors.IncompatibleEngine as here:
            raise here from error

    def _open_answered(self, call: Call, header: ArtifactHeader) -> Entry:
        """Open the file that an answer names. Where that fails, ask for no files for a while."""
        try:
            if not header.HasField("host_file"):
                raise Refused("the daemon named no file")
            return self._store.open_answered(call, header)
        except Refused:
            self._no_files_until_s = time.monotonic() + _NO_FILES_S
            raise

    def _load_opened(self, opening: Callable[[], Entry], into: Any) -> Loaded | None:
        """Open, check and load a file of the host store. Return None where that fails."""
        with self._missed(), closing(opening()) as entry:
            entry.check(self._checks)
            module = load_verified(entry, into, explain=False)
            entry.check_unchanged()
            return Loaded(module, entry.header.is_fast)
        return None

    def _checked_path(self, opening: Callable[[], Entry]) -> Path:
        """Open and check a file of the host store. Return its path."""
        with closing(opening()) as entry:
            entry.check(self._checks)
            return entry.path

    @contextmanager
    def _missed(self) -> Iterator[None]:
        try:
            yield
        except MISSES as why:
            _log.debug("not from the host store: %s", why)


def _any(_name: str, _version: str) -> bool:
    return True
