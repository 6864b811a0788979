"""Pack files into an archive whose bytes depend on their names and contents alone."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping


def packed(folder: str, files: Mapping[str, bytes]) -> bytes:
    """Return a tar.gz of files by their path, which all lie in a folder ``folder``."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{folder}/{path}")
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(written.getvalue(), mtime=0)
