"""Where `compile -o` writes: the names of the files, and what it refuses to write over.

A file's name has two parts: the input's name and the engine. An engine's name has no dot and
its version no dash, so a name can be split in one way only: whatever a daemon calls an engine,
the artifact of one input never gets the name of another's.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wasmkiln.cli.text import quoted

if TYPE_CHECKING:
    from wasmkiln import Artifact, ArtifactHeader

_ENGINE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}-[0-9][0-9A-Za-z.+]{0,31}")
# Leaves room for the engine and the longest suffix within the 255 bytes of a file's name.
_MAX_STEM_BYTES = 170


class Place:
    """The output of one run: a file for one module, a folder for several, or none.

    Raise click.UsageError, before anything is written, when two inputs would go to one file or
    an input would be overwritten.
    """

    def __init__(self, output: str | None, sources: tuple[str, ...]) -> None:
        self._to_stdout = output == "-"
        self._output = path = Path(output) if output and not self._to_stdout else None
        self._sources = sources
        self._folder = path is not None and (len(sources) > 1 or path.is_dir())
        self._written: set[str] = set()
        if self._to_stdout and len(sources) > 1:
            raise click.UsageError(
                "standard output takes one artifact: give one module, or a folder"
            )
        if self._to_stdout and sys.stdout.isatty():
            raise click.UsageError(
                "an artifact is no text for a terminal: redirect it, or give -o a file"
            )
        if path is None:
            return
        if not self._folder:
            if path.exists() and not path.is_file():
                raise click.UsageError(f"{path} is no regular file: no header can stand beside it")
            for each in (Path(f"{path}{suffix}") for suffix in ("", ".json", ".dsse.json")):
                if self._is_input(each):
                    raise click.UsageError(f"{each} is the module itself: it would be overwritten")
            return
        if path.exists() and not path.is_dir():
            raise click.UsageError(f"{path} is a file: several modules need a folder")
        names = [folded(stem(source)) for source in sources]
        if twice := sorted({stem(s) for s in sources if names.count(folded(stem(s))) > 1}):
            raise click.UsageError(
                f"several modules would be written as {', '.join(twice)}: compile them apart"
            )
        path.mkdir(parents=True, exist_ok=True)

    def save(self, source: str, artifact: Artifact) -> str | None:
        """Write one result. Return its path, or None without an output.

        Raise OSError, also when the daemon's answer leads to the name of an input or of another
        result, or to none.
        """
        if self._to_stdout:
            sys.stdout.buffer.write(artifact.bytes)
            return "-"
        if self._output is None or not self._folder:
            return str(artifact.save(self._output)) if self._output else None
        path = self._output / file_name(source, artifact.header)
        if folded(path.name) in self._written or self._is_input(path):
            raise OSError(f"cannot write {path}: it is another input, or the result of one")
        self._written.add(folded(path.name))
        # A link of that name may lead to a place that the person did not name.
        return str(artifact.save(path, follow_link=False))

    def _is_input(self, path: Path) -> bool:
        return path.exists() and any(Path(s).exists() and path.samefile(s) for s in self._sources)


def stem(source: str) -> str:
    """Return the first part of an artifact's file name: the input's name without .wasm.

    Where that would steer a terminal, hide the file, look like an option or be too long, it is a
    digest of the name.
    """
    name = Path(source).name.removesuffix(".wasm")
    is_long = len(name.encode(errors="replace")) > _MAX_STEM_BYTES
    if name.isprintable() and name[:1] not in ("", ".", "-") and "\\" not in name and not is_long:
        return name
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()


def file_name(source: str, header: ArtifactHeader) -> str:
    """Return NAME.ENGINE.cwasm. Raise OSError for an engine that no name can hold."""
    engine = f"{header.engine.name}-{header.engine.version}"
    if not _ENGINE.fullmatch(engine):
        raise OSError(f"cannot name a file after engine {quoted(engine)}: nothing written")
    return f"{stem(source)}.{engine}.cwasm"


def folded(name: str) -> str:
    """Return the name in a form that is equal for names which some file systems treat as one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
