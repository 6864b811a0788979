"""Broken engines: copies of one that works, each damaged in another way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.e2e.programs import test_state_dir

_SOURCE = "wasmtime-50.0.1"

GARBAGE = """
_serialize = Module.serialize
def _garbage(self):
    # An empty module is what an engine is asked about; the artifact of another is useless.
    return bytearray(b"garbage" * 99) if self.exports else _serialize(self)
Module.serialize = _garbage
"""
WRONG_CODE = r"""
_compile = Module.__init__
def _wrong(self, engine, wasm):
    # It subtracts where it should add.
    _compile(self, engine, bytes(wasm).replace(b"\x20\x00\x20\x01\x6a", b"\x20\x00\x20\x01\x6b"))
Module.__init__ = _wrong
"""
DIES = """
_compile = Module.__init__
def _dies(self, engine, wasm):
    if len(wasm) > 8 and b"add" in bytes(wasm):
        import os
        os.abort()
    _compile(self, engine, wasm)
Module.__init__ = _dies
"""
SLOW = """
_compile = Module.__init__
def _slow(self, engine, wasm):
    import time
    time.sleep(30)
    _compile(self, engine, wasm)
Module.__init__ = _slow
"""


def copy_engine(state: Path, version: str, *, patch: str = "", says: str = "") -> Path:
    """Copy wasmtime into ``state`` as ``version``; return its package's folder.

    ``patch`` is Python at the end of the package; ``says`` is the version that the
    package claims, if not ``version``.
    """
    (state / "engines").mkdir(parents=True, exist_ok=True)
    copy = state / "engines" / f"wasmtime-{version}"
    # Hard links, which cost nothing: what is changed is replaced, never written to.
    shutil.copytree(
        test_state_dir() / "engines" / _SOURCE, copy, symlinks=True, copy_function=os.link
    )
    marker = json.loads((copy / "engine.json").read_text())
    replace(copy / "engine.json", json.dumps({**marker, "version": version}))
    [package] = copy.glob("lib/python3*/site-packages/wasmtime")
    [metadata] = package.parent.glob("wasmtime-*.dist-info/METADATA")
    told = metadata.read_text().replace("\nVersion: 50.0.1\n", f"\nVersion: {says or version}\n")
    replace(metadata, told)
    if patch:
        replace(package / "__init__.py", (package / "__init__.py").read_text() + patch)
    return package


def replace(file: Path, content: str | bytes) -> None:
    """Put a new file in the place of a hard link."""
    file.unlink()
    file.write_bytes(content.encode() if isinstance(content, str) else content)
