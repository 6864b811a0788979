"""Where `compile -o` writes, and what it refuses to write over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wasmkiln.artifact import attestation_path, header_path
from wasmkiln.cli.names import file_name, folded, stem
from wasmkiln.errors import ArtifactMismatch

if TYPE_CHECKING:
    from wasmkiln.artifact import Artifact


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
