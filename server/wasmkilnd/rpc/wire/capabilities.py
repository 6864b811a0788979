"""Builds the response of GetCapabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd.model import (
    EngineCapabilities,
    Identity,
    Isolation,
    Limits,
    Role,
    UnservedEngine,
)
from wasmkilnd.rpc.wire import messages
from wasmkilnd.rpc.wire.bounds import MAX_FIND_MISSING_KEYS
from wasmkilnd.wire import CHUNK_BYTES


def capabilities_response(
    version: str,
    engines: Sequence[tuple[EngineCapabilities, str, Isolation]],
    default: str,
    names: Mapping[str, str],
    unserved: Sequence[UnservedEngine],
    limits: Limits,
    *,
    isolation_required: bool,
) -> pb.GetCapabilitiesResponse:
    """Return the response of GetCapabilities.

    ``engines`` has each engine that is served, with the fingerprint of its default target, cpu
    and settings, and the isolation of its jobs. ``default`` is the id of the engine for requests
    that name none, and ``names`` has the one that each name stands for.
    """
    return pb.GetCapabilitiesResponse(
        version=version,
        engines=[
            messages.engine_capabilities(
                engine, fingerprint, engine.identity.id == default, isolation
            )
            for engine, fingerprint, isolation in engines
        ],
        limits=pb.Limits(
            module_bytes=limits.module_bytes,
            compile_time=messages.duration(limits.compile_timeout_s),
            compile_cpu_time=messages.duration(limits.compile_cpu_s),
            compile_memory_bytes=limits.compile_memory_bytes,
            artifact_bytes=limits.artifact_bytes,
            chunk_bytes=CHUNK_BYTES,
            queue_length=limits.queue_length,
            find_missing_keys=MAX_FIND_MISSING_KEYS,
        ),
        isolation_required=isolation_required,
        engine_names=names,
        unserved_engines=[pb.UnservedEngine(id=one.id, cause=one.cause) for one in unserved],
    )


def caller_message(identity: Identity) -> pb.Caller:
    """Return who the caller is to the daemon."""
    return pb.Caller(
        identity=identity.name,
        roles=[role.value for role in Role if role in identity.roles],
        namespace=identity.namespace,
    )
