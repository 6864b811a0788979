"""The file that an artifact was read from, for engines that map it instead of copying bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkiln.host_layout import ARTIFACT, entry_path
from wasmkiln.host_store.checks import identity, is_racy
from wasmkiln.host_store.files import OpenStore, open_file, open_folder
from wasmkiln.host_store.refused import Refused

if TYPE_CHECKING:
    from wasmkiln.v1.types_pb2 import ArtifactHeader


@dataclass(frozen=True)
class SavedFile:
    """A file of the host store, as it was when its bytes were read.

    Of other files nobody promises that they are not written to in their place, which would
    change, or kill, a process that has them mapped.
    """

    path: Path
    known: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, header: ArtifactHeader, status: os.stat_result) -> SavedFile | None:
        """Return the file, if it may be one of the host store; `open` finds out."""
        path = path.absolute()
        if is_racy(status) or len(path.parents) < 4 or ".." in path.parts:
            return None
        entry = entry_path(path.parents[3], header.fingerprint, header.module_sha256)
        return cls(path, identity(status)) if path == entry / ARTIFACT else None

    def open(self) -> int:
        """Return a descriptor of the file, which is still the same. Raise Refused."""
        with OpenStore(str(self.path.parents[3])) as store:
            folders = [store.descriptor]
            try:
                for folder in (self.path.parents[2], self.path.parents[1], self.path.parent):
                    folders.append(open_folder(folder.name, store.owners, folders[-1]))
                descriptor, _ = open_file(ARTIFACT, store.owners, folders[-1])
            finally:
                for each in folders[1:]:
                    os.close(each)
        if not self.is_unchanged(descriptor):
            os.close(descriptor)
            raise Refused("the file changed since its bytes were read")
        return descriptor

    def is_unchanged(self, descriptor: int) -> bool:
        """Return whether nobody wrote to the file since its bytes were read."""
        return identity(os.fstat(descriptor)) == self.known
