"""Files that a server in the daemon's place names, most of which do not count."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wasmkiln.v1.module_service_pb2 import CompileRequest, CompileResponse
from wasmkiln.v1.types_pb2 import ArtifactHeader, HostFile

from tests.e2e.processes import eventually
from tests.lying.server import Answer
from tests.polyglot.header_lies import true_answer
from tests.polyglot.kiln import Kiln

TRUTH = "the truth"
TAKEN = "a file of the host store"
"""What an example program prints of an artifact that it took from a file."""


@dataclass(frozen=True)
class FileLie:
    """What a server answers to a Compile of `module`: a file, or bytes to whoever wants no file."""

    name: str
    module: Path
    answer: Answer

    @property
    def counts(self) -> bool:
        """Whether a client has to take the file."""
        return self.name == TRUTH


def file_lies(kiln: Kiln) -> Iterator[FileLie]:
    """Yield the truth, and then each lie. The files are so old that their times tell a change."""
    module, header, parts = true_answer(kiln)
    code = b"".join(parts)
    folder = kiln.folder / f"stores-{os.urandom(4).hex()}"
    lies = []
    for name, spoil in _SPOILS.items():
        path = folder / name.replace(" ", "-") / header.fingerprint / header.module_sha256[:2]
        path = path / header.module_sha256 / "artifact"
        path.parent.mkdir(parents=True, mode=0o755)
        path.write_bytes(code)
        path.chmod(0o640)
        found = path.stat()
        named = HostFile(path=str(path), device=found.st_dev, inode=found.st_ino)
        try:
            spoil(path, named)
        except PermissionError:
            continue  # only root can give a file away
        lies.append(FileLie(name, module, _answer(header, named, code)))
    made = time.time()
    eventually(lambda: time.time() - made > 2, "the clock stands still")
    yield from lies


def _answer(header: ArtifactHeader, named: HostFile, code: bytes) -> Answer:
    def answer(request: bytes, _context: Any) -> Iterator[bytes]:
        by_file = CompileRequest.FromString(request).accept_host_file
        first = ArtifactHeader()
        first.CopyFrom(header)
        if by_file:
            first.host_file.CopyFrom(named)
        yield CompileResponse(header=first).SerializeToString()
        if not by_file:
            yield CompileResponse(chunk=code).SerializeToString()

    return answer


def _link(path: Path, named: HostFile) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def _folder_link(path: Path, named: HostFile) -> None:
    target = path.parent.with_name("elsewhere")
    path.parent.rename(target)
    path.parent.symlink_to(target)


def _pipe(path: Path, named: HostFile) -> None:
    path.unlink()
    os.mkfifo(path, 0o640)
    named.inode = path.stat().st_ino


def _other_file(path: Path, named: HostFile) -> None:
    named.inode += 1


def _other_layout(path: Path, named: HostFile) -> None:
    named.path = str(path.rename(path.with_name("another")))


def _through_dots(path: Path, named: HostFile) -> None:
    named.path = str(path.parent / ".." / path.parent.name / path.name)


def _change(path: Path, named: HostFile) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"!")


_SPOILS: dict[str, Callable[[Path, HostFile], object]] = {
    TRUTH: lambda path, named: None,
    "others can write": lambda path, _: path.chmod(0o666),
    "others can write to its folder": lambda path, _: path.parent.chmod(0o777),
    "others can write to the store": lambda path, _: path.parents[3].chmod(0o777),
    "another user's file": lambda path, _: os.chown(path, 65534, -1),
    "another user's folder": lambda path, _: os.chown(path.parent, 65534, -1),
    "two names": lambda path, _: path.with_name("second").hardlink_to(path),
    "a link": _link,
    "a folder that is a link": _folder_link,
    "a pipe": _pipe,
    "another file": _other_file,
    "no file of a store": _other_layout,
    "a path with dots": _through_dots,
    "shorter": lambda path, _: os.truncate(path, 10),
    "other bytes": _change,
    "no file": lambda path, _: path.unlink(),
}
