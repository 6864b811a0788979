"""What each method of the clients does, as a flow of steps (see _flow.py).

So digest-first upload, batches and the checks of answers are written once for both clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf.wrappers_pb2 import StringValue

from wasmkiln._compression import choose_encodings
from wasmkiln._flow import Blocking, Deadline, RetryPolicy, Stream, Unary, attempts
from wasmkiln._header_fields import Call, kind_of
from wasmkiln._methods import (
    CAPABILITIES,
    COMPILE,
    DRAIN,
    EVICT,
    FIND_MISSING,
    HEALTH,
    LIST_PINS,
    LIST_QUARANTINE,
    LOAD,
    PIN,
    RELEASE_QUARANTINE,
    STATS,
    UNPIN,
    Method,
    check_loaded,
    health_status,
    still_missing,
)
from wasmkiln._requests import artifact_keys, identify, in_batches
from wasmkiln._routing import about, is_ring
from wasmkiln._settings import choose_max_artifact_bytes, choose_timeout_s
from wasmkiln.artifact import Assembly, Phase, Progress
from wasmkiln.attestation import TrustedKeys
from wasmkiln.errors import ModuleNotLoaded
from wasmkiln.v1 import admin_service_pb2 as admin
from wasmkiln.v1 import module_service_pb2 as modules

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from wasmkiln._flow import Flow
    from wasmkiln._requests import IdentifiedModule, Source
    from wasmkiln.access import Access
    from wasmkiln.access.token import Metadata
    from wasmkiln.artifact import Artifact, ProgressCallback
    from wasmkiln.attestation import KeySource
    from wasmkiln.v1.types_pb2 import ArtifactKey

# See the comment on ModuleService in module_service.proto.
_IN_THE_BACKGROUND: Metadata = (("wasmkiln-priority", "background"),)


class Calls:
    """The methods of a client, as flows of steps."""

    def __init__(
        self,
        access: Access,
        timeout_s: float | None,
        max_attempts: int,
        trusted_keys: TrustedKeys | KeySource | Iterable[KeySource] | None,
        max_artifact_bytes: int | None,
        compression: bool | None = None,
    ) -> None:
        if max_attempts < 1:
            raise ValueError("max_attempts has to be at least 1")
        self.access = access
        self._timeout_s = choose_timeout_s(timeout_s)
        self._retry = RetryPolicy(max_attempts)
        self.trusted_keys = TrustedKeys.choose(
            access.trusted_keys or None if trusted_keys is None else trusted_keys
        )
        self._max_artifact_bytes = choose_max_artifact_bytes(max_artifact_bytes)
        self._encodings = choose_encodings(compression, access.address)

    def load(
        self,
        source: Source,
        *,
        expected_sha256: str | None,
        engine: str | None,
        background: bool,
        timeout_s: float | None,
    ) -> Flow[modules.LoadResponse]:
        deadline = self.deadline(timeout_s)
        identified = yield Blocking(partial(identify, source))
        if identified.module is None:
            raise ValueError("load needs a module's bytes or path; a digest has no bytes")
        request = modules.LoadRequest(
            module=identified.module, expected_sha256=expected_sha256 or "", engine=engine or ""
        )
        answer: modules.LoadResponse = yield from self._unary(
            *(LOAD, request, deadline, about(identified.sha256) + _priority(background))
        )
        check_loaded(answer, identified.sha256, len(identified.module))
        return answer

    def compile(
        self,
        source: Source,
        request: modules.CompileRequest,
        *,
        background: bool,
        timeout_s: float | None,
        on_progress: ProgressCallback | None,
    ) -> Flow[Artifact]:
        deadline = self.deadline(timeout_s)
        identified = yield Blocking(partial(identify, source))
        request.sha256 = identified.sha256
        call = Call(request, identified.sha256, kind_of(identified.module))
        return (
            yield from self.obtain(
                *(call, lambda: identified, deadline),
                background=background,
                on_progress=on_progress,
            )
        )

    def obtain(
        self,
        call: Call,
        read: Callable[[], IdentifiedModule],
        deadline: Deadline,
        *,
        retry: RetryPolicy | None = None,
        background: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> Flow[Artifact]:
        """Ask by digest, and again with the module that `read` returns if the daemon lacks it."""
        request = call.request
        request.accept_encodings[:] = self._encodings
        report: ProgressCallback = on_progress or (lambda _: None)
        assemble = partial(
            Assembly,
            max_bytes=self._max_artifact_bytes,
            on_progress=on_progress,
            trusted_keys=self.trusted_keys,
        )
        # The upload goes where the digest went, even if the file has changed since.
        metadata = about(call.module_sha256) + _priority(background)
        run = partial(self._artifact, request, deadline, retry or self._retry, metadata)
        report(Progress(Phase.ASKING))
        try:
            return (yield from run(partial(assemble, call)))
        except ModuleNotLoaded:
            identified = yield Blocking(read)
            if identified.module is None:
                raise
        call = Call(request, identified.sha256, kind_of(identified.module))
        request.module = identified.module
        report(Progress(Phase.UPLOADING, 0, len(identified.module)))
        return (yield from run(partial(assemble, call)))

    def stats(self, timeout_s: float | None) -> Flow[modules.StatsResponse]:
        return self._unary(STATS, modules.StatsRequest(), self.deadline(timeout_s))

    def capabilities(self, timeout_s: float | None) -> Flow[modules.GetCapabilitiesResponse]:
        request = modules.GetCapabilitiesRequest()
        return self._unary(CAPABILITIES, request, self.deadline(timeout_s))

    def find_missing(
        self,
        keys: Iterable[ArtifactKey | str],
        timeout_s: float | None,
        retry: RetryPolicy | None = None,
    ) -> Flow[list[ArtifactKey]]:
        deadline = self.deadline(timeout_s)
        missing: list[ArtifactKey] = []
        by_module = is_ring(self.access.address)
        for request in in_batches(artifact_keys(keys), by_module=by_module):
            metadata = about(request.keys[0].module_sha256) if by_module else ()
            answer = yield from self._unary(FIND_MISSING, request, deadline, metadata, retry)
            missing.extend(still_missing(request.keys, answer.missing))
        return missing

    def evict(
        self, request: admin.EvictRequest, timeout_s: float | None
    ) -> Flow[admin.EvictResponse]:
        metadata = about(request.module_sha256)
        return self._unary(EVICT, request, self.deadline(timeout_s), metadata)

    def quarantined(self, timeout_s: float | None) -> Flow[admin.ListQuarantineResponse]:
        request = admin.ListQuarantineRequest()
        return self._unary(LIST_QUARANTINE, request, self.deadline(timeout_s))

    def release(
        self, request: admin.ReleaseQuarantineRequest, timeout_s: float | None
    ) -> Flow[admin.ReleaseQuarantineResponse]:
        metadata = about(request.module_sha256)
        return self._unary(RELEASE_QUARANTINE, request, self.deadline(timeout_s), metadata)

    def pin(self, request: admin.PinRequest, timeout_s: float | None) -> Flow[admin.PinResponse]:
        metadata = about(request.module_sha256)
        return self._unary(PIN, request, self.deadline(timeout_s), metadata)

    def unpin(
        self, request: admin.UnpinRequest, timeout_s: float | None
    ) -> Flow[admin.UnpinResponse]:
        metadata = about(request.module_sha256)
        return self._unary(UNPIN, request, self.deadline(timeout_s), metadata)

    def pins(self, timeout_s: float | None) -> Flow[admin.ListPinsResponse]:
        return self._unary(LIST_PINS, admin.ListPinsRequest(), self.deadline(timeout_s))

    def drain(
        self, request: admin.DrainRequest, timeout_s: float | None
    ) -> Flow[admin.DrainResponse]:
        return self._unary(DRAIN, request, self.deadline(timeout_s))

    def health(self, service: str, timeout_s: float | None) -> Flow[str]:
        request = StringValue(value=service)
        answer = yield from self._unary(HEALTH, request, self.deadline(timeout_s))
        return health_status(answer.value)

    def deadline(self, timeout_s: float | None) -> Deadline:
        """Return when a call ends that begins now."""
        return Deadline(self._timeout_s if timeout_s is None else choose_timeout_s(timeout_s))

    def _unary(
        self,
        method: Method,
        request: Message,
        deadline: Deadline,
        metadata: Metadata = (),
        retry: RetryPolicy | None = None,
    ) -> Flow[Any]:
        step = partial(Unary, method, request, metadata=metadata)
        retry = retry or self._retry
        return method.usable((yield from attempts(step, deadline, retry, self.access)))

    def _artifact(
        self,
        request: Message,
        deadline: Deadline,
        retry: RetryPolicy,
        metadata: Metadata,
        assemble: Callable[[], Assembly],
    ) -> Flow[Artifact]:
        # Each attempt starts from nothing: a stream that broke has left half an artifact.
        assembly = assemble()

        def attempt(timeout_s: float) -> Stream:
            nonlocal assembly
            assembly = assemble()

            def take(message: object) -> None:
                assembly.add(COMPILE.usable(message))

            return Stream(COMPILE, request, timeout_s, take, metadata)

        yield from attempts(attempt, deadline, retry, self.access)
        return assembly.finish()


def _priority(background: bool) -> Metadata:
    return _IN_THE_BACKGROUND if background else ()
