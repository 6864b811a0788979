"""The names of the shared tier's keys."""

from __future__ import annotations

import re

from wasmkilnd.model import CacheKey

_GLOB = re.compile(rb"[][*?\\^-]")


class KeyNames:
    """``<prefix>compiled:{<module>}:<fingerprint>`` and ``<prefix>module:{<module>}``.

    The braces keep all keys of a module in one slot of a cluster.
    """

    def __init__(self, prefix: str) -> None:
        self._compiled = f"{prefix}compiled:".encode()
        self._module = f"{prefix}module:".encode()
        self._prefix = prefix.encode()

    def artifact(self, key: CacheKey) -> bytes:
        """Answer under which name an artifact is stored."""
        return b"%b{%b}:%b" % (
            self._compiled,
            key.module_sha256.encode(),
            key.fingerprint.encode(),
        )

    def module(self, sha256: str) -> bytes:
        """Answer under which name a module is stored."""
        return b"%b{%b}" % (self._module, sha256.encode())

    def is_artifact(self, name: bytes) -> bool:
        """Whether ``name`` is that of an artifact."""
        return name.startswith(self._compiled)

    def is_module(self, name: bytes) -> bool:
        """Whether ``name`` is that of a module."""
        return name.startswith(self._module)

    def all_pattern(self) -> bytes:
        """Answer a pattern that matches every name, and perhaps more under the prefix."""
        return _literal(self._prefix) + b"*"

    def artifacts_pattern(self, module_sha256: str = "") -> bytes:
        """Answer a pattern that matches the artifacts of one module, or all."""
        if not module_sha256:
            return _literal(self._compiled) + b"*"
        return b"%b{%b}:*" % (_literal(self._compiled), _literal(module_sha256.encode()))


def _literal(name: bytes) -> bytes:
    return _GLOB.sub(rb"\\\g<0>", name)
