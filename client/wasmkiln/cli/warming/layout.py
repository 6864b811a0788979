"""A folder in OCI's image layout: oci-layout, index.json, blobs/sha256/…"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkiln.cli.warming.manifest import MOST_MANIFEST_BYTES, modules_of
from wasmkiln.cli.warming.module import Module, checked, too_large
from wasmkiln.cli.warming.unusable import SourceUnusable

if TYPE_CHECKING:
    from wasmkiln.cli.warming.manifest import Descriptor

_MARK = "oci-layout"


def is_layout(folder: Path) -> bool:
    """Return whether a folder says that it is an image layout."""
    return os.path.isfile(folder / _MARK)  # noqa: PTH113 - is_file raises where it may not look


def modules_in(folder: Path) -> list[Module]:
    """Return the modules of all manifests in the layout. Raise OSError or SourceUnusable."""
    index = _read(folder / "index.json", MOST_MANIFEST_BYTES)
    return modules_of(str(folder), index, _Layout(folder))


class _Layout:
    """The blobs of a layout."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs" / "sha256"

    def manifest(self, wanted: Descriptor) -> bytes:
        """Return a manifest."""
        return self._blob(wanted, MOST_MANIFEST_BYTES)

    def layer(self, wanted: Descriptor) -> bytes:
        """Return a layer."""
        return self._blob(wanted, wanted.size_bytes)

    def _blob(self, wanted: Descriptor, limit_bytes: int) -> bytes:
        path = self._blobs / wanted.sha256
        return checked(_read(path, limit_bytes), wanted.sha256, str(path))


def _read(path: Path, limit_bytes: int) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise SourceUnusable(f"{path} is no file")  # Opening a pipe would wait for a writer.
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        content = file.read(limit_bytes + 1) if size_bytes <= limit_bytes else b""
    if size_bytes > limit_bytes or len(content) > limit_bytes:
        raise too_large(str(path), max(size_bytes, len(content)), limit_bytes)
    return content
