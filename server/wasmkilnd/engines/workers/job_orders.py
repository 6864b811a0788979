"""Build the orders that a job understands: see :mod:`wasmkilnd.engines.child.job`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wasmkilnd.engines.workers.job_protocol import JobOrder
from wasmkilnd.model import Limits, Module


def on_module(
    op: str, module: Module, target: str, cpu: str, settings: Mapping[str, str], limits: Limits
) -> JobOrder:
    """Return an order to ``compile`` or ``validate`` a module."""
    about: dict[str, Any] = {
        "kind": module.kind.value,
        "target": target,
        "cpu": cpu,
        "settings": dict(settings),
    }
    return _order(op, limits, module.wasm, module.sha256, limits.artifact_bytes, **about)


def describe(limits: Limits) -> JobOrder:
    """Return an order to find out what the engine can do."""
    return _order("describe", limits)


def nothing(limits: Limits) -> JobOrder:
    """Return an order to be set up like every job, and end."""
    return _order("nothing", limits)


def _order(
    op: str,
    limits: Limits,
    wasm: bytes | None = None,
    sha256: str = "",
    artifact_bytes: int = 0,
    **about: Any,
) -> JobOrder:
    return JobOrder(
        {"op": op, **about},
        wasm,
        limits.compile_timeout_s,
        limits.compile_cpu_s,
        limits.compile_memory_bytes,
        artifact_bytes,
        sha256,
    )
