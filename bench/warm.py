"""Loads a module into wasmtime in each way there is, in turns: a program of the bench.

    python -m bench.warm ADDRESS ENGINE_ID MODULE_FILE FOLDER ROUNDS RECOMPILE_ROUNDS

It runs with the daemon's own Python, which has grpcio, and finds wasmtime, whose package
is pure Python around a shared library, in PYTHONPATH. It prints the series as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import wasmtime
from wasmkiln import Client
from wasmkiln.v1 import module_service_pb2 as pb

from bench.raw import COMPILE, RawStream, by_digest
from bench.timing import in_turns


def main(
    address: str, engine_id: str, module_file: str, folder: str, rounds: str, recompile: str
) -> None:
    """Print an object of series: raw, client, cache, mapped and recompile."""
    wasm = Path(module_file).read_bytes()
    plain = wasmtime.Engine()
    cached = wasmtime.Engine(_with_cache(Path(folder)))
    mapped = Path(folder) / "mapped.artifact"
    stream = RawStream(address, COMPILE)
    with Client(address) as client:
        first = client.compile(wasm, engine=engine_id)
        sha256 = first.header.module_sha256
        mapped.write_bytes(first.bytes)
        request = by_digest(sha256, engine_id)

        def raw() -> None:
            messages = stream.messages(request)[1:]
            artifact = b"".join(pb.CompileResponse.FromString(each).chunk for each in messages)
            wasmtime.Module.deserialize(plain, artifact)

        series = in_turns(
            {
                "raw": raw,
                "client": lambda: client.compile(sha256, engine=engine_id).load(plain),
                "cache": lambda: wasmtime.Module(cached, wasm),
                "mapped": lambda: wasmtime.Module.deserialize_file(plain, str(mapped)),
            },
            int(rounds),
            warm_up=5,
        )
        series |= in_turns({"recompile": lambda: wasmtime.Module(plain, wasm)}, int(recompile))
    stream.close()
    print(json.dumps(series))


def _with_cache(folder: Path) -> wasmtime.Config:
    file = folder / "cache.toml"
    file.write_text(f"[cache]\ndirectory = {json.dumps(str(folder / 'wasmtime-cache'))}\n")
    config = wasmtime.Config()
    config.cache = str(file)
    return config


if __name__ == "__main__":
    main(*sys.argv[1:])
