"""Pack the contract for a release: an archive of protos/, and all of it as one descriptor set.

dist/wasmkiln-protos-VERSION.tar.gz   protos/ without buf's own files, wasmkiln.binpb, LICENSE
dist/wasmkiln.binpb                   the descriptor set, with all imports and all comments

The same sources give the same bytes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts.archive import packed
from scripts.version import version_of

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"


def descriptor_set() -> bytes:
    """Return all of protos/ as a FileDescriptorSet, its imports first."""
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    words = ["-m", "grpc_tools.protoc", "-I.", "--include_imports", "--include_source_info"]
    done = subprocess.run(
        [sys.executable, *words, "-o/dev/stdout", *files],
        cwd=PROTOS,
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout


def archive(name: str, descriptors: bytes) -> bytes:
    """Return the archive, whose files all lie in a folder ``name``."""
    contents = {
        str(path.relative_to(PROTOS)): path.read_bytes() for path in PROTOS.rglob("*.proto")
    }
    contents |= {"wasmkiln.binpb": descriptors, "LICENSE": (ROOT / "LICENSE").read_bytes()}
    return packed(name, contents)


def main(folder: Path) -> None:
    """Write both files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptors = descriptor_set()
    name = f"wasmkiln-protos-{version_of(ROOT)}"
    for path, content in (
        (folder / f"{name}.tar.gz", archive(name, descriptors)),
        (folder / "wasmkiln.binpb", descriptors),
    ):
        path.write_bytes(content)
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")
