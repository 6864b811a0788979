"""What a module of the catalogue gets from a daemon, and which answers are clear ones."""

from __future__ import annotations

from pathlib import Path

from wasmkiln import Client, WasmkilnError

CLEAR_ANSWERS = frozenset(
    {
        "OK",
        "ARTIFACT_TOO_LARGE",
        "COMPILE_MEMORY_LIMIT",
        "COMPILE_TIMEOUT",
        "ENGINE_LACKS_FEATURE",
        "MODULE_INVALID",
    }
)
"""What a module of the catalogue may get; ``OK`` stands for an artifact."""


def answer(client: Client, module: bytes, engine: str) -> tuple[str, str]:
    """Return the error's reason, or OK; and what there is to say beside."""
    try:
        made = client.compile(module, engine=engine, omit_artifact=True)
    except WasmkilnError as refusal:
        return refusal.reason or refusal.code.name, refusal.metadata.get("signal", "")
    return "OK", f"{made.header.size_bytes / 2**20:.1f} MiB"


def highest_memory_bytes(pid: int) -> int:
    """Return the most memory that a process has had resident so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
