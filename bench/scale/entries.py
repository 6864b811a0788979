"""Small made-up artifacts: as many as one likes, each with a module of its own."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from wasmkiln.attestation import TrustedKeys
from wasmkilnd.model import Artifact, CacheKey, CompileSpec, EngineIdentity, Kind, to_frames
from wasmkilnd.signing.keys import Keys, PrivateKey
from wasmkilnd.signing.sealer import Sealer

CODE_BYTES = 200

_SPEC = CompileSpec(
    EngineIdentity("bench", "1", "1", "none"),
    "x86_64-unknown-linux-gnu",
    "baseline",
    {"opt_level": "speed"},
    {},
    hashlib.sha256(b"fingerprint").hexdigest(),
)


class Entries:
    """Entries by number. The same number is the same entry, in every process."""

    def __init__(self, spec: CompileSpec = _SPEC) -> None:
        self.spec = spec
        # A seed instead of a random key: a store that one process filled is valid in another.
        key = PrivateKey.parse(hashlib.sha256(b"bench").hexdigest())
        self.sealer = Sealer(Keys(key, TrustedKeys([key.public])), "bench")
        self.public_key = key.public.hex
        self._attestation = self.sealed(0).attestation

    def key(self, number: int) -> CacheKey:
        """Return an entry's key, of strings that nobody has hashed yet, as a call brings it."""
        return CacheKey(_digest(number), self.spec.fingerprint, self.spec.engine.id)

    def unsigned(self, number: int) -> Artifact:
        """Return an entry with a copy of another one's attestation: for what verifies nothing."""
        made = self._made(number)
        return replace(made, attestation=bytes(bytearray(self._attestation)))

    def sealed(self, number: int) -> Artifact:
        """Return an entry with its own attestation, which takes a tenth of a millisecond."""
        return self.sealer.seal(self._made(number))

    def _made(self, number: int) -> Artifact:
        code = hashlib.shake_128(b"code %d" % number).digest(CODE_BYTES)
        return Artifact(
            _digest(number),
            Kind.CORE_MODULE,
            self.spec,
            hashlib.sha256(code).hexdigest(),
            len(code),
            to_frames(code),
            0.5 + number / 1e9,
        )


def _digest(number: int) -> str:
    return hashlib.sha256(b"module %d" % number).hexdigest()
