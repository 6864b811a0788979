"""Build the orders that a job understands: see :mod:`wasmkilnd.engines.child.job`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wasmkilnd.engines.child.cpu import NATIVE
from wasmkilnd.engines.workers.job_protocol import JobOrder
from wasmkilnd.model import Kind, Limits, Module


def on_module(
    op: str, module: Module, target: str, cpu: str, settings: Mapping[str, str], limits: Limits
) -> JobOrder:
    """Return an order to ``compile`` or ``validate`` a module."""
    return JobOrder(
        order={
            "op": op,
            "kind": module.kind.value,
            "target": target,
            "cpu": cpu,
            "settings": dict(settings),
        },
        wasm=module.wasm,
        timeout_s=limits.compile_timeout_s,
        cpu_s=limits.compile_cpu_s,
        memory_bytes=limits.compile_memory_bytes,
        artifact_limit_bytes=limits.artifact_bytes,
        module_sha256=module.sha256,
    )


def call(
    artifact: bytes | bytearray,
    kind: Kind,
    target: str,
    export: str,
    arguments: Sequence[int],
    limits: Limits,
) -> JobOrder:
    """Return an order to load an artifact as a host would, and call one of its functions."""
    return JobOrder(
        order={
            "op": "call",
            "kind": kind.value,
            "target": target,
            "cpu": NATIVE,
            "settings": {},
            "export": export,
            "arguments": list(arguments),
        },
        wasm=bytes(artifact),  # sent in the place of a module
        timeout_s=limits.compile_timeout_s,
        cpu_s=limits.compile_cpu_s,
        memory_bytes=limits.compile_memory_bytes,
    )


def describe(limits: Limits) -> JobOrder:
    """Return an order to find out what the engine can do."""
    return _without_module("describe", limits)


def nothing(limits: Limits) -> JobOrder:
    """Return an order to be set up like every job, and end."""
    return _without_module("nothing", limits)


def _without_module(op: str, limits: Limits) -> JobOrder:
    return JobOrder(
        order={"op": op},
        wasm=None,
        timeout_s=limits.compile_timeout_s,
        cpu_s=limits.compile_cpu_s,
        memory_bytes=limits.compile_memory_bytes,
    )
