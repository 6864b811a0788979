"""What callers want, and what they are given: the values at both ends of the request path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from wasmkilnd.model import Artifact, Module, Origin
from wasmkilnd.waiters import Waiter


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a call is served."""

    waiter: Waiter = field(default_factory=Waiter)
    deadline_s: float | None = None
    """When its caller goes away, by the event loop's clock."""
    release: Callable[[], None] = lambda: None
    """Called when the call does not hold the module's bytes, or the service counts them."""


@dataclass(slots=True)
class CompileRequest:
    """What a caller of Compile wants. Exactly one of ``sha256`` and ``wasm`` is set.

    Once the module is admitted its digest stands for it, so that a call that waits
    for others' work does not hold megabytes.
    """

    sha256: str = ""
    wasm: bytes = b""
    engine: str = ""
    target: str = ""
    cpu: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    skip_cache_lookup: bool = False
    terms: Terms = field(default_factory=Terms)


@dataclass(slots=True)
class LoadRequest:
    """What a caller of Load wants."""

    wasm: bytes
    expected_sha256: str = ""
    engine: str = ""
    terms: Terms = field(default_factory=Terms)
    sha256: str = ""
    """The module's digest, once it is admitted."""


@dataclass(frozen=True, slots=True)
class Served:
    """An artifact, and how this call came by it."""

    artifact: Artifact
    origin: Origin
    queue_time_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of a Load call."""

    module: Module
    engine_id: str
    already_loaded: bool
    artifacts: Sequence[Artifact]


@dataclass(frozen=True, slots=True)
class WantedArtifact:
    """What FindMissing asks about."""

    module_sha256: str
    engine: str = ""
    target: str = ""
    cpu: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
