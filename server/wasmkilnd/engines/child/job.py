"""One job: a process that carries out one order for one module, and ends."""

from __future__ import annotations

import json
import resource
import socket
import time
from typing import Any

from . import frames
from .describe import describe
from .engine import Engine, FeatureLacking, ModuleRefused, SettingsRefused, offset_in
from .isolation import priority
from .isolation.confinement import Confinement

# The most imports and exports that a header holds: a hostile module has hundreds of thousands,
# and a client reads messages of at most 4 MiB. Bytes are counted as they are sent, so that a RESULT
# frame stays within its limit.
MAX_TYPES = 1_000
_MAX_TYPES_BYTES = 256 * 1024
# How much is kept at either end of an engine's message, which quotes names of the module. JSON
# needs at most six bytes for a character.
_MAX_MESSAGE_END = 4096


def run(engine: Engine, sock: socket.socket, confinement: Confinement, wanted: str) -> None:
    """Read the order from ``sock``, carry it out, and send the result on ``sock``.

    The job gets the priority ``wanted`` and is sealed before it reads a byte of a module.
    """
    _, order_json = frames.receive(sock)
    order = json.loads(order_json)
    if order["op"] == "describe":
        frames.send(sock, frames.Type.SET_UP)
        _send_result(sock, outcome="ok", capabilities=describe(engine, confinement))
        return
    priority.lower_to(wanted)
    confinement.seal()
    frames.send(sock, frames.Type.SET_UP)
    if order["op"] == "nothing":
        return
    _, wasm = frames.receive(sock, int(order["module_bytes"]))
    started = time.perf_counter()
    try:
        configured = engine.configure(order["target"], order["cpu"], order["settings"])
        frames.send(sock, frames.Type.CONFIGURED)
        if order["op"] == "call":
            value = engine.call(
                configured, wasm, order["kind"], order["export"], order["arguments"]
            )
            _send_result(sock, outcome="ok", value=value)
            return
        if order["op"] == "validate":
            engine.validate(configured, wasm, order["kind"])
            _send_result(sock, outcome="ok", seconds=time.perf_counter() - started)
            return
        module = engine.compile(configured, wasm, order["kind"])
        frames.send(sock, frames.Type.COMPILED)
        artifact = engine.serialize(module)
    except SettingsRefused as refusal:
        _send_result(sock, outcome="settings_refused", message=_cut(str(refusal)))
    except ModuleRefused as refusal:
        message = str(refusal)
        _send_result(sock, outcome="invalid", message=_cut(message), offset=offset_in(message))
    except FeatureLacking as refusal:
        message = str(refusal)
        _send_result(sock, outcome="unsupported", message=_cut(message), offset=offset_in(message))
    except MemoryError:
        _send_result(sock, outcome="out_of_memory")
    else:
        seconds = time.perf_counter() - started
        if len(artifact) > int(order["artifact_limit_bytes"]):
            _send_result(sock, outcome="too_large", size_bytes=len(artifact))
            return
        frames.send(sock, frames.Type.ARTIFACT, artifact)
        # Last, because an engine may abort on types that it compiles but cannot name. The artifact
        # is complete by then.
        _send_result(sock, outcome="ok", seconds=seconds, **_types(engine, configured, module))


def _send_result(sock: socket.socket, **result: Any) -> None:
    result["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    frames.send(sock, frames.Type.RESULT, _json(result))


def _json(value: Any) -> bytes:
    # Most names are shorter than with escapes. Replace a lone surrogate, which no name contains.
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def _cut(message: str) -> str:
    if len(message) <= 2 * _MAX_MESSAGE_END:
        return message
    return f"{message[:_MAX_MESSAGE_END]} … {message[-_MAX_MESSAGE_END:]}"


def _types(engine: Engine, configured: Any, module: Any) -> dict[str, Any]:
    imports, exports = engine.externs(configured, module)
    budget = _MAX_TYPES_BYTES
    kept: dict[str, list[list[str]]] = {"imports": [], "exports": []}
    truncated = len(imports) + len(exports) > MAX_TYPES
    room = MAX_TYPES
    for name, items in (("imports", imports), ("exports", exports)):
        for item in items[:room]:
            row = [item.module, item.name, item.kind, item.type]
            budget -= len(_json(row)) + len(", ")
            if budget < 0:
                truncated = True
                break
            kept[name].append(row)
        room -= len(kept[name])
    return {**kept, "types_truncated": truncated}
