"""The blocking client, generated from aio.py: edit that and run `make client`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from wasmkiln._calls import Calls
from wasmkiln._flow import Pause, Stream, Unary
from wasmkiln._transports import Transport

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Literal, Self

    from wasmkiln._assembly import ProgressCallback
    from wasmkiln._flow import Flow, Step
    from wasmkiln._requests import Source
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


class Client:
    """Calls a wasmkiln daemon; safe for use by many threads at once.

    `address` is `host:port` or `unix:/path`; without one, the environment variable
    WASMKILN_ADDRESS, else 127.0.0.1:50051. Every call ends within `timeout_s` seconds, all
    attempts included; without one, WASMKILN_TIMEOUT_S, else 60. A call is tried up to
    `max_attempts` times, and only where the error says that trying again makes sense.

    With `trusted_keys`, or WASMKILN_TRUSTED_KEYS, every artifact needs an attestation by one
    of them, both on arrival and when it is loaded: a key is hex, base64 or PEM, a file or
    folder of such, or several of these. Checking needs `wasmkiln[verify]`.

    An artifact above `max_artifact_bytes` is not received: without one, the environment
    variable WASMKILN_MAX_ARTIFACT_BYTES, which the daemon reads too, else 1 GiB.

    Nothing is dialled before the first call. Raises ValueError for arguments that can't be.
    Every method raises WasmkilnError, by its subclasses in `wasmkiln.errors`: beside those
    that it names, ConnectionFailed, DeadlineExceeded, WorkerUnavailable, ServerDraining,
    UnexpectedAnswer and InternalFailure.
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
        self._transport = Transport(self._calls.address)

    @property
    def address(self) -> str:
        """The daemon's address."""
        return self._calls.address

    def load(
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
        return self._run(
            self._calls.load(
                source,
                expected_sha256=expected_sha256,
                engine=engine,
                background=background,
                timeout_s=timeout_s,
            )
        )

    def compile(
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
        is called in this thread.

        Raises OSError when the path can't be read, ModuleNotLoaded for an unknown digest,
        ArtifactMismatch when what arrives isn't what was asked for or what its header says,
        AttestationInvalid when there are trusted keys and none vouches for it, the errors of `load`
        but DigestMismatch, and InvalidRequest, TargetUnsupported, SettingUnknown,
        ArtifactTooLarge (by the daemon's limit or `max_artifact_bytes`) or ModuleQuarantined.
        """
        return self._run(
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

    def stats(self, *, timeout_s: float | None = None) -> StatsResponse:
        """Counters and percentiles of the daemon since its start."""
        return self._run(self._calls.stats(timeout_s))

    def capabilities(self, *, timeout_s: float | None = None) -> GetCapabilitiesResponse:
        """Engines, targets, cpus, settings and limits that can be asked for."""
        return self._run(self._calls.capabilities(timeout_s))

    def find_missing(
        self, keys: Iterable[ArtifactKey | str], *, timeout_s: float | None = None
    ) -> list[ArtifactKey]:
        """Those of the keys whose artifact no tier holds, in the order asked.

        A digest stands for the artifact of the default engine. More keys than the daemon
        takes in one call are asked in several. Raises InvalidRequest, EngineUnknown,
        TargetUnsupported or SettingUnknown.
        """
        return self._run(self._calls.find_missing(keys, timeout_s))

    def evict(
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
        return self._run(
            self._calls.evict(
                module_sha256=module_sha256,
                engine=engine,
                everything=everything,
                tier=tier,
                timeout_s=timeout_s,
            )
        )

    def quarantined(self, *, timeout_s: float | None = None) -> ListQuarantineResponse:
        """The modules that are refused because a compile of them broke the compiler."""
        return self._run(self._calls.quarantined(timeout_s))

    def release(
        self,
        module_sha256: str | None = None,
        *,
        everything: bool = False,
        timeout_s: float | None = None,
    ) -> ReleaseQuarantineResponse:
        """Lets a module, or every one, be compiled again, and forgets what it did.

        Raises ValueError unless exactly one scope is given.
        """
        return self._run(self._calls.release(module_sha256, everything, timeout_s))

    def drain(
        self, grace_s: float | None = None, *, timeout_s: float | None = None
    ) -> DrainResponse:
        """Ends the daemon, as SIGTERM does; answers at once and not when it has ended.

        From then on new calls raise ServerDraining. What is under way may take `grace_s`
        seconds more; without it, as long as the daemon is configured to wait. Called again
        it can only shorten that: 0 hurries. Raises ValueError for a negative grace.
        """
        return self._run(self._calls.drain(grace_s, timeout_s))

    def health(self, service: str = "", *, timeout_s: float | None = None) -> str:
        """The daemon's, or one service's, health: "SERVING", "NOT_SERVING", "UNKNOWN" …

        Raises WasmkilnError with the code NOT_FOUND for a service that it doesn't have.
        """
        return self._run(self._calls.health(service, timeout_s))

    def close(self) -> None:
        """Closes the connection and ends calls under way. Can be called twice."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                outcome, failure = None, None
                try:
                    outcome = self._perform(step)
                except Exception as error:
                    failure = error
                # Outside of the except block, so that no RpcError hangs on what is raised.
                step = flow.send(outcome) if failure is None else flow.throw(failure)
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            flow.close()

    def _perform(self, step: Step) -> object:
        channel = self._transport.channel
        if isinstance(step, Unary):
            return step.begin(channel)
        if isinstance(step, Stream):
            call = step.begin(channel)
            try:
                for message in call:
                    step.sink(message)
            finally:
                call.cancel()  # nothing once it has ended
            return None
        if isinstance(step, Pause):
            self._transport.pause(step.seconds)
            return None
        return self._transport.run(step.run)
