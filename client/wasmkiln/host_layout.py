"""Where the host store keeps what, which follows from fingerprint and module digest alone.

    <directory>/engines.json                                   what the daemon serves
    <directory>/<fingerprint>/<module[:2]>/<module>/           one entry, renamed into place whole
        artifact                                               the engine's native code, as it is
        artifact.json                                          its ArtifactHeader, as JSON
        artifact.dsse.json                                     its attestation, if the daemon signs
        head                                                   the daemon's own signed description

Daemon and clients share this file; docs/host-store.md says the same for other languages.
"""

from __future__ import annotations

from pathlib import Path

ENGINES = "engines.json"
ARTIFACT = "artifact"
HEADER = "artifact.json"
ATTESTATION = "artifact.dsse.json"
HEAD = "head"


def entry_path(directory: Path, fingerprint: str, module_sha256: str) -> Path:
    """Return the folder of an entry."""
    return directory / fingerprint / module_sha256[:2] / module_sha256
