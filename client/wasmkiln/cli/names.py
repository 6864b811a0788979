"""File names for artifacts: from the input's name and the engine, and from nothing else.

An engine's name has no dot and its version no dash, so that a file's name can be read in one
way only: whatever a daemon calls an engine, one input's artifact never gets the name of
another's.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkiln._header_fields import engine_id
from wasmkiln._text import quoted
from wasmkiln.errors import ArtifactMismatch

if TYPE_CHECKING:
    from wasmkiln.v1.types_pb2 import ArtifactHeader

_ENGINE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}-[0-9][0-9A-Za-z.+]{0,31}")
SUFFIX = ".cwasm"
# With an engine, suffixes and those of the files beside it, no more than the 255 that file
# systems take.
_MAX_STEM_BYTES = 170


def stem(source: str) -> str:
    """Return what an artifact's file is called after: the input's name without .wasm.

    What had to be changed, since it steers a terminal, hides a file, looks like an option or
    is too long, ends in a digest of the whole name, so that two such inputs are told apart.
    """
    name = Path(source).name.removesuffix(".wasm")
    clean = "".join(c if c.isprintable() and c != "\\" else "_" for c in name)
    if not clean or clean[0] in ".-":
        clean = f"_{clean}"
    if clean == name and len(clean.encode()) <= _MAX_STEM_BYTES:
        return clean
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:12]
    cut = clean.encode()[: _MAX_STEM_BYTES - len(digest) - 1].decode(errors="ignore")
    return f"{cut}~{digest}"


def file_name(source: str, header: ArtifactHeader) -> str:
    """Return NAME.ENGINE.cwasm. Raise ArtifactMismatch for an engine that can't be in a name."""
    engine = engine_id(header.engine)
    if not _ENGINE.fullmatch(engine):
        raise ArtifactMismatch(f"cannot name a file after engine {quoted(engine)}: nothing written")
    return f"{stem(source)}.{engine}{SUFFIX}"


def folded(name: str) -> str:
    """Return what is the same for names that some file systems take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
