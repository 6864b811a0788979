"""True answers with every field filled in, so that there is something to lie about."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2
from wasmkiln.v1 import admin_service_pb2 as admin
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1 import types_pb2 as types

WASM = b"\0asm\x01\0\0\0"
DIGEST = hashlib.sha256(WASM).hexdigest()
ARTIFACT = b"native code " * 1000
MISSING = types.ArtifactKey(module_sha256=DIGEST)

ENGINE = types.Engine(
    id="wasmtime-50.0.1",
    name="wasmtime",
    version="50.0.1",
    core_version="50.0.1",
    compiler="cranelift",
)
_SECOND = Duration(seconds=1)
_PIN = admin.Pin(
    module_sha256=DIGEST,
    created_at=Timestamp(seconds=1),
    tiers=[admin.PinnedInTier(tier="memory", artifacts=1, module=True, bytes=1)],
)
_LATENCY = modules.LatencySummary(count=1, sum=_SECOND, p50=_SECOND, p90=_SECOND, p99=_SECOND)


def header(request: modules.CompileRequest | None = None) -> types.ArtifactHeader:
    """What a daemon says of the artifact that a request asks for."""
    asked = request or modules.CompileRequest()
    return types.ArtifactHeader(
        module_sha256=asked.sha256 or hashlib.sha256(asked.module or WASM).hexdigest(),
        artifact_sha256=hashlib.sha256(ARTIFACT).hexdigest(),
        size_bytes=len(ARTIFACT),
        engine=ENGINE,
        target=asked.target or "x86_64-unknown-linux-gnu",
        cpu=asked.cpu or "baseline",
        settings={"consume_fuel": "false", **asked.settings},
        changed_settings=asked.settings,
        fingerprint="f" * 64,
        origin=types.ORIGIN_MEMORY,
        queue_time=_SECOND,
        compile_time=_SECOND,
        attestation=b"{}",
        kind=types.KIND_CORE_MODULE,
        imports=[types.ImportType(module="m", name="n", kind="EXTERN_KIND_TABLE", type="()")],
        exports=[types.ExportType(name="n", kind="EXTERN_KIND_TABLE", type="()")],
        types_truncated=True,
        signer_certificate=b"-----BEGIN CERTIFICATE-----",
    )


ANSWERS: dict[str, Message] = {
    "Load": modules.LoadResponse(
        sha256=DIGEST,
        size_bytes=len(WASM),
        already_loaded=True,
        artifacts=[
            types.CachedArtifact(
                engine="e", fingerprint="f", target="t", cpu="c", size_bytes=1, settings={"a": "b"}
            )
        ],
        kind=types.KIND_CORE_MODULE,
        engine="wasmtime-50.0.1",
    ),
    "Stats": modules.StatsResponse(
        version="1",
        started_at=Timestamp(seconds=1),
        uptime=_SECOND,
        tiers=[
            modules.TierStats(
                tier="memory",
                entries=1,
                bytes=1,
                limit_bytes=1,
                hits=1,
                misses=1,
                evictions=1,
                errors=1,
                get_latency=_LATENCY,
                put_latency=_LATENCY,
                module_hits=1,
                module_misses=1,
                pinned_entries=1,
                pinned_bytes=1,
            )
        ],
        compiles=[
            modules.CompileStats(outcome="ok", count=1, duration=_LATENCY, engine="wasmtime")
        ],
        workers=[modules.WorkerStats(engine="wasmtime", workers=1, busy=1, queued=1, replaced=1)],
        queue_depth=1,
        busy_workers=1,
        flights=1,
        flights_joined=1,
        quarantined_modules=1,
        hit_ratio=0.5,
        redis_up=True,
        redis_mode="embedded",
        redis_detail="none",
        pending_writes=1,
        dropped_writes=1,
        namespace="team-a",
        pins=1,
        engine_names={"wasmtime": "wasmtime-50.0.1"},
        quotas=[
            modules.QuotaUsage(
                identity="token:ci", quota="calls_per_minute", used=1, limit=2, refused=1
            )
        ],
        engine_warm_ups=[
            modules.EngineWarmUp(engine="e", from_engine="d", total=3, done=1, failed=1, ended=True)
        ],
    ),
    "GetCapabilities": modules.GetCapabilitiesResponse(
        version="1",
        engines=[
            modules.EngineCapabilities(
                engine=ENGINE,
                fingerprint="f",
                targets=[modules.Target(triple="t", cpus=["baseline"], host=True)],
                settings=[
                    modules.Setting(
                        name="n", default_value="d", allowed_values=["d"], description="what"
                    )
                ],
                wasm_features=["simd"],
                kinds=[types.KIND_CORE_MODULE],
                default=True,
                interpreter="CPython 3.13",
                host_triple="t",
                host_cpu_features=["avx"],
                isolation=modules.Isolation(
                    holds=True,
                    layers=[
                        modules.IsolationLayer(name="seccomp", state="STATE_PARTIAL", detail="a")
                    ],
                    attempts=[modules.BreakOutAttempt(name="fork", refused=True)],
                ),
                advisories=[
                    modules.Advisory(
                        id="A-1", summary="a flaw", fixed_in=["1.2.3"], url="https://a"
                    )
                ],
            )
        ],
        limits=modules.Limits(
            module_bytes=1,
            compile_time=_SECOND,
            compile_memory_bytes=1,
            artifact_bytes=1,
            chunk_bytes=1,
            compile_cpu_time=_SECOND,
            queue_length=1,
            find_missing_keys=1,
        ),
        engine_names={"wasmtime": "wasmtime-50.0.1"},
        unserved_engines=[modules.UnservedEngine(id="e", cause="c")],
        isolation_required=True,
        caller=modules.Caller(identity="token:ci", roles=["compile"], namespace="team-a"),
    ),
    "FindMissing": modules.FindMissingResponse(missing=[MISSING]),
    "Evict": admin.EvictResponse(
        artifacts=1, modules=1, bytes=1, pinned=1, unreachable_tiers=["redis"]
    ),
    "ListQuarantine": admin.ListQuarantineResponse(
        modules=[
            admin.QuarantinedModule(
                module_sha256=DIGEST,
                fingerprint="f",
                engine="e",
                reason="COMPILE_TIMEOUT",
                message="m",
                strikes=1,
                time_left=_SECOND,
            )
        ]
    ),
    "Pin": admin.PinResponse(pin=_PIN, redis_unreachable=True),
    "Unpin": admin.UnpinResponse(removed=True, redis_unreachable=True),
    "ListPins": admin.ListPinsResponse(pins=[_PIN]),
    "ReleaseQuarantine": admin.ReleaseQuarantineResponse(released=1, redis_unreachable=True),
    "Drain": admin.DrainResponse(grace=_SECOND, calls=1, flights=1),
    "Check": health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING),
    "Compile": modules.CompileResponse(header=header()),
}


def chunks(content: bytes = ARTIFACT, size_bytes: int = 5000) -> list[bytes]:
    """The messages that carry an artifact."""
    return [
        modules.CompileResponse(chunk=content[at : at + size_bytes]).SerializeToString()
        for at in range(0, len(content), size_bytes)
    ]


def compiled(told: bytes, request: bytes) -> Iterator[bytes]:
    """A Compile's messages behind one that holds a header."""
    yield told
    if not modules.CompileRequest.FromString(request).omit_artifact:
        yield from chunks()


def telling(method: str, told: bytes) -> Callable[[bytes, Any], Iterator[bytes]]:
    """An answer that says one thing; about a Compile, the artifact follows its header."""
    if method == "Compile":
        return lambda request, _context: compiled(told, request)
    return lambda _request, _context: iter([told])


def _compile(request: bytes, _context: Any) -> Iterator[bytes]:
    asked = modules.CompileRequest.FromString(request)
    told = modules.CompileResponse(header=header(asked)).SerializeToString()
    return compiled(told, request)


def _load(request: bytes, _context: Any) -> Iterator[bytes]:
    module = modules.LoadRequest.FromString(request).module
    answer = modules.LoadResponse.FromString(ANSWERS["Load"].SerializeToString())
    answer.sha256, answer.size_bytes = hashlib.sha256(module).hexdigest(), len(module)
    yield answer.SerializeToString()


def _find_missing(request: bytes, _context: Any) -> Iterator[bytes]:
    keys = modules.FindMissingRequest.FromString(request).keys
    yield modules.FindMissingResponse(missing=keys).SerializeToString()


HONEST: dict[str, Callable[[bytes, Any], Iterator[bytes]]] = {
    **{method: telling(method, message.SerializeToString()) for method, message in ANSWERS.items()},
    "Compile": _compile,
    "Load": _load,
    "FindMissing": _find_missing,
}
