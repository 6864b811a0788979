"""All translation between the messages of the contract and the daemon's values.

Requests: ``reader`` parses a request within the bounds of its method, ``fields`` finds the keys of
a FindMissing one by one, and the rest builds values. A message of a few bytes can cost megabytes
and seconds once protobuf has built it; so what is built at once has 64 KiB at most, modules apart.

Answers: ``Headers`` puts the first message of Compile's answer together. What an artifact says of
itself is serialized once, so that a hit in the memory tier builds no message at all; protobuf
allows the fields of a message in any order.

Errors: ``CODES`` has the gRPC code of each ``errors.Reason``. Callers receive a
``google.rpc.Status`` in the trailer ``grpc-status-details-bin``, with ErrorInfo (reason and
metadata), BadRequest if a field is at fault, and RetryInfo if waiting helps, cut to what HTTP/2
headers carry. The names of reasons, fields and metadata keys are public: add some, change none.
"""

from __future__ import annotations

import re
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from google.protobuf import duration_pb2
from google.protobuf.any import pack
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from wasmkiln.v1 import admin_service_pb2 as admin
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2

from wasmkilnd import model, wire
from wasmkilnd.compile import LoadResult, Request, Served, Terms, check_sha256
from wasmkilnd.engines.advisories import Advisory
from wasmkilnd.engines.pool import Job
from wasmkilnd.engines.registry import ServedEngine
from wasmkilnd.errors import AnyReason, Reason, WasmkilnError, invalid_request, quoted
from wasmkilnd.telemetry.metrics import LatencySummary, Metrics
from wasmkilnd.waits.flights import in_slices

M = TypeVar("M", bound=Message)

DOMAIN = "wasmkiln"
DETAILS_KEY = "grpc-status-details-bin"

CODES: dict[AnyReason, StatusCode] = {reason: StatusCode[reason.code] for reason in Reason}

# gRPC sends errors as HTTP/2 headers, and its implementations begin to drop headers above
# 8 KiB in all. The message is sent three times: percent-encoded, which can make it three times
# as long; in the status; and with the field at fault. The latter two are in base64.
_MAX_MESSAGE_BYTES = 700
_MAX_METADATA_BYTES = 1500

MAX_FIND_MISSING_KEYS = 10_000
# Of one artifact. Today's engines have at most 30.
_MAX_SETTINGS = 64
_MAX_SECTION_BYTES = 16 * 1024
# Of engines, targets and CPUs: logs and errors have them.
MAX_NAME_BYTES = 128
# Of one module, in the response of Load. With their settings they fit into the 4 MiB that gRPC's
# clients accept by default.
MAX_CACHED_ARTIFACTS = 1000

# What a request may have, modules and keys apart.
SMALL_BYTES = 64 * 1024
# What one message of an upload may bring.
UPLOADED_BYTES = 1024 * 1024
# What a request of a method may have, if not SMALL_BYTES; those with a module are not here.
REQUEST_BYTES = {
    "/wasmkiln.v1.ModuleService/FindMissing": 2 * 1024 * 1024,
    "/wasmkiln.v1.ModuleService/Upload": UPLOADED_BYTES + SMALL_BYTES,
}
# What each other field counts at least, so that looking for modules and keys takes little time.
_LEAST_BYTES = 64
# Of one request: the last counts.
_MAX_MODULES = 8
# The methods with a module, and its field.
MODULE_FIELDS = {
    "/wasmkiln.v1.ModuleService/Load": pb.LoadRequest.MODULE_FIELD_NUMBER,
    "/wasmkiln.v1.ModuleService/Compile": pb.CompileRequest.MODULE_FIELD_NUMBER,
}

# A request without a module, in most cases. 1,024 with 64 settings each, which is the most that
# fits, take 15 MB; by digest alone they take 1.5 MB.
_KEPT_BYTES = 512
_KEPT_REQUESTS = 1024
# What duration.proto allows.
_MAX_DURATION_S = 315_576_000_000
_ENGINE_ID = re.compile(r"[a-z]{1,60}-[0-9][0-9A-Za-z.+!-]{,60}")
_EXTERN_KINDS = {
    name.removeprefix("EXTERN_KIND_").lower(): number
    for name, number in types_pb2.ExternKind.items()
}
# By the number of ``admin.Tier``.
_TIERS = ("", "memory", "redis", "host_store", "object_store")

# By wire type. Groups, which no protobuf of ours writes, are refused.
_FIXED_BYTES = {1: 8, 5: 4}
# The fields of a header that a spec has.
_OF_SPEC = "engine", "target", "cpu", "settings", "changed_settings", "fingerprint", "is_fast"
_SUMMARY = ("sum", "p50", "p90", "p99")
_ATTESTATION_TAG = b"b"  # field 12 of ArtifactHeader, length-delimited
_HEADER_TAG = b"\x0a"  # field 1 of CompileResponse, length-delimited
_INLINE_TAG = b"\x9a\x01"  # field 19 of ArtifactHeader, length-delimited


def to_status(error: WasmkilnError) -> status_pb2.Status:
    """Return the google.rpc.Status of ``error``, with texts cut to what headers can carry."""
    message, left, metadata = _cut(error.message, _MAX_MESSAGE_BYTES), _MAX_METADATA_BYTES, {}
    for name, value in error.metadata.items():
        metadata[name] = _cut(value, max(0, left - len(name)))
        left -= len(name) + len(metadata[name].encode())
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=metadata)
    details = [pack(info)]
    if error.field:
        at_fault = {"field": error.field, "description": message}
        details.append(pack(error_details_pb2.BadRequest(field_violations=[at_fault])))
    if error.retry_after_s is not None:
        delay = duration(error.retry_after_s)
        details.append(pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    code = CODES[error.reason].value[0]
    return status_pb2.Status(code=code, message=message, details=details)


def _cut(text: str, limit_bytes: int) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: max(0, limit_bytes - 3)].decode(errors="ignore") + "…"


def reader(method: str, parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return ``parse`` within the bounds of a method: it raises INVALID_REQUEST.

    What was built of a small request is kept, and given to every call that sends the same bytes:
    no call may change it. Hits of a module by its digest are such calls.
    """
    kept = lru_cache(maxsize=_KEPT_REQUESTS)(parse)

    def read(raw: bytes) -> Any:
        try:
            if len(raw) <= _KEPT_BYTES:
                return kept(raw)
            if len(raw) > SMALL_BYTES and method in MODULE_FIELDS:
                deque(fields(raw, MODULE_FIELDS[method], "module", _MAX_MODULES), maxlen=0)
            return parse(raw)
        except DecodeError:
            raise not_a_message() from None

    return read


def fields(raw: bytes, number: int, name: str, times: int) -> Iterator[tuple[int, int, int]]:
    """Find each field ``number`` of a message: where it and its value begin, and both end.

    Builds nothing. Raises INVALID_REQUEST for bytes that are no message, where the field comes more
    than ``times``, and where there are more than SMALL_BYTES beside it.
    """
    at = found = rest = 0
    try:
        while at < len(raw):
            start = at
            tag, at = wire.read_varint(raw, at)
            if tag & 7 == 2:
                size, value = wire.read_varint(raw, at)
                at = value + size
            elif tag & 7 == 0:
                _, at = wire.read_varint(raw, at)
            else:
                at += _FIXED_BYTES[tag & 7]
            if at > len(raw):
                raise IndexError
            if tag == number << 3 | 2:
                found += 1
                bound(name, found, times, "values")
                yield start, value, at
            else:
                rest += max(at - start, _LEAST_BYTES)
                bound("", rest, SMALL_BYTES, what=f"the request beside its {name}")
    except (IndexError, KeyError, OverflowError):
        raise not_a_message() from None


def keys(raw: bytes) -> Iterator[tuple[int, int, int]]:
    """Find the keys of a FindMissing, as ``fields`` does."""
    number = pb.FindMissingRequest.KEYS_FIELD_NUMBER
    return fields(raw, number, "keys", MAX_FIND_MISSING_KEYS)


def not_a_message() -> WasmkilnError:
    """Return the error for bytes that are no protobuf message of this method."""
    return invalid_request("cannot parse the request: its bytes are no message of this call", "")


def bound(
    field: str, size: int, at_most: int, unit: str = "bytes", what: str = "the request"
) -> None:
    """Raise INVALID_REQUEST if ``field``, or else ``what``, is above its bound."""
    if size > at_most:
        sizes = (
            {"at_most": at_most, "size_bytes": size} if unit == "bytes" else {"at_most": at_most}
        )
        message = f"{field or what} has {size:,} {unit} and may have at most {at_most:,}"
        raise invalid_request(message, field, **sizes)


class CompileCall:
    """A CompileRequest as it came: translated once, however many calls send the same bytes."""

    __slots__ = ("asked", "how")

    def __init__(self, raw: bytes) -> None:
        """Raise INVALID_REQUEST, or DecodeError for bytes that are no CompileRequest."""
        sent = pb.CompileRequest.FromString(raw)
        if not sent.WhichOneof("source"):
            raise invalid_request(
                "cannot compile: the request has no source; set sha256 or module", "source"
            )
        if sent.HasField("sha256"):
            check_sha256(sent.sha256, "sha256")
        # Of which artifact the caller has how many bytes, if any: what follows is not encoded.
        resume = sha256, offset_bytes = sent.artifact_sha256, sent.offset_bytes
        if any(resume) and not (check_sha256(sha256, "artifact_sha256") and offset_bytes):
            raise invalid_request("cannot resume: offset_bytes is not set", "offset_bytes")
        encodings = frozenset(() if offset_bytes else sent.accept_encodings)
        # How the artifact is sent: see ``Headers.answer``.
        self.how = sent.omit_artifact, sent.inline_limit_bytes, resume
        # No call changes it, but for what is ``known``.
        self.asked = Request(
            *(sent.sha256, sent.module, sent.engine, sent.target, sent.cpu, _settings(sent)),
            *(sent.skip_cache_lookup, sent.accept_host_file, encodings),
            *(sent.accept_fast, False, _compatibility(sent)),
        )


def wanted(raw: bytes, terms: Terms) -> model.CacheKey | Request:
    """Translate a serialized ArtifactKey. Raises INVALID_REQUEST."""
    bound("keys", len(raw), SMALL_BYTES)
    try:
        key = types_pb2.ArtifactKey.FromString(raw)
    except DecodeError:
        raise not_a_message() from None
    settings = _settings(key, "keys.") if len(raw) > MAX_NAME_BYTES else dict(key.settings)
    sha256 = check_sha256(key.module_sha256, "keys.module_sha256")
    if key.fingerprint:
        return model.CacheKey(sha256, check_sha256(key.fingerprint, "keys.fingerprint"))
    shown = _compatibility(key, "keys.")
    named = key.engine, key.target, key.cpu, settings
    return Request(sha256, b"", *named, compatibility=shown, terms=terms)


def _settings(sent: pb.CompileRequest | types_pb2.ArtifactKey, where: str = "") -> dict[str, str]:
    """Return the settings. Raises INVALID_REQUEST where they, or names, are above their bounds."""
    bound(f"{where}settings", len(sent.settings), _MAX_SETTINGS, "values")
    for field in ("engine", "target", "cpu"):
        bound(f"{where}{field}", len(getattr(sent, field).encode()), MAX_NAME_BYTES)
    return dict(sent.settings)


def _compatibility(sent: pb.CompileRequest | types_pb2.ArtifactKey, where: str = "") -> bytes:
    """Return what the caller's engine shows. Raises INVALID_REQUEST where it is too large."""
    bound(f"{where}compatibility", len(sent.compatibility), _MAX_SECTION_BYTES)
    return bytes(sent.compatibility)


def evict_scope(request: admin.EvictRequest) -> tuple[model.EvictScope, str]:
    """Return the scope of an EvictRequest, and the tier ("" for all). Raises INVALID_REQUEST."""
    if not 0 <= request.tier < len(_TIERS):
        tiers = "TIER_MEMORY, TIER_HOST_STORE, TIER_REDIS or TIER_OBJECT_STORE"
        raise invalid_request(f"cannot evict: unknown tier; use {tiers}", "tier")
    scope = request.WhichOneof("scope")
    if scope == "module_sha256":
        check_sha256(request.module_sha256, scope)
    elif scope == "engine":
        # Any id will do, for the engine may have been removed.
        if not _ENGINE_ID.fullmatch(request.engine):
            what = f"cannot evict {quoted(request.engine)}: expected an id such as wasmtime-50.0.1"
            raise invalid_request(what, scope)
    elif not request.all:
        what = "the request has no scope; set module_sha256, engine, or all to true"
        raise invalid_request(f"cannot evict: {what}", "scope")
    return model.EvictScope(request.module_sha256, request.engine), _TIERS[request.tier]


def seconds(message: duration_pb2.Duration, field: str) -> float:
    """Return a caller's Duration. Raises INVALID_REQUEST for a negative or malformed one."""
    if not 0 <= message.seconds <= _MAX_DURATION_S or not 0 <= message.nanos < 1_000_000_000:
        raise invalid_request(f"cannot use {field}: expected a duration of 0 s or more", field)
    return message.seconds + message.nanos / 1e9


def filled(message: type[M], /, *sources: object, **given: Any) -> M:
    """Return a message: a field that is not given is the attribute of its name of a source.

    Raises AttributeError if no source has it.
    """
    for name in message.DESCRIPTOR.fields_by_name.keys() - given.keys():
        given[name] = getattr(next((x for x in sources if hasattr(x, name)), None), name)
    return message(**given)


def duration(seconds: float) -> Any:
    """Return ``seconds`` as protobuf takes a Duration."""
    return timedelta(seconds=seconds)


async def repeated(values: Iterable[Message]) -> bytes:
    """Return a serialized message that has only ``values``, in the repeated field 1.

    They are built in slices.
    """
    serialized = (value.SerializeToString() for value in values)
    pieces = (b"\x0a" + wire.varint(len(value)) + value for value in serialized)
    return b"".join(await in_slices(pieces))


class SerializedAnswer(NamedTuple):
    """An answer that is serialized already: its first message, and what follows."""

    # The CompileResponse with the header.
    first: bytes
    # The artifact whose frames follow; None if no message follows.
    artifact: model.Artifact | None = None
    # How many bytes of the artifact the answer has, as they are encoded, and where they begin.
    artifact_bytes: int = 0
    offset_bytes: int = 0


class Headers:
    """Puts answers together from what is kept for as long as a tier holds or describes it."""

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[model.Artifact, tuple[bytes, ...]]
        self._kept = weakref.WeakKeyDictionary()

    def answer(
        self,
        served: Served,
        omit_artifact: bool = False,
        inline_limit_bytes: int = 0,
        resume: tuple[str, int] = ("", 0),
    ) -> SerializedAnswer:
        """Return the answer of a Compile call.

        The artifact is in the first message if it is small and not encoded. No byte of it is
        sent to a caller that gets a file's name. To ``resume`` is to begin behind so many bytes, if
        this is the artifact with that digest and has more.
        """
        artifact, size_bytes = served.artifact, served.artifact.size_bytes
        if omit_artifact or served.host_file:
            return SerializedAnswer(self._message(served))
        if artifact.encoding:
            size_bytes = sum(map(len, wire.payload_views(artifact.frames)))
            encoded = types_pb2.ArtifactHeader(content_encoding=artifact.encoding)
            first = self._message(served, encoded.SerializeToString())
            return SerializedAnswer(first, artifact, size_bytes)
        sha256, offset_bytes = resume
        if sha256 == artifact.sha256 and offset_bytes < size_bytes:
            begins = types_pb2.ArtifactHeader(offset_bytes=offset_bytes).SerializeToString()
            first, left_bytes = self._message(served, begins), size_bytes - offset_bytes
            return SerializedAnswer(first, artifact, left_bytes, offset_bytes)
        limit_bytes = min(inline_limit_bytes, wire.ONE_MESSAGE_BYTES)
        if size_bytes <= limit_bytes and len(artifact.frames) == 1:
            # The same length and bytes under another tag.
            first = self._message(served, _INLINE_TAG, memoryview(artifact.frames[0])[1:])
            return SerializedAnswer(first, None, size_bytes)
        return SerializedAnswer(self._message(served), artifact, size_bytes)

    def _message(self, served: Served, *more: bytes | memoryview) -> bytes:
        """Return the serialized CompileResponse whose header has ``more`` fields."""
        what = served.artifact.described or served.artifact
        if (kept := self._kept.get(what)) is None:
            kept = self._kept[what] = _of_artifact(what)
        key = served.compatibility or served.artifact.compatibility
        of_call = _of_call(served.origin, served.queue_time_s, served.host_file, key)
        parts = (*kept, served.artifact.attestation, of_call, *more)
        return b"".join((_HEADER_TAG, wire.varint(sum(map(len, parts))), *parts))


def header_of(artifact: model.Artifact) -> types_pb2.ArtifactHeader:
    """Return what an artifact says of itself, whichever call asks: no field of a call is set."""
    parts = (*_of_artifact(artifact), artifact.attestation)
    return types_pb2.ArtifactHeader.FromString(b"".join(parts))


def _of_artifact(artifact: model.Artifact) -> tuple[bytes, bytes]:
    """Return the serialized header as far as the attestation, whose bytes are not copied."""
    spec, attested_bytes = artifact.spec, len(artifact.attestation)
    header = types_pb2.ArtifactHeader(
        module_sha256=artifact.module_sha256,
        artifact_sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        compile_time=duration(artifact.compile_time_s),
        kind=f"KIND_{artifact.kind.name}",
        imports=[{"module": each.module, **_export(each)} for each in artifact.imports],
        exports=map(_export, artifact.exports),
        types_truncated=artifact.types_truncated,
    )
    pairs = tuple(spec.settings.items()), tuple(spec.changed_settings.items())
    of_spec = _of_spec(spec.engine, spec.target, spec.cpu, *pairs, spec.fingerprint, spec.is_fast)
    begins = _ATTESTATION_TAG + wire.varint(attested_bytes) if attested_bytes else b""
    return of_spec, header.SerializeToString() + begins


@lru_cache(maxsize=256)  # Not by the spec, which compares by its fingerprint alone.
def _of_spec(engine: model.EngineIdentity, *rest: Any) -> bytes:
    """Return the fields of a header that all artifacts of a spec have in common."""
    of = (dict(each) if isinstance(each, tuple) else each for each in rest)
    given: Any = dict(zip(_OF_SPEC, (filled(types_pb2.Engine, engine), *of), strict=True))
    return types_pb2.ArtifactHeader(**given).SerializeToString()


@lru_cache(maxsize=256)  # For hits: they differ in little.
def _of_call(
    origin: model.Origin, queue_time_s: float, file: model.HostFile | None, key: str
) -> bytes:
    """Return the fields of a header that differ from call to call."""
    return types_pb2.ArtifactHeader(
        origin=f"ORIGIN_{origin.name}",
        queue_time=duration(queue_time_s) if queue_time_s else None,
        host_file=filled(types_pb2.HostFile, file) if file else None,
        compatibility=bytes.fromhex(key),
    ).SerializeToString()


def _export(item: model.ExternType) -> dict[str, Any]:
    kind = _EXTERN_KINDS.get(item.kind, types_pb2.EXTERN_KIND_OTHER)
    return {"name": item.name, "kind": kind, "type": item.type}


def load_response(loaded: LoadResult) -> pb.LoadResponse:
    """Return the response of Load."""
    return filled(
        pb.LoadResponse,
        loaded,
        sha256=loaded.module.sha256,
        size_bytes=loaded.module.size_bytes,
        kind=f"KIND_{loaded.module.kind.name}",
        engine=loaded.engine_id,
        artifacts=[
            filled(types_pb2.CachedArtifact, each, each.spec, engine=each.spec.engine.id)
            for each in loaded.artifacts[:MAX_CACHED_ARTIFACTS]
        ],
    )


def quarantined_module(strike: model.Strike) -> admin.QuarantinedModule:
    """Return one entry of ListQuarantine."""
    return filled(
        admin.QuarantinedModule,
        strike,
        strike.key,
        engine=strike.engine_id,
        strikes=strike.count,
        time_left=duration(strike.left_s),
    )


def job(namespace: str, engine_id: str, job: Job) -> admin.Job:
    """Return a job as operators get it."""
    since_s, queued_s = time.monotonic() - job.asked_s, job.queued_s if job.worker else None
    callers = {each.caller.removeprefix(f"{namespace}/") for each in job.waiters.waiting}
    return filled(
        admin.Job,
        job,
        job.order,
        namespace=namespace,
        callers=sorted(callers - {""}),
        engine=engine_id,
        work=job.order.order["op"],
        waited=duration(since_s if queued_s is None else queued_s),
        ran=None if queued_s is None else duration(since_s - queued_s),
    )


def pin(pin: model.Pin) -> admin.Pin:
    """Return a pin as callers get it."""
    tiers = [
        filled(admin.PinnedInTier, held, tier=tier, module=held.modules > 0)
        for tier, held in pin.tiers.items()
    ]
    return filled(
        admin.Pin, pin, tiers=tiers, created_at=datetime.fromtimestamp(pin.pinned_ms / 1e3, UTC)
    )


class Capabilities(NamedTuple):
    """What GetCapabilities tells every caller."""

    version: str
    # Each engine, with the isolation of its jobs and its known vulnerabilities.
    engines: Sequence[tuple[ServedEngine, model.Isolation, Sequence[Advisory]]]
    # The id of the engine for requests that name none.
    default: str
    # The id that each name stands for.
    names: Mapping[str, str]
    unserved: Sequence[model.UnservedEngine]
    limits: model.Limits
    isolation_required: bool


def capabilities(told: Capabilities) -> pb.GetCapabilitiesResponse:
    """Return the response of GetCapabilities, without the caller."""
    limits = told.limits
    return filled(
        pb.GetCapabilitiesResponse,
        told,
        engines=[_capabilities(*each, told.default) for each in told.engines],
        limits=filled(
            pb.Limits,
            limits,
            compile_time=duration(limits.compile_timeout_s),
            compile_cpu_time=duration(limits.compile_cpu_s),
            chunk_bytes=wire.CHUNK_BYTES,
            find_missing_keys=MAX_FIND_MISSING_KEYS,
        ),
        unserved_engines=[
            pb.UnservedEngine(id=each.id, cause=model.for_callers(each.cause))
            for each in told.unserved
        ],
        engine_names=told.names,
        caller=None,
    )


def _capabilities(
    engine: ServedEngine, isolation: model.Isolation, advisories: Sequence[Advisory], default: str
) -> pb.EngineCapabilities:
    known = engine.capabilities
    return filled(
        pb.EngineCapabilities,
        known,
        engine=filled(types_pb2.Engine, known.identity),
        fingerprint=engine.spec("", "", {}).fingerprint,
        targets=[
            filled(pb.Target, target, settings=_offered(target.settings))
            for target in known.targets
        ],
        settings=_offered(known.settings),
        kinds=sorted(types_pb2.Kind.Value(f"KIND_{kind.name}") for kind in known.kinds),
        default=engine.id == default,
        advisories=[filled(pb.Advisory, each) for each in advisories],
        isolation=filled(
            pb.Isolation,
            isolation,
            layers=[
                filled(pb.IsolationLayer, layer, state=f"STATE_{layer.state.name}")
                for layer in isolation.layers
            ],
            attempts=[
                {"name": name, "refused": refused} for name, refused in isolation.attempts.items()
            ],
        ),
    )


def _offered(known: Sequence[model.SettingInfo]) -> list[pb.Setting]:
    return [
        filled(pb.Setting, each, default_value=each.default, allowed_values=each.allowed)
        for each in known
    ]


def caller(identity: model.Identity, module_bytes: int) -> pb.Caller:
    """Return who the caller is to the daemon, which takes modules of ``module_bytes`` from most."""
    return pb.Caller(
        identity=identity.name,
        roles=[role.value for role in model.Role if role in identity.roles],
        namespace=identity.namespace,
        module_bytes=identity.module_bytes or module_bytes,
    )


def stats_response(
    metrics: Metrics,
    namespace: str = "",
    quotas: Iterable[model.QuotaReading] = (),
    engine_names: Mapping[str, str] | None = None,
) -> pb.StatsResponse:
    """Return what ``metrics``, those of ``namespace``, hold now. Never raises."""
    now, counts = metrics.gauges.read(), metrics.counts
    return filled(
        pb.StatsResponse,
        now,
        now.remote,
        metrics,
        started_at=datetime.fromtimestamp(metrics.started_at_s, UTC),
        uptime=duration(metrics.uptime_s),
        tiers=[_tier(metrics, tier, usage) for tier, usage in now.tiers.items()],
        compiles=[
            {"engine": engine, "outcome": outcome, "count": took.count, "duration": _latency(took)}
            for engine, outcome in sorted(metrics.counts["compile_duration_seconds"])
            for took in [metrics.summary("compile_duration_seconds", engine, outcome)]
        ],
        workers=[
            filled(pb.WorkerStats, usage, engine=engine, replaced=replaced)
            for engine, usage in now.engines.items()
            for replaced in [counts["workers_replaced"].get((engine,), 0)]
        ],
        queue_depth=sum(usage.queued for usage in now.engines.values()),
        busy_workers=sum(usage.busy for usage in now.engines.values()),
        flights_joined=counts["flights_joined"][()],
        quarantined_modules=now.quarantined,
        redis_up=now.remote.up,
        redis_mode=now.remote.mode,
        redis_detail=now.remote.detail,
        object_store_up=now.objects.up,
        object_store_mode=now.objects.mode,
        object_store_detail=now.objects.detail,
        pending_object_writes=now.objects.pending_writes,
        dropped_object_writes=now.objects.dropped_writes,
        namespace=namespace,
        engine_names=engine_names,
        quotas=[filled(pb.QuotaUsage, each, quota=each.kind) for each in quotas],
        engine_warm_ups=[
            filled(pb.EngineWarmUp, each, engine=each.engine_id, from_engine=each.from_engine_id)
            for each in now.warm_ups
        ],
    )


def _tier(metrics: Metrics, tier: str, usage: model.TierUsage) -> pb.TierStats:
    lookups = metrics.counts["tier_lookups"]
    return filled(
        pb.TierStats,
        usage,
        tier=tier,
        hits=lookups[tier, "artifact", "hit"],
        misses=lookups[tier, "artifact", "miss"],
        errors=metrics.errors(tier),
        module_hits=lookups[tier, "module", "hit"],
        module_misses=lookups[tier, "module", "miss"],
        get_latency=_latency(metrics.summary("tier_lookup_duration_seconds", tier, "artifact")),
        put_latency=_latency(metrics.summary("tier_store_duration_seconds", tier)),
    )


def _latency(summary: LatencySummary) -> pb.LatencySummary:
    percentiles = {name: duration(getattr(summary, f"{name}_s")) for name in _SUMMARY}
    return pb.LatencySummary(count=summary.count, **percentiles)
