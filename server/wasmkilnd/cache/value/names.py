"""The names of the shared tier's keys, and what each name is the key of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wasmkilnd.fingerprint import CACHE_FORMAT
from wasmkilnd.model import CacheKey

# Daemons with different formats on one server must not delete each other's values. An artifact's
# name holds the fingerprint, which differs; a module's name holds the format, except the first.
FIRST_FORMAT = 2

_GLOB = re.compile(rb"[][*?\\^-]")
_NAMESPACE = "ns:"
_HEX = "[0-9a-f]{64}"
_OF_ARTIFACT = re.compile(rf"{{({_HEX})}}:({_HEX})".encode())
_OF_MODULE = re.compile(rf"{{({_HEX})}}(v[0-9]+)?".encode())
_IN_BRACES = re.compile(rf"{{({_HEX})}}".encode())
_OF_MARK = re.compile(rf"{{({_HEX})}}|all".encode())
_OF_PART = re.compile(rf"{{({_HEX})}}:(?:({_HEX})|module(v[0-9]+)?):{_HEX}".encode())


@dataclass(frozen=True, slots=True)
class ValueKey:
    """The key of a stored value: an artifact's, or a module's, which has no fingerprint."""

    module_sha256: str
    fingerprint: str = ""

    @property
    def artifact(self) -> CacheKey | None:
        """The artifact's key, None for a module."""
        return CacheKey(self.module_sha256, self.fingerprint) if self.fingerprint else None


def namespace_prefix(prefix: str, namespace: str) -> str:
    """Return the prefix of a namespace's keys: that of the default one is ``prefix`` itself."""
    return f"{prefix}{_NAMESPACE}{namespace}:" if namespace else prefix


class KeyNames:
    """``<prefix>compiled:{<module>}:<fingerprint>`` and ``<prefix>module:{<module>}``.

    A value's further pieces are at ``<prefix>part:{<module>}:<fingerprint>:<digest>``, with
    ``module`` instead of a fingerprint for the pieces of a module. From format 3 on, a module is
    at ``<prefix>module:{<module>}v3``, and ``modulev3`` is in the names of its pieces. The daemon
    that compiles an artifact holds ``<prefix>lease:{<module>}:<fingerprint>``, and
    ``<prefix>strike:{<module>}:<fingerprint>`` records a compile that broke the compiler. An
    Evict or a release leaves ``<prefix>mark:{<module>}``, or ``<prefix>mark:all`` if it was about
    everything or an engine. ``<prefix>pins:<digit>`` lists the pinned modules whose digests begin
    with the digit, and ``<prefix>uses:<place>`` sums what a daemon served.
    Daemons before 0.7 wrote ``<prefix>revoked:<key id>`` and ``<prefix>cert:<key id>``, which
    nobody reads. The braces keep all keys of a module in one slot of a cluster.

    Keys of a namespace begin with ``<prefix>ns:<namespace>:`` instead of the prefix, so no pattern
    or name here is about them.
    """

    def __init__(self, prefix: str, cache_format: int = CACHE_FORMAT) -> None:
        """Name keys below ``prefix``, as daemons with ``cache_format`` do."""
        self._suffix = "" if cache_format == FIRST_FORMAT else f"v{cache_format}"
        self._compiled = f"{prefix}compiled:".encode()
        self._module = f"{prefix}module:".encode()
        self._part = f"{prefix}part:".encode()
        self._lease = f"{prefix}lease:".encode()
        self._strike = f"{prefix}strike:".encode()
        self._mark = f"{prefix}mark:".encode()
        self._pins = f"{prefix}pins:".encode()
        self._about_keys = (f"{prefix}revoked:".encode(), f"{prefix}cert:".encode())
        self._uses = f"{prefix}uses:".encode()
        self._prefix = prefix.encode()

    def artifact(self, key: CacheKey) -> bytes:
        """Return the name of an artifact."""
        return _of_key(self._compiled, key)

    def lease(self, key: CacheKey) -> bytes:
        """Return the name of the lease on an artifact."""
        return _of_key(self._lease, key)

    def lease_key(self, name: bytes) -> CacheKey | None:
        """Return the artifact's key if ``name`` is a lease's, else None."""
        return _key_of(self._lease, name)

    def strike(self, key: CacheKey) -> bytes:
        """Return the name of a strike against a module."""
        return _of_key(self._strike, key)

    def strike_key(self, name: bytes) -> CacheKey | None:
        """Return the key that a strike is about if ``name`` is a strike's, else None."""
        return _key_of(self._strike, name)

    def uses(self, place: int) -> bytes:
        """Return the name of a daemon's record of uses."""
        return b"%b%d" % (self._uses, place)

    @property
    def all_uses(self) -> bytes:
        """What the names of all records of uses begin with, the namespace included."""
        return self._uses

    def is_uses(self, name: bytes) -> bool:
        """Whether ``name`` is that of a record of uses."""
        return name.startswith(self._uses)

    def is_about_keys(self, name: bytes) -> bool:
        """Whether ``name`` is about a signing key, as a daemon before 0.7 wrote it."""
        return name.startswith(self._about_keys)

    def mark(self, module_sha256: str) -> bytes:
        """Return the name of the mark of a module, of everything for an empty digest."""
        return self._mark + (b"{%b}" % module_sha256.encode() if module_sha256 else b"all")

    def pins(self, digit: str) -> bytes:
        """Return the name of the list of pins whose digests begin with ``digit``."""
        return self._pins + digit.encode()

    def is_pins(self, name: bytes) -> bool:
        """Whether ``name`` is that of a list of pins."""
        return name.startswith(self._pins)

    def module_of(self, name: bytes) -> str:
        """Return the module of an artifact, a module or a piece, in any format; else nothing."""
        for prefix in (self._compiled, self._module, self._part):
            if name.startswith(prefix):
                found = _IN_BRACES.match(name, len(prefix))
                return found[1].decode() if found else ""
        return ""

    def is_of_namespace(self, name: bytes) -> bool:
        """Whether ``name`` is that of a key of a namespace below this one."""
        return name.startswith(self._prefix + _NAMESPACE.encode())

    def is_mark(self, name: bytes) -> bool:
        """Whether ``name`` is that of a mark."""
        return _after(self._mark, name, _OF_MARK) is not None

    def strikes_pattern(self, module_sha256: str = "") -> bytes:
        """Return a pattern that matches the strikes against one module, or all."""
        return _pattern(self._strike, module_sha256)

    def artifact_part(self, key: CacheKey, digest: str) -> bytes:
        """Return the name of a piece of an artifact."""
        return b"%b:%b" % (_of_key(self._part, key), digest.encode())

    def module_part(self, sha256: str, digest: str) -> bytes:
        """Return the name of a piece of a module."""
        return self.artifact_part(CacheKey(sha256, f"module{self._suffix}"), digest)

    def module(self, sha256: str) -> bytes:
        """Return the name of a module."""
        return b"%b{%b}%b" % (self._module, sha256.encode(), self._suffix.encode())

    def is_artifact(self, name: bytes) -> bool:
        """Whether ``name`` is that of an artifact."""
        return name.startswith(self._compiled)

    def is_module(self, name: bytes) -> bool:
        """Whether ``name`` is that of a module."""
        return name.startswith(self._module)

    def is_value(self, name: bytes) -> bool:
        """Whether ``name`` is that of an artifact, a module or a piece of one, in any format."""
        shapes = (
            (self._compiled, _OF_ARTIFACT),
            (self._module, _OF_MODULE),
            (self._part, _OF_PART),
        )
        return any(_after(prefix, name, shape) for prefix, shape in shapes)

    def all_pattern(self) -> bytes:
        """Return a pattern that matches all names, and other keys under the prefix."""
        return _literal(self._prefix) + b"*"

    def artifacts_pattern(self, module_sha256: str = "") -> bytes:
        """Return a pattern that matches the artifacts of one module, or all."""
        return _pattern(self._compiled, module_sha256)

    def modules_pattern(self, module_sha256: str = "") -> bytes:
        """Return a pattern that matches one module in every format, or every module."""
        if not module_sha256:
            return _literal(self._module) + b"*"
        return b"%b{%b}*" % (_literal(self._module), _literal(module_sha256.encode()))

    def parts_pattern(self, module_sha256: str = "") -> bytes:
        """Return a pattern that matches the pieces of one module and its artifacts, or all."""
        return _pattern(self._part, module_sha256)

    def artifact_key(self, name: bytes) -> CacheKey | None:
        """Return the key of the artifact that ``name`` is the name of; None if it is none."""
        return _key_of(self._compiled, name)

    def value(self, key: ValueKey) -> bytes:
        """Return the name of a value."""
        return self.artifact(key.artifact) if key.artifact else self.module(key.module_sha256)

    def part(self, key: ValueKey, digest: str) -> bytes:
        """Return the name of a piece of a value."""
        if key.artifact:
            return self.artifact_part(key.artifact, digest)
        return self.module_part(key.module_sha256, digest)

    def value_at(self, name: bytes) -> ValueKey | None:
        """Return the key of the value that ``name`` is the name of; None if it is none."""
        if artifact := self.artifact_key(name):
            return ValueKey(artifact.module_sha256, artifact.fingerprint)
        module, suffix = _after(self._module, name, _OF_MODULE) or ("", "")
        return ValueKey(module) if module and suffix == self._suffix else None

    def part_at(self, name: bytes) -> ValueKey | None:
        """Return the key of the value that the piece ``name`` belongs to; None if it is none."""
        module, fingerprint, suffix = _after(self._part, name, _OF_PART) or ("", "", "")
        if not module or (not fingerprint and suffix != self._suffix):
            return None
        return ValueKey(module, fingerprint)

    def is_of_other_format(self, name: bytes) -> bool:
        """Whether ``name`` is that of a module, or of a piece of one, in another format.

        An artifact's name does not show its format.
        """
        shaped = _after(self._module, name, _OF_MODULE) or _after(self._part, name, _OF_PART)
        return bool(shaped) and not self.value_at(name) and not self.part_at(name)


def _of_key(kind: bytes, key: CacheKey) -> bytes:
    return b"%b{%b}:%b" % (kind, key.module_sha256.encode(), key.fingerprint.encode())


def _literal(name: bytes) -> bytes:
    return _GLOB.sub(rb"\\\g<0>", name)


def _key_of(kind: bytes, name: bytes) -> CacheKey | None:
    found = _after(kind, name, _OF_ARTIFACT)
    return CacheKey(*found) if found else None


def _after(prefix: bytes, name: bytes, shape: re.Pattern[bytes]) -> tuple[str, ...] | None:
    if not name.startswith(prefix):
        return None
    found = shape.fullmatch(name, len(prefix))
    return tuple(group.decode() for group in found.groups(b"")) if found else None


def _pattern(kind: bytes, module_sha256: str) -> bytes:
    if not module_sha256:
        return _literal(kind) + b"*"
    return b"%b{%b}:*" % (_literal(kind), _literal(module_sha256.encode()))
