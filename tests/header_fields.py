"""Why a client may believe each field of an ArtifactHeader: one table, complete by a test.

A client uses a field only after it compared the field with the call or with the artifact's bytes;
with trusted keys the attestation has to say the same. All other fields are only shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, auto


class Basis(Flag):
    """What a field is checked against."""

    SHOWN = 0
    """Nothing: the field is only shown, or is the proof itself: the attestation, and the
    certificate of its key, which a trusted CA has to have issued."""
    CALL = auto()
    """The call, as far as the call named a value."""
    BYTES = auto()
    """The artifact's bytes, where the call asked for them."""
    ATTESTED = auto()
    """The attestation, where there are trusted keys."""


FIELDS: Mapping[str, Basis] = {
    "module_sha256": Basis.CALL | Basis.ATTESTED,
    "artifact_sha256": Basis.BYTES | Basis.ATTESTED,
    "size_bytes": Basis.BYTES,
    "engine.id": Basis.CALL,  # has to consist of the name and the version
    "engine.name": Basis.CALL | Basis.ATTESTED,
    "engine.version": Basis.CALL | Basis.ATTESTED,
    "engine.core_version": Basis.ATTESTED,
    "engine.compiler": Basis.ATTESTED,
    "target": Basis.CALL | Basis.ATTESTED,
    "cpu": Basis.CALL | Basis.ATTESTED,
    "settings": Basis.CALL | Basis.ATTESTED,
    "changed_settings": Basis.CALL | Basis.ATTESTED,
    "kind": Basis.CALL | Basis.ATTESTED,
    "fingerprint": Basis.ATTESTED,
    "inline_artifact": Basis.CALL | Basis.BYTES,
    "content_encoding": Basis.CALL,
    # The client compares the file that it opens with these, and with size_bytes.
    "host_file.path": Basis.CALL,
    "host_file.device": Basis.CALL,
    "host_file.inode": Basis.CALL,
    "is_fast": Basis.CALL,
    "attestation": Basis.SHOWN,
    "signer_certificate": Basis.SHOWN,
    "origin": Basis.SHOWN,
    "queue_time": Basis.SHOWN,
    "compile_time": Basis.SHOWN,
    # The attestation has a digest of these three. A client cannot compute it: the header has
    # one kind, OTHER, for everything that only components import or export.
    "imports": Basis.SHOWN,
    "exports": Basis.SHOWN,
    "types_truncated": Basis.SHOWN,
}
