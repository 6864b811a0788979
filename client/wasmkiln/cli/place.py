"""Where `compile -o` writes: the names of the files, and what it refuses to write over.

A file is called after its input and the engine, and after nothing else that a daemon says. An
engine's name has no dot and its version no dash, so that a file's name can be read in one way
only: one input's artifact never gets the name of another's.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wasmkiln._header_fields import engine_id
from wasmkiln._untrusted import quoted
from wasmkiln.artifact import attestation_path, header_path
from wasmkiln.errors import ArtifactMismatch

if TYPE_CHECKING:
    from wasmkiln.artifact import Artifact
    from wasmkiln.v1.types_pb2 import ArtifactHeader

_ENGINE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}-[0-9][0-9A-Za-z.+]{0,31}")
SUFFIX = ".cwasm"
# With an engine, suffixes and those of the files beside it, no more than the 255 that file
# systems take.
_MAX_STEM_BYTES = 170


class Place:
    """A file for one module, or a folder for several, or no place at all.

    Raises click.UsageError, before anything is written, when two inputs would go to one file
    or an input would be lost.
    """

    def __init__(self, output: Path | None, sources: tuple[str, ...]) -> None:
        self._output = output
        self._sources = sources
        self._folder = output is not None and (len(sources) > 1 or output.is_dir())
        self._written: set[str] = set()
        if output is None:
            return
        if not self._folder:
            _refuse_as_output(output, sources)
            return
        if output.exists() and not output.is_dir():
            raise click.UsageError(f"{output} is a file; several modules need a folder")
        names = [folded(stem(source)) for source in sources]
        twice = sorted({stem(s) for s in sources if names.count(folded(stem(s))) > 1})
        if twice:
            raise click.UsageError(f"several modules would be written as {', '.join(twice)}")
        output.mkdir(parents=True, exist_ok=True)

    def save(self, source: str, artifact: Artifact) -> Path | None:
        """Write one result. Return its path, None where nothing is to be written.

        Raise OSError, and ArtifactMismatch when the daemon's answer leads to no name of its own.
        """
        if self._output is None:
            return None
        if not self._folder:
            return artifact.save(self._output)
        name = file_name(source, artifact.header)
        path = self._output / name
        if folded(name) in self._written or _is_one_of(path, self._sources):
            raise ArtifactMismatch(f"{path} is another input, or the result of one: not written")
        self._written.add(folded(name))
        # A link of that name would lead to a place that nobody named.
        return artifact.save(path, follow_link=False)


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


def _refuse_as_output(output: Path, sources: tuple[str, ...]) -> None:
    """Raises click.UsageError for what would be lost, or is no place for two files."""
    if str(output) == "-":
        raise click.UsageError("-o takes a file or a folder; artifacts are not written to stdout")
    if output.exists() and not output.is_file():
        raise click.UsageError(f"{output} is no regular file: the header could not go beside it")
    for path in (output, header_path(output), attestation_path(output)):
        if _is_one_of(path, sources):
            raise click.UsageError(f"{path} is the module itself: it would be overwritten")


def _is_one_of(path: Path, sources: tuple[str, ...]) -> bool:
    return path.exists() and any(Path(s).exists() and path.samefile(s) for s in sources)
