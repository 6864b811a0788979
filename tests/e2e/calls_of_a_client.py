"""``python calls_of_a_client.py ADDRESS HOST_STORE FILE``: make calls as a host does.

It imports whichever ``wasmkiln`` comes first, and prints as JSON what it got.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wasmkiln
import wasmtime


def sha256(content: bytes) -> str:
    """Return a digest in hex."""
    return hashlib.sha256(content).hexdigest()


def reason(call: Callable[..., Any], *arguments: Any, **options: Any) -> str | None:
    """Return why a call is refused."""
    try:
        call(*arguments, **options)
    except wasmkiln.WasmkilnError as refused:
        return refused.reason
    return None


def main(address: str, store: str, file: str) -> None:
    """Make the calls."""
    module = Path(file).read_bytes()
    with wasmkiln.Client(address, host_store_dir=store, timeout_s=60) as client:
        made = client.compile(file, engine="wasmtime")
        loaded = client.module(file, engine="wasmtime")
        engine_store = wasmtime.Store(wasmkiln.engine_of(loaded))
        exported = wasmtime.Instance(engine_store, loaded, []).exports(engine_store)["add"]
        client.pin(sha256(module))
        told = {
            "package": wasmkiln.__file__,
            "engine": made.header.engine.id,
            "artifact_sha256": made.header.artifact_sha256,
            "bytes_sha256": sha256(made.bytes),
            "file_sha256": sha256(client.host_file(file, engine="wasmtime").read_bytes()),
            "sum": exported(engine_store, 40, 2),
            "pinned": [pin.module_sha256 for pin in client.pins().pins],
            "missing": [
                key.module_sha256 for key in client.find_missing([sha256(module), "ab" * 32])
            ],
            "served": sum(tier.hits for tier in client.stats().tiers),
            "reasons": {
                "garbage": reason(client.compile, b"garbage"),
                "unknown module": reason(client.compile, "ab" * 32),
                "unknown engine": reason(client.compile, file, engine="nothing"),
                "invalid module": reason(client.load, module[:-1]),
            },
        }
        client.unpin(sha256(module))
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
