"""One entry of the store: its header, compared with the call, and its artifact's descriptor."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmkiln import _header_fields
from wasmkiln._requests import is_digest
from wasmkiln.errors import ArtifactMismatch
from wasmkiln.host_layout import ARTIFACT, HEADER, entry_path
from wasmkiln.host_store.checks import identity, is_racy
from wasmkiln.host_store.files import copy_in_memory, open_file, open_folder, read_all, read_file
from wasmkiln.host_store.refused import Refused
from wasmkiln.trusted_keys import TrustedKeys
from wasmkiln.v1.types_pb2 import ArtifactHeader, Engine

if TYPE_CHECKING:
    import builtins
    from collections.abc import Mapping

    from wasmkiln._header_fields import Call
    from wasmkiln.host_store.checks import FileChecks
    from wasmkiln.host_store.files import OpenStore, Owners

# Imports and exports are part of it, and the daemon bounds those.
_MAX_HEADER_BYTES = 64 * 1024 * 1024

_TEXTS = ("module_sha256", "artifact_sha256", "fingerprint", "target", "cpu")
_ENGINE_TEXTS = ("id", "name", "version", "core_version", "compiler")


@dataclass
class Entry:
    """An open artifact of the store, which fits the call. Close it.

    It has what loading needs of an artifact (`wasmkiln.loading.loadable`). Its header has no
    imports and exports.
    """

    path: Path
    """Where it was found; only to show."""
    header: ArtifactHeader
    status: os.stat_result
    requested_settings: Mapping[str, str]
    trusted_keys: TrustedKeys = field(default_factory=TrustedKeys)
    """Empty: `FileChecks` verifies the header, not what loads it."""
    _file: int = -1

    @property
    def descriptor(self) -> int:
        """What the engine may map."""
        return self._file

    @property
    def bytes(self) -> builtins.bytes:
        """The artifact's bytes. Raise Refused."""
        return read_all(self._file, self.status.st_size)

    def check(self, checks: FileChecks) -> None:
        """Check what is going to be loaded, as the policy says. Raise Refused."""
        if checks.reads_content and is_racy(self.status):
            # The file may be written to between check and load without a trace in its times.
            copy = copy_in_memory(self._file, self.status.st_size)
            self.close()
            self._file, self.status = copy, os.fstat(copy)
        checks.check_file(self.header, self._file, self.status)

    def check_unchanged(self) -> None:
        """Raise Refused when the file was written to since it was opened."""
        if identity(os.fstat(self._file)) != identity(self.status):
            raise Refused("the file changed while it was loaded")

    def close(self) -> None:
        """Close the file. A module that was loaded keeps what it has mapped."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def open_entry(
    directory: str,
    store: OpenStore,
    fingerprint: str,
    call: Call,
    answered: ArtifactHeader | None = None,
) -> Entry:
    """Open the entry for a call in a store.

    `answered` is the header of a daemon's answer, which was compared with the call; without
    one, read the entry's own and compare that. Raise Refused.
    """
    module, owners = call.module_sha256, store.owners
    if not (is_digest(fingerprint) and is_digest(module)):
        raise Refused("a fingerprint or a module's digest is not 64 hexadecimal digits")
    opened = [store.descriptor]
    try:
        for name in (fingerprint, module[:2], module):
            opened.append(open_folder(name, owners, opened[-1]))
        folder = opened[-1]
        header = answered or _own_header(folder, owners, fingerprint, call)
        descriptor, status = open_file(ARTIFACT, owners, folder)
        entry = Entry(
            entry_path(Path(directory), fingerprint, module) / ARTIFACT,
            header,
            status,
            dict(call.request.settings),
            _file=descriptor,
        )
        if status.st_size != header.size_bytes or not status.st_size:
            entry.close()
            raise Refused("the artifact does not have the size that its header says")
        return entry
    finally:
        for each in opened[1:]:
            os.close(each)


def _own_header(folder: int, owners: Owners, fingerprint: str, call: Call) -> ArtifactHeader:
    header = parse_header(read_file(HEADER, owners, folder, _MAX_HEADER_BYTES))
    try:
        _header_fields.check(call, header)
    except ArtifactMismatch as error:
        raise Refused(f"the entry is about something else: {error}") from error
    if header.fingerprint != fingerprint:
        raise Refused("the entry is about another fingerprint")
    return header


def parse_header(text: bytes) -> ArtifactHeader:
    """Return the header in artifact.json, without what loading does not need. Raise Refused.

    protobuf's own parser would take longer than mapping the artifact does.
    """
    try:
        document: dict[str, Any] = json.loads(text)
        engine = document["engine"]
        return ArtifactHeader(
            size_bytes=int(document["size_bytes"]),
            kind=document["kind"],
            engine=Engine(**{name: engine.get(name, "") for name in _ENGINE_TEXTS}),
            settings=document.get("settings", {}),
            changed_settings=document.get("changed_settings", {}),
            attestation=base64.b64decode(document.get("attestation", ""), validate=True),
            is_fast=document.get("is_fast", False),
            **{name: document.get(name, "") for name in _TEXTS},
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Refused("cannot read the header of an entry") from error
