"""The client for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wasmkiln._aio_operations import AsyncOperations
from wasmkiln._calls import Calls
from wasmkiln._modules import Modules
from wasmkiln._requests import compile_request
from wasmkiln.access import Access

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Any, Literal

    from wasmkiln._assembly import ProgressCallback
    from wasmkiln._requests import Source
    from wasmkiln.access import TLS
    from wasmkiln.artifact import Artifact
    from wasmkiln.host_store import CheckFiles
    from wasmkiln.trusted_keys import KeySource, TrustedKeys
    from wasmkiln.v1.module_service_pb2 import LoadResponse


class AsyncClient(AsyncOperations):
    """A client of a wasmkiln daemon from one event loop; safe for use by many of its tasks at once.

    `address` is `host:port` or `unix:/path`; without one, the environment variable
    WASMKILN_ADDRESS, else 127.0.0.1:50051. Every call ends within `timeout_s` seconds, all
    attempts included; without one, WASMKILN_TIMEOUT_S, else 60. The client makes up to
    `max_attempts` attempts, and only where the error says that another one makes sense.

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

    Make it inside or outside of the loop. It reads and hashes a module's file in a thread.
    Cancelling a task ends its call; the daemon finishes and keeps what it is compiling.

    The client connects at the first call. Raise ValueError for invalid arguments. Every method
    raises subclasses of WasmkilnError (`wasmkiln.errors`): those that it names, and
    ConnectionFailed, DeadlineExceeded, InvalidRequest, CompileQueueFull, WorkerUnavailable,
    ServerDraining, UnexpectedAnswer and InternalFailure.
    """

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
        max_attempts: int = 3,
        trusted_keys: TrustedKeys | KeySource | Iterable[KeySource] | None = None,
        max_artifact_bytes: int | None = None,
        host_store_dir: str | os.PathLike[str] | None = None,
        check_files: CheckFiles | None = None,
        compression: bool | None = None,
    ) -> None:
        access = Access.choose(
            address,
            profile=profile,
            tls=tls,
            token=token,
            token_file=token_file,
            token_over_plaintext=token_over_plaintext,
            namespace=namespace,
        )
        super().__init__(
            Calls(access, timeout_s, max_attempts, trusted_keys, max_artifact_bytes, compression)
        )
        self._modules = Modules(self._calls, host_store_dir, check_files)

    async def load(
        self,
        source: Source,
        *,
        expected_sha256: str | None = None,
        engine: str | None = None,
        background: bool = False,
        timeout_s: float | None = None,
    ) -> LoadResponse:
        """Upload a module, which the daemon validates and stores. Idempotent.

        `source` is a path or the module's bytes. `background` lets calls without it go first.

        Raise OSError when the path cannot be read, and NotWasm, ModuleTooLarge, DigestMismatch,
        ModuleInvalid, EngineUnknown, EngineLacksFeature, CompileTimeout, CompileMemoryLimit,
        CompilerCrashed or, for a component, ModuleQuarantined.
        """
        return await self._run(
            self._calls.load(
                source,
                expected_sha256=expected_sha256,
                engine=engine,
                background=background,
                timeout_s=timeout_s,
            )
        )

    async def compile(
        self,
        source: Source,
        *,
        engine: str | None = None,
        target: str | None = None,
        cpu: str | None = None,
        settings: Mapping[str, str] | None = None,
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
        is called in the event loop.

        Raise OSError when the path cannot be read, ModuleNotLoaded for an unknown digest,
        ArtifactMismatch when the artifact differs from the call or from its header,
        AttestationInvalid when there are trusted keys and none of them signed it, the errors of
        `load` but DigestMismatch, and TargetUnsupported, SettingUnknown, ModuleQuarantined or
        ArtifactTooLarge (the limit of the daemon, or `max_artifact_bytes`).
        """
        return await self._run(
            self._calls.compile(
                source,
                compile_request(
                    engine=engine,
                    target=target,
                    cpu=cpu,
                    settings=settings,
                    skip_cache_lookup=skip_cache_lookup,
                    omit_artifact=omit_artifact,
                    accept_fast=accept_fast,
                ),
                background=background,
                timeout_s=timeout_s,
                on_progress=on_progress,
            )
        )

    async def module(
        self,
        source: Source,
        *,
        engine: str | None = None,
        target: str | None = None,
        cpu: str | None = None,
        settings: Mapping[str, str] | None = None,
        into: Any = None,
        fallback: Literal["compile"] | None = None,
        accept_fast: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """Return a module, loaded into an engine of this process and ready to instantiate.

        Return what this client loaded before; else map the artifact's file in this machine's
        host store, without a call; else ask the daemon for a file to map, or for the bytes.
        With `fallback="compile"`, compile in this process when the daemon cannot be reached or
        fails by no fault of module or request; it gets one attempt and half of the time.
        After `timeout_s` the call raises DeadlineExceeded, but the compile goes on in its thread.

        The arguments are those of `compile`, but the engine is that of `into`, a
        `wasmtime.Engine` or `wasmer.Store`, or else wasmtime where it is installed, or wasmer; of
        several versions that the host store knows, the newest that this process can load.
        Without `into`, `wasmkiln.engine_of(module)` is the engine, to make a Store with. The
        client keeps the 128 modules used last, and digests of unchanged files. With `accept_fast`
        and without `into`, the code may be a fast compiler's; a later call, at most one a second,
        looks for the optimised code, and returns that.

        Loading is running code: see `check_files`. Raise the errors of `compile` and `load`.
        """
        request = compile_request(
            engine=engine, target=target, cpu=cpu, settings=settings, accept_fast=accept_fast
        )
        return await self._run(
            self._modules.module(source, request, into=into, fallback=fallback, timeout_s=timeout_s)
        )

    async def host_file(
        self,
        source: Source,
        *,
        engine: str | None = None,
        target: str | None = None,
        cpu: str | None = None,
        settings: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Path:
        """Return the path of a module's artifact in this machine's host store.

        It was checked as `check_files` says; docs/how-to/host-store.md says how to open it. The
        daemon compiles what is not there yet. Raise the errors of `compile`, and
        HostFileUnavailable.
        """
        request = compile_request(engine=engine, target=target, cpu=cpu, settings=settings)
        return await self._run(self._modules.host_file(source, request, timeout_s=timeout_s))
