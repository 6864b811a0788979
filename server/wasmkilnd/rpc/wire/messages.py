"""Translates domain values to messages of the contract, and requests to domain values."""

from __future__ import annotations

import re

from google.protobuf import duration_pb2
from wasmkiln.v1 import admin_service_pb2, module_service_pb2, types_pb2

from wasmkilnd.admission import check_sha256
from wasmkilnd.errors import invalid_request, quoted
from wasmkilnd.model import (
    EngineCapabilities,
    EngineIdentity,
    EvictScope,
    Isolation,
    Kind,
    LayerState,
    Strike,
)
from wasmkilnd.requests import (
    CompileRequest,
    LoadRequest,
    LoadResult,
    Terms,
    WantedArtifact,
)

KINDS = {
    Kind.CORE_MODULE: types_pb2.KIND_CORE_MODULE,
    Kind.COMPONENT: types_pb2.KIND_COMPONENT,
}
LAYER_STATES = {
    LayerState.ENFORCED: module_service_pb2.IsolationLayer.STATE_ENFORCED,
    LayerState.PARTIAL: module_service_pb2.IsolationLayer.STATE_PARTIAL,
    LayerState.MISSING: module_service_pb2.IsolationLayer.STATE_MISSING,
}
TIERS = {
    admin_service_pb2.TIER_UNSPECIFIED: "",
    admin_service_pb2.TIER_MEMORY: "memory",
    admin_service_pb2.TIER_REDIS: "redis",
    admin_service_pb2.TIER_HOST_STORE: "host_store",
}

MAX_CACHED_ARTIFACTS = 1000
"""Of one module, in the response of Load. With their settings they fit into the 4 MiB that gRPC's
clients accept by default.
"""

# What duration.proto allows.
_MAX_DURATION_S = 315_576_000_000

_ENGINE_ID = re.compile(r"[a-z]+-[0-9][0-9A-Za-z.+!-]*")


def duration(seconds: float) -> duration_pb2.Duration:
    """Return ``seconds`` as a Duration."""
    message = duration_pb2.Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message


def seconds(message: duration_pb2.Duration, field: str) -> float:
    """Return a caller's Duration. Raises INVALID_REQUEST for a negative or malformed one."""
    if not 0 <= message.seconds <= _MAX_DURATION_S or not 0 <= message.nanos < 1_000_000_000:
        raise invalid_request(f"cannot use {field}: expected a duration of 0 s or more", field)
    return message.seconds + message.nanos / 1e9


def engine(identity: EngineIdentity) -> types_pb2.Engine:
    """Return an engine's message."""
    return types_pb2.Engine(
        id=identity.id,
        name=identity.name,
        version=identity.version,
        core_version=identity.core_version,
        compiler=identity.compiler,
    )


class CompileCall:
    """A CompileRequest as it came: translated once, however many calls send the same bytes."""

    __slots__ = (
        "_message",
        "_translated",
        "engine",
        "inline_limit_bytes",
        "omit_artifact",
        "sha256",
    )

    def __init__(self, raw: bytes) -> None:
        """Raise DecodeError for bytes that are no CompileRequest."""
        message = module_service_pb2.CompileRequest.FromString(raw)
        self._message = message
        self._translated: CompileRequest | None = None
        self.sha256 = message.sha256
        self.engine = message.engine
        self.omit_artifact = message.omit_artifact
        self.inline_limit_bytes = message.inline_limit_bytes

    def request(self, terms: Terms) -> CompileRequest:
        """Return the request with a call's terms. Raises INVALID_REQUEST."""
        if self._translated is None:
            self._translated = _compile_request(self._message)
        return self._translated.of_call(terms)


def _compile_request(request: module_service_pb2.CompileRequest) -> CompileRequest:
    source = request.WhichOneof("source")
    if source is None:
        raise invalid_request(
            "cannot compile: the request has no source; set sha256 or module", "source"
        )
    if source == "sha256":
        check_sha256(request.sha256, "sha256")
    return CompileRequest(
        sha256=request.sha256,
        wasm=request.module,
        engine=request.engine,
        target=request.target,
        cpu=request.cpu,
        settings=dict(request.settings),
        skip_cache_lookup=request.skip_cache_lookup,
        accept_host_file=request.accept_host_file,
        accept_encodings=frozenset(request.accept_encodings),
        accept_fast=request.accept_fast,
    )


def load_request(request: module_service_pb2.LoadRequest, terms: Terms) -> LoadRequest:
    """Translate a LoadRequest."""
    return LoadRequest(request.module, request.expected_sha256, request.engine, terms)


def load_response(loaded: LoadResult) -> module_service_pb2.LoadResponse:
    """Return the response of Load."""
    return module_service_pb2.LoadResponse(
        sha256=loaded.module.sha256,
        size_bytes=len(loaded.module.wasm),
        already_loaded=loaded.already_loaded,
        kind=KINDS[loaded.module.kind],
        engine=loaded.engine_id,
        artifacts=[
            types_pb2.CachedArtifact(
                engine=artifact.spec.engine.id,
                fingerprint=artifact.spec.fingerprint,
                target=artifact.spec.target,
                cpu=artifact.spec.cpu,
                size_bytes=artifact.size_bytes,
                settings=artifact.spec.settings,
            )
            for artifact in loaded.artifacts[:MAX_CACHED_ARTIFACTS]
        ],
    )


def wanted(key: types_pb2.ArtifactKey) -> WantedArtifact:
    """Translate an ArtifactKey."""
    return WantedArtifact(
        module_sha256=key.module_sha256,
        engine=key.engine,
        target=key.target,
        cpu=key.cpu,
        settings=dict(key.settings),
        fingerprint=key.fingerprint,
    )


def evict_scope(request: admin_service_pb2.EvictRequest) -> EvictScope:
    """Translate the scope of an EvictRequest. Raises INVALID_REQUEST."""
    scope = request.WhichOneof("scope")
    if scope == "module_sha256" and request.module_sha256:
        return EvictScope(module_sha256=request.module_sha256)
    if scope == "engine":
        # Any id will do, for the engine may have been removed.
        if not _ENGINE_ID.fullmatch(request.engine):
            raise invalid_request(
                f"cannot evict {quoted(request.engine)}: expected an id such as wasmtime-50.0.1",
                "engine",
            )
        return EvictScope(engine_id=request.engine)
    if scope == "all" and request.all:
        return EvictScope()
    raise invalid_request(
        "cannot evict: the request has no scope; set module_sha256, engine, or all to true", "scope"
    )


def quarantined_module(strike: Strike) -> admin_service_pb2.QuarantinedModule:
    """Return one entry of ListQuarantine."""
    return admin_service_pb2.QuarantinedModule(
        module_sha256=strike.key.module_sha256,
        fingerprint=strike.key.fingerprint,
        engine=strike.engine_id,
        reason=strike.reason,
        message=strike.message,
        strikes=strike.count,
        time_left=duration(strike.left_s),
    )


def engine_capabilities(
    capabilities: EngineCapabilities, fingerprint: str, is_default: bool, isolation: Isolation
) -> module_service_pb2.EngineCapabilities:
    """Return one engine's entry of GetCapabilities."""
    return module_service_pb2.EngineCapabilities(
        engine=engine(capabilities.identity),
        fingerprint=fingerprint,
        targets=[
            module_service_pb2.Target(triple=target.triple, cpus=target.cpus, host=target.host)
            for target in capabilities.targets
        ],
        settings=[
            module_service_pb2.Setting(
                name=setting.name,
                default_value=setting.default,
                allowed_values=setting.allowed,
                description=setting.description,
            )
            for setting in capabilities.settings
        ],
        wasm_features=capabilities.wasm_features,
        kinds=sorted(KINDS[kind] for kind in capabilities.kinds),
        default=is_default,
        interpreter=capabilities.interpreter,
        host_triple=capabilities.host_triple,
        host_cpu_features=capabilities.host_cpu_features,
        isolation=module_service_pb2.Isolation(
            holds=isolation.holds,
            layers=[
                module_service_pb2.IsolationLayer(
                    name=layer.name, state=LAYER_STATES[layer.state], detail=layer.detail
                )
                for layer in isolation.layers
            ],
            attempts=[
                module_service_pb2.BreakOutAttempt(name=name, refused=refused)
                for name, refused in isolation.attempts.items()
            ],
        ),
    )
