"""The host store: find the entry for a call, and open it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkiln._header_fields import FAST
from wasmkiln.host_layout import ARTIFACT, ENGINES, entry_path, namespace_path
from wasmkiln.host_store.engines import Engines
from wasmkiln.host_store.entry import Entry, open_entry
from wasmkiln.host_store.files import OpenStore, read_file
from wasmkiln.host_store.place import candidates
from wasmkiln.host_store.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    Fits = Callable[[str, str], bool]

    from wasmkiln._header_fields import Call
    from wasmkiln.v1.types_pb2 import ArtifactHeader

_MAX_ENGINES_BYTES = 4 * 1024 * 1024
_KINDS = {1: "core", 2: "component"}


class HostStore:
    """The host store of this machine. Safe for many threads at once.

    It may appear, or be removed, while the client runs.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, namespace: str = "") -> None:
        self._candidates = [
            str(namespace_path(each, namespace)) for each in candidates(directory, os.environ)
        ]
        self._engines: tuple[tuple[int, ...], Engines] | None = None

    @property
    def is_off(self) -> bool:
        """Whether the client is to use no host store at all, not even files that a daemon names."""
        return not self._candidates

    def open(self, call: Call, fits: Fits, *, fast: bool = False) -> Entry:
        """Open the entry for a call, without calling anybody. Raise Refused.

        `fits` says whether this process can load artifacts of an engine's name and version. With
        `fast`, open what the engine's fast compiler made, for a call that names no compiler.
        """
        request = call.request
        directory, store = self._found()
        with store:
            engines = self._read_engines(store)
            row = engines.choose(request.engine, _KINDS.get(call.kind or 0, ""), fits)
            settings = dict(request.settings)
            if fast:
                name, value = FAST.get(row["name"], ("", ""))
                if not name or name in settings:
                    raise Refused("the call names its compiler, or the engine has one only")
                settings[name] = value
            fingerprint = engines.fingerprint(row, request.target, request.cpu, settings)
            return open_entry(directory, store, fingerprint, call)

    def engine_id(self, engine: str, fits: Fits) -> str:
        """Return what to ask the daemon for instead of an engine's name.

        It is the id of the newest version that fits, where engines.json says that a newer one
        is served which does not; otherwise the name itself.
        """
        known = self._engines
        try:
            if known is None or known[1].choose(engine, "")["id"] == engine:
                return engine
            newest, fitting = known[1].choose(engine, ""), known[1].choose(engine, "", fits)
        except Refused:
            return engine
        return engine if newest is fitting else str(fitting["id"])

    def open_answered(self, call: Call, header: ArtifactHeader) -> Entry:
        """Open the file that a daemon's answer names. Raise Refused.

        The header has been compared with the call. The file has to be where the store's layout
        puts this artifact, and to have the device and the inode that the daemon sees: a process
        in another mount namespace may find another file under this path.
        """
        named = header.host_file
        path = Path(named.path)
        if not path.is_absolute() or len(path.parts) < 6 or ".." in path.parts:
            raise Refused("the daemon named a path that is not one of a host store")
        directory = path.parents[3]
        if path != entry_path(directory, header.fingerprint, call.module_sha256) / ARTIFACT:
            raise Refused("the daemon named a path that is not one of a host store")
        with OpenStore(str(directory)) as store:
            entry = open_entry(str(directory), store, header.fingerprint, call, header)
        if (entry.status.st_dev, entry.status.st_ino) != (named.device, named.inode):
            entry.close()
            raise Refused("the path leads to another file here than the daemon's")
        return entry

    def _found(self) -> tuple[str, OpenStore]:
        """Return the store, opened, and its directory. Raise Refused."""
        why = Refused("this client uses no host store")
        for directory in self._candidates:
            try:
                return directory, OpenStore(directory)
            except Refused as error:
                why = error
        raise why

    def _read_engines(self, store: OpenStore) -> Engines:
        try:
            status = os.stat(ENGINES, dir_fd=store.descriptor, follow_symlinks=False)
        except OSError as error:
            raise Refused(f"cannot read {ENGINES}: {error}") from error
        known = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if self._engines is None or self._engines[0] != known:
            text = read_file(ENGINES, store.owners, store.descriptor, _MAX_ENGINES_BYTES)
            self._engines = known, Engines.parse(text)
        return self._engines[1]
