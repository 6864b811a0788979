"""Where `compile -o` writes: the names of the files, and what it refuses to write over.

A file's name has two parts: the input's name and the engine. An engine's name has no dot and
its version no dash, so a name can be split in one way only: whatever a daemon calls an engine,
the artifact of one input never gets the name of another's.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wasmkiln._untrusted import quoted
from wasmkiln.artifact import attestation_path, header_path
from wasmkiln.errors import ArtifactMismatch
from wasmkiln.shared import engine_id

if TYPE_CHECKING:
    from wasmkiln.artifact import Artifact
    from wasmkiln.v1.types_pb2 import ArtifactHeader

_ENGINE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}-[0-9][0-9A-Za-z.+]{0,31}")
SUFFIX = ".cwasm"
# Leaves room for the engine and the longest suffix within the 255 bytes of a file's name.
_MAX_STEM_BYTES = 170


class Place:
    """The output of one run: a file for one module, a folder for several, or none.

    Raise click.UsageError, before anything is written, when two inputs would go to one file or
    an input would be overwritten.
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
            raise click.UsageError(f"{output} is a file: several modules need a folder")
        names = [folded(stem(source)) for source in sources]
        twice = sorted({stem(s) for s in sources if names.count(folded(stem(s))) > 1})
        if twice:
            raise click.UsageError(
                f"several modules would be written as {', '.join(twice)}: compile them apart"
            )
        output.mkdir(parents=True, exist_ok=True)

    def save(self, source: str, artifact: Artifact) -> Path | None:
        """Write one result. Return its path, or None without an output.

        Raise OSError, and ArtifactMismatch when the daemon's answer leads to the name of an
        input or of another result.
        """
        if self._output is None:
            return None
        if not self._folder:
            return artifact.save(self._output)
        name = file_name(source, artifact.header)
        path = self._output / name
        if folded(name) in self._written or _is_one_of(path, self._sources):
            raise ArtifactMismatch(
                f"cannot write {path}: it is another input, or the result of one"
            )
        self._written.add(folded(name))
        # A link of that name may lead to a place that the person did not name.
        return artifact.save(path, follow_link=False)


def stem(source: str) -> str:
    """Return the first part of an artifact's file name: the input's name without .wasm.

    Change a name that would steer a terminal, hide the file, look like an option or be too
    long. A changed name ends in a digest of the whole name, so that two inputs stay distinct.
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
    """Return NAME.ENGINE.cwasm. Raise ArtifactMismatch for an engine that no name can hold."""
    engine = engine_id(header.engine)
    if not _ENGINE.fullmatch(engine):
        raise ArtifactMismatch(f"cannot name a file after engine {quoted(engine)}: nothing written")
    return f"{stem(source)}.{engine}{SUFFIX}"


def folded(name: str) -> str:
    """Return the name in a form that is equal for names which some file systems treat as one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _refuse_as_output(output: Path, sources: tuple[str, ...]) -> None:
    """Raise click.UsageError where an input would be lost, or no file can stand beside it."""
    if str(output) == "-":
        raise click.UsageError("-o takes a file or a folder: artifacts are not written to stdout")
    if output.exists() and not output.is_file():
        raise click.UsageError(
            f"{output} is not a regular file: the header cannot be written beside it"
        )
    for path in (output, header_path(output), attestation_path(output)):
        if _is_one_of(path, sources):
            raise click.UsageError(f"{path} is the module itself: it would be overwritten")


def _is_one_of(path: Path, sources: tuple[str, ...]) -> bool:
    return path.exists() and any(Path(s).exists() and path.samefile(s) for s in sources)
