"""Where the host store keeps what, which follows from fingerprint and module digest alone.

    <directory>/engines.json                                   what the daemon serves
    <directory>/<fingerprint>/<module[:2]>/<module>/           one entry, renamed into place whole
        artifact                                               the engine's native code, as it is
        artifact.json                                          its ArtifactHeader, as JSON
        artifact.dsse.json                                     its attestation, if the daemon signs
    <directory>/ns/<namespace>/                                all of it again, for a namespace

Daemon and clients share this file; docs/reference/host-store.md says the same for other languages.
"""

from __future__ import annotations

import re
from pathlib import Path

ENGINES = "engines.json"
ARTIFACT = "artifact"
HEADER = "artifact.json"
ATTESTATION = "artifact.dsse.json"
NAMESPACES = "ns"

NAMESPACE_SHAPE = "1 to 63 lowercase letters, digits and hyphens, no hyphen first"
_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def namespace_path(directory: Path, namespace: str) -> Path:
    """Return the directory of a namespace's store; that of the default one is ``directory``.

    Raises ValueError for what is no name of a namespace: it must not lead to another place.
    """
    if not namespace:
        return directory
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(f"expected a namespace: {NAMESPACE_SHAPE}, not {namespace!r:.80}")
    return directory / NAMESPACES / namespace


def entry_path(directory: Path, fingerprint: str, module_sha256: str) -> Path:
    """Return the folder of an entry."""
    return directory / fingerprint / module_sha256[:2] / module_sha256
