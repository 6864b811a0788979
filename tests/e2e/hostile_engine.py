"""The hostile engine: a package called wasmtime whose jobs try what an attacker would try."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HOSTILE = Path(__file__).parent / "hostile"
PREAMBLE = b"\0asm\x01\0\0\0"


def module(attempt: str, *arguments: object) -> bytes:
    """Return the "module" that makes the hostile engine try ``attempt``."""
    return PREAMBLE + json.dumps({"attempt": attempt, "arguments": arguments}).encode()


def environment(
    folder: Path, refused: Sequence[str] = (), python: str = "", version: str = "0.0.1"
) -> Path:
    """Make an engine's environment with the hostile engine in it; return its folder.

    Its workers' kernel refuses the system calls in ``refused``.
    """
    python = python or str(Path(sys.executable).resolve())
    probe = "import sys; print(sys.base_prefix, '%d.%d' % sys.version_info[:2])"
    said = subprocess.run([python, "-I", "-c", probe], capture_output=True, text=True, check=True)
    base, minor = said.stdout.split()
    engine = folder / f"wasmtime-{version}"
    packages = engine / "lib" / f"python{minor}" / "site-packages"
    (engine / "bin").mkdir(parents=True)
    (engine / "bin" / "python").symlink_to(Path(base) / "bin" / f"python{minor}")
    (engine / "pyvenv.cfg").write_text(f"home = {base}/bin\ninclude-system-site-packages = false\n")
    info = packages / f"wasmtime-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: wasmtime\nVersion: {version}\n")
    (packages / "hostile.pth").write_text(f"{HOSTILE}\n")
    (engine / "engine.json").write_text(
        json.dumps({"name": "wasmtime", "version": version, "python": f"CPython {minor}"})
    )
    if refused:
        at_import(engine, "import without", *(f"without.refuse({call!r})" for call in refused))
    return engine


def at_import(engine: Path, *lines: str) -> None:
    """Have a worker run these lines when it imports the hostile engine."""
    [packages] = engine.glob("lib/*/site-packages")
    (packages / "at_import.py").write_text("\n".join(lines) + "\n")
