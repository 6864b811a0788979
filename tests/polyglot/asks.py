"""What Asks.java does, in Python, as far as `test_restarts` needs it."""

from __future__ import annotations

import sys
from pathlib import Path

from wasmkiln import Client, Origin, WasmkilnError


def say(*columns: object) -> None:
    print("\t".join(map(str, columns)).replace("\n", " "), flush=True)


def ask(address: str, module: str, flags: dict[str, str]) -> None:
    timeout_s = int(flags["--timeout-ms"]) / 1000
    engine = flags.get("--engine")
    with Client(address, trusted_keys=flags.get("--key"), timeout_s=timeout_s) as client:
        if "--load" in flags:
            loaded = client.load(module, engine=engine)
            say("loaded", "", loaded.engine, "", loaded.sha256)
            return
        artifact = client.compile(module, engine=engine)
        if "--out" in flags:
            Path(flags["--out"]).write_bytes(artifact.bytes)
        header = artifact.header
        origin = Origin(header.origin).name
        say("compiled", origin, header.engine.id, len(artifact.bytes), header.module_sha256)


def main(address: str, module: str, *words: str) -> None:
    flags = dict(zip(words[::2], words[1::2], strict=True))
    for _ in range(int(flags.get("--times", "1"))):
        try:
            ask(address, module, flags)
        except WasmkilnError as error:
            say(error.reason, "", "", error.metadata.get("cause", ""), error)


if __name__ == "__main__":
    main(*sys.argv[1:])
