"""The client for asyncio: the methods of Client, awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import grpc.aio

from wasmkiln._calls import Calls, Pause, Stream, Unary
from wasmkiln._settings import CHANNEL_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Literal, Self

    from wasmkiln._calls import Flow, Step
    from wasmkiln._progress import ProgressCallback
    from wasmkiln._source import Source
    from wasmkiln.artifact import Artifact
    from wasmkiln.trusted_keys import KeySource, TrustedKeys
    from wasmkiln.v1.admin_service_pb2 import (
        DrainResponse,
        EvictResponse,
        ListQuarantineResponse,
        ReleaseQuarantineResponse,
    )
    from wasmkiln.v1.module_service_pb2 import (
        GetCapabilitiesResponse,
        LoadResponse,
        StatsResponse,
    )
    from wasmkiln.v1.types_pb2 import ArtifactKey

T = TypeVar("T")


class AsyncClient:
    """Calls a wasmkiln daemon from one event loop; safe for use by many of its tasks at once.

    The arguments, methods and errors are those of Client. Nothing is dialled before the
    first call, so that it can be made before the loop runs. A module's file is read and
    hashed in a thread. A cancelled task ends its call; what the daemon compiles meanwhile
    stays compiled.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout_s: float | None = None,
        max_attempts: int = 3,
        trusted_keys: TrustedKeys | KeySource | Iterable[KeySource] | None = None,
        max_artifact_bytes: int | None = None,
    ) -> None:
        self._calls = Calls(address, timeout_s, max_attempts, trusted_keys, max_artifact_bytes)
        self._open_channel: Any = None
        self._closed = False

    @property
    def address(self) -> str:
        """The daemon's address."""
        return self._calls.address

    async def load(
        self,
        source: Source,
        *,
        expected_sha256: str | None = None,
        engine: str | None = None,
        background: bool = False,
        timeout_s: float | None = None,
    ) -> LoadResponse:
        """Uploads a module, which the daemon validates and stores. Idempotent.

        `source` is a path or the module's bytes. With `background` it yields to calls without.

        Raises OSError when the path can't be read,
        and NotWasm, ModuleTooLarge, DigestMismatch, ModuleInvalid, EngineUnknown,
        EngineLacksFeature, CompileTimeout, CompileMemoryLimit, CompileQueueFull,
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
        background: bool = False,
        timeout_s: float | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Artifact:
        """Gets a module's artifact, compiled now or before, and verifies its digest.

        `source` is a path, the module's bytes, or a SHA-256 of 64 lowercase hexadecimal
        digits. The daemon is asked by digest first; the module is uploaded only when it
        isn't known there. What is not given is the daemon's default. With `omit_artifact`
        the artifact has a header and no bytes. With `background`, for warming, the compilation
        yields to calls without, until one of those asks for the same artifact. `on_progress`
        is called in the event loop.

        Raises OSError when the path can't be read, ModuleNotLoaded for an unknown digest,
        ArtifactMismatch when what arrives isn't what was asked for or what its header says,
        AttestationInvalid when there are trusted keys and none vouches for it, the errors of `load`
        but DigestMismatch, and InvalidRequest, TargetUnsupported, SettingUnknown,
        ArtifactTooLarge (by the daemon's limit or `max_artifact_bytes`) or ModuleQuarantined.
        """
        return await self._run(
            self._calls.compile(
                source,
                engine=engine,
                target=target,
                cpu=cpu,
                settings=settings,
                skip_cache_lookup=skip_cache_lookup,
                omit_artifact=omit_artifact,
                background=background,
                timeout_s=timeout_s,
                on_progress=on_progress,
            )
        )

    async def stats(self, *, timeout_s: float | None = None) -> StatsResponse:
        """Counters and percentiles of the daemon since its start."""
        return await self._run(self._calls.stats(timeout_s))

    async def capabilities(self, *, timeout_s: float | None = None) -> GetCapabilitiesResponse:
        """Engines, targets, cpus, settings and limits that can be asked for."""
        return await self._run(self._calls.capabilities(timeout_s))

    async def find_missing(
        self, keys: Iterable[ArtifactKey | str], *, timeout_s: float | None = None
    ) -> list[ArtifactKey]:
        """Those of the keys whose artifact no tier holds, in the order asked.

        A digest stands for the artifact of the default engine. More keys than the daemon
        takes in one call are asked in several. Raises InvalidRequest, EngineUnknown,
        TargetUnsupported or SettingUnknown.
        """
        return await self._run(self._calls.find_missing(keys, timeout_s))

    async def evict(
        self,
        *,
        module_sha256: str | None = None,
        engine: str | None = None,
        everything: bool = False,
        tier: Literal["memory", "redis"] | None = None,
        timeout_s: float | None = None,
    ) -> EvictResponse:
        """Removes a module's, an engine's or all artifacts from one tier, or from every.

        Raises ValueError unless exactly one scope is given; InvalidRequest or EngineUnknown.
        """
        return await self._run(
            self._calls.evict(
                module_sha256=module_sha256,
                engine=engine,
                everything=everything,
                tier=tier,
                timeout_s=timeout_s,
            )
        )

    async def quarantined(self, *, timeout_s: float | None = None) -> ListQuarantineResponse:
        """The modules that are refused because a compile of them broke the compiler."""
        return await self._run(self._calls.quarantined(timeout_s))

    async def release(
        self,
        module_sha256: str | None = None,
        *,
        everything: bool = False,
        timeout_s: float | None = None,
    ) -> ReleaseQuarantineResponse:
        """Lets a module, or every one, be compiled again, and forgets what it did.

        Raises ValueError unless exactly one scope is given.
        """
        return await self._run(self._calls.release(module_sha256, everything, timeout_s))

    async def drain(
        self, grace_s: float | None = None, *, timeout_s: float | None = None
    ) -> DrainResponse:
        """Ends the daemon, as SIGTERM does; answers at once and not when it has ended.

        From then on new calls raise ServerDraining. What is under way may take `grace_s`
        seconds more; without it, as long as the daemon is configured to wait. Called again
        it can only shorten that: 0 hurries. Raises ValueError for a negative grace.
        """
        return await self._run(self._calls.drain(grace_s, timeout_s))

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> str:
        """The daemon's, or one service's, health: "SERVING", "NOT_SERVING", "UNKNOWN" …

        Raises WasmkilnError with the code NOT_FOUND for a service that it doesn't have.
        """
        return await self._run(self._calls.health(service, timeout_s))

    async def close(self) -> None:
        """Closes the connection and ends calls under way. Can be called twice."""
        self._closed = True
        if self._open_channel is not None:
            await self._open_channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def _channel(self) -> Any:
        # Made inside the loop that uses it: grpc.aio binds a channel to the loop it finds.
        if self._open_channel is None:
            self._open_channel = grpc.aio.insecure_channel(self.address, CHANNEL_OPTIONS)
        return self._open_channel

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                outcome, failure = None, None
                try:
                    outcome = await self._perform(step)
                except Exception as error:
                    failure = error
                # Outside of the except block, so that no RpcError hangs on what is raised.
                step = flow.send(outcome) if failure is None else flow.throw(failure)
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            flow.close()

    async def _perform(self, step: Step) -> object:
        if self._closed:
            raise RuntimeError("this client is closed")
        if isinstance(step, Unary):
            return await self._callable(self._channel.unary_unary, step)(
                step.request, timeout=step.timeout_s, metadata=step.metadata
            )
        if isinstance(step, Stream):
            call = self._callable(self._channel.unary_stream, step)(
                step.request, timeout=step.timeout_s, metadata=step.metadata
            )
            try:
                async for message in call:
                    step.sink(message)
            finally:
                call.cancel()  # nothing once it has ended
            return None
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        return await asyncio.to_thread(step.run)

    @staticmethod
    def _callable(shape: Any, step: Unary | Stream) -> Any:
        return shape(
            step.method.path,
            request_serializer=type(step.request).SerializeToString,
            response_deserializer=step.method.read,
        )
