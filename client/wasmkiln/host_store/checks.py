"""The policy: whether the digest and the signature of a mapped file are checked.

docs/reference/host-store.md says what each value protects from, and why which one is the
default.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TypeVar

from wasmkiln._claims import claims_of
from wasmkiln.attestation import Statement, check_claims, find_key, open_envelope
from wasmkiln.errors import AttestationInvalid
from wasmkiln.host_store.refused import Refused

if TYPE_CHECKING:
    from wasmkiln.trusted_keys import TrustedKeys
    from wasmkiln.v1.types_pb2 import ArtifactHeader

CheckFiles = Literal["always", "once", "owner"]

_K = TypeVar("_K")
_V = TypeVar("_V")

# A file may be written twice within one tick of the clock that its times are taken from, so
# a file this young may still change without a trace.
RACY_S = 1.0

_READ_BYTES = 256 * 1024
_REMEMBERED = 4096

# What was found in this process: the digest of a file as it is, and the statement of an envelope,
# with the id of the key that signed it. Whether that key is trusted is asked every time.
_lock = threading.Lock()
_digests: OrderedDict[tuple[int, ...], str] = OrderedDict()
_statements: OrderedDict[bytes, tuple[Statement, str]] = OrderedDict()


class FileChecks:
    """The checks of one client."""

    def __init__(self, policy: CheckFiles | None, trusted_keys: TrustedKeys) -> None:
        """Without a policy it is "once" with trusted keys, else "owner". Raise ValueError."""
        policy = policy or ("once" if trusted_keys else "owner")
        if policy not in ("always", "once", "owner"):
            raise ValueError(f"check_files is 'always', 'once', 'owner' or None, not {policy!r}")
        self.policy: CheckFiles = policy
        self._trusted_keys = trusted_keys
        if trusted_keys and self.reads_content:
            # It takes longer than a load: so not within the first call, which has a deadline.
            # Without the package, that call says so.
            with suppress(ImportError):
                import securesystemslib.dsse  # noqa: F401

    @property
    def reads_content(self) -> bool:
        """Whether the policy looks at more than owner and mode."""
        return self.policy != "owner"

    def check_file(self, header: ArtifactHeader, descriptor: int, status: os.stat_result) -> None:
        """Check a file that is about to be mapped. Raise Refused."""
        if not self.reads_content:
            return
        known = identity(status)
        digest = None
        if self.policy == "once":
            with _lock:
                digest = _digests.get(known)
        if digest is None:
            digest = _digest_of(descriptor, status.st_size)
            if not is_racy(status):
                _remember(_digests, known, digest)
        self._compare(header, digest)

    def check_bytes(self, header: ArtifactHeader, content: bytes) -> None:
        """Check bytes that were read from a file. Raise Refused."""
        if self.reads_content:
            self._compare(header, hashlib.sha256(content).hexdigest())

    def _compare(self, header: ArtifactHeader, digest: str) -> None:
        if digest != header.artifact_sha256:
            raise Refused("the file's bytes are not those of its header")
        if self._trusted_keys:
            try:
                check_claims(self._statement(header.attestation), claims_of(header))
            except AttestationInvalid as error:
                raise Refused(f"no trusted key vouches for the file: {error}") from error

    def _statement(self, envelope: bytes) -> Statement:
        with _lock:
            known = _statements.get(envelope)
        if known is None or self.policy == "always":
            known = open_envelope(envelope, self._trusted_keys)
            _remember(_statements, envelope, known)
        statement, key_id = known
        find_key(key_id, self._trusted_keys)
        return statement


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to."""
    return (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


def is_racy(status: os.stat_result) -> bool:
    """Return whether the file changed so recently that it may change without a trace."""
    return time.time() - max(status.st_mtime, status.st_ctime) < RACY_S


def _digest_of(descriptor: int, size_bytes: int) -> str:
    digest = hashlib.sha256()
    try:
        for offset in range(0, size_bytes, _READ_BYTES):
            digest.update(os.pread(descriptor, min(_READ_BYTES, size_bytes - offset), offset))
    except OSError as error:
        raise Refused(f"cannot read a file of the store: {error}") from error
    return digest.hexdigest()


def _remember(memory: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    with _lock:
        memory[key] = value
        memory.move_to_end(key)
        while len(memory) > _REMEMBERED:
            memory.popitem(last=False)
