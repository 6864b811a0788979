"""What callers ask for and what they get: the values at both ends of the request path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from wasmkilnd import errors
from wasmkilnd.account import UNLIMITED, Account
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.flights import Waiter
from wasmkilnd.model import Artifact, HostFile, Module, Origin


@dataclass(frozen=True, slots=True)
class Terms:
    """Who makes a call, and what the call holds."""

    waiter: Waiter = field(default_factory=Waiter)
    release: Callable[[], None] = lambda: None
    """Frees the room that the request's bytes take in the receive budget. The services call it
    once the call holds no bytes, or admission counts them."""
    account: Account = UNLIMITED
    """Who pays for the work that the call starts."""


@dataclass(slots=True)
class CompileRequest:
    """A Compile call. Exactly one of ``sha256`` and ``wasm`` is set.

    Once the module is admitted, its digest replaces its bytes: a call that waits for another
    call's compilation does not hold megabytes.
    """

    sha256: str = ""
    wasm: bytes = b""
    engine: str = ""
    target: str = ""
    cpu: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    skip_cache_lookup: bool = False
    accept_host_file: bool = False
    """Whether the caller takes a file of the host store instead of the bytes."""
    accept_encodings: frozenset[str] = frozenset()
    """How the artifact's bytes may be encoded."""
    accept_fast: bool = False
    """Whether the caller takes a fast compiler's artifact until the optimised one is there."""
    hits_only: bool = False
    """Whether the caller may have what a tier holds, and nothing compiled for it."""
    terms: Terms = field(default_factory=Terms)

    def restrict_to_hits(self) -> None:
        """Let the call have what a tier holds, and nothing else. Raises ROLE_MISSING."""
        if self.wasm:
            raise errors.only_hits("upload a module")
        if self.skip_cache_lookup:
            raise errors.only_hits("compile a module again")
        self.hits_only = True

    def refused_miss(self) -> WasmkilnError | None:
        """Return the error of a miss for a call that may have hits only; None for others."""
        if self.hits_only:
            return errors.only_hits("compile the module: no cache holds its artifact")
        return None


@dataclass(slots=True)
class LoadRequest:
    """A Load call."""

    wasm: bytes
    expected_sha256: str = ""
    engine: str = ""
    terms: Terms = field(default_factory=Terms)
    sha256: str = ""
    """The module's digest, once the module is admitted."""


@dataclass(frozen=True, slots=True)
class Served:
    """The result of a Compile call."""

    artifact: Artifact
    origin: Origin
    queue_time_s: float = 0.0
    host_file: HostFile | None = None
    """Where the caller can map the artifact; only if it accepts that."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of a Load call."""

    module: Module
    engine_id: str
    already_loaded: bool
    artifacts: Sequence[Artifact]


@dataclass(frozen=True, slots=True)
class WantedArtifact:
    """One artifact that a FindMissing call asks about."""

    module_sha256: str
    engine: str = ""
    target: str = ""
    cpu: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
