"""The names of the shared tier's keys."""

from __future__ import annotations

import re

from wasmkilnd.model import CacheKey

_GLOB = re.compile(rb"[][*?\\^-]")


class KeyNames:
    """``<prefix>compiled:{<module>}:<fingerprint>`` and ``<prefix>module:{<module>}``.

    A value's further pieces are at ``<prefix>part:{<module>}:<fingerprint>:<digest>``, with
    ``module`` for the fingerprint of a module's; who compiles an artifact holds
    ``<prefix>lease:{<module>}:<fingerprint>``. The braces keep all keys of a module in one
    slot of a cluster.
    """

    def __init__(self, prefix: str) -> None:
        self._compiled = f"{prefix}compiled:".encode()
        self._module = f"{prefix}module:".encode()
        self._part = f"{prefix}part:".encode()
        self._lease = f"{prefix}lease:".encode()
        self._prefix = prefix.encode()

    def artifact(self, key: CacheKey) -> bytes:
        """Answer under which name an artifact is stored."""
        return _of_key(self._compiled, key)

    def lease(self, key: CacheKey) -> bytes:
        """Answer under which name who compiles an artifact is told."""
        return _of_key(self._lease, key)

    def artifact_part(self, key: CacheKey, digest: str) -> bytes:
        """Answer under which name a piece of an artifact is stored."""
        return b"%b:%b" % (_of_key(self._part, key), digest.encode())

    def module_part(self, sha256: str, digest: str) -> bytes:
        """Answer under which name a piece of a module is stored."""
        return self.artifact_part(CacheKey(sha256, "module"), digest)

    def module(self, sha256: str) -> bytes:
        """Answer under which name a module is stored."""
        return b"%b{%b}" % (self._module, sha256.encode())

    def is_artifact(self, name: bytes) -> bool:
        """Whether ``name`` is that of an artifact."""
        return name.startswith(self._compiled)

    def is_module(self, name: bytes) -> bool:
        """Whether ``name`` is that of a module."""
        return name.startswith(self._module)

    def is_value(self, name: bytes) -> bool:
        """Whether ``name`` is that of an artifact, a module or a piece of one."""
        return name.startswith((self._compiled, self._module, self._part))

    def all_pattern(self) -> bytes:
        """Answer a pattern that matches every name, and perhaps more under the prefix."""
        return _literal(self._prefix) + b"*"

    def artifacts_pattern(self, module_sha256: str = "") -> bytes:
        """Answer a pattern that matches the artifacts of one module, or all."""
        if not module_sha256:
            return _literal(self._compiled) + b"*"
        return b"%b{%b}:*" % (_literal(self._compiled), _literal(module_sha256.encode()))

    def modules_pattern(self) -> bytes:
        """Answer a pattern that matches every module."""
        return _literal(self._module) + b"*"

    def parts_pattern(self, module_sha256: str) -> bytes:
        """Answer a pattern that matches the pieces of one module and its artifacts."""
        return b"%b{%b}:*" % (_literal(self._part), _literal(module_sha256.encode()))

    def artifact_key(self, name: bytes) -> CacheKey | None:
        """Answer which artifact ``name`` is that of, None if it is no artifact's."""
        if not self.is_artifact(name):
            return None
        module, _, fingerprint = name[len(self._compiled) :].decode(errors="replace").partition(":")
        return CacheKey(module.strip("{}"), fingerprint)

    def module_sha256(self, name: bytes) -> str | None:
        """Answer which module ``name`` is that of, None if it is no module's."""
        if not self.is_module(name):
            return None
        return name[len(self._module) :].decode(errors="replace").strip("{}")


def _of_key(kind: bytes, key: CacheKey) -> bytes:
    return b"%b{%b}:%b" % (kind, key.module_sha256.encode(), key.fingerprint.encode())


def _literal(name: bytes) -> bytes:
    return _GLOB.sub(rb"\\\g<0>", name)
