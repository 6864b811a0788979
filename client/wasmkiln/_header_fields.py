"""Whether an ArtifactHeader is about what a call asked for.

The client uses a field of a header only after it compared the field with the call (`check`) or with
the artifact's bytes; with trusted keys the attestation has to say the same (`attestation`). All
other fields are only shown: no path, no engine and no decision depends on them. A test has the
table of all fields, and why the client may believe each.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wasmkiln._untrusted import quoted
from wasmkiln.errors import ArtifactMismatch
from wasmkiln.shared import FAST_SETTINGS, UNHASHED_DEFAULTS, engine_id
from wasmkiln.v1.module_service_pb2 import CompileRequest

if TYPE_CHECKING:
    from wasmkiln._source import Source
    from wasmkiln.v1.types_pb2 import Kind


# A daemon puts no larger artifact into its header's message; see module_service.proto.
_INLINE_LIMIT_BYTES = 65_536


@dataclass
class Call:
    """A module that a caller asks for, by when; "" stands for the daemon's default."""

    module_sha256: str
    kind: Kind | None
    """None where the client does not have the module's bytes."""
    engine: str = ""
    target: str = ""
    cpu: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    accept_fast: bool = False
    source: Source = ""
    module: bytes | None = None
    size_bytes: int | None = None
    """None for a digest."""
    into: Any = None
    """The engine that loads it."""
    compatibility: bytes = b""
    """What that engine says of itself: the daemon then chooses what is not named here."""
    must_run: bool = False
    """Whether code that this machine cannot run is refused once its header is here."""

    @cached_property
    def request(self) -> CompileRequest:
        """What asks a daemon for it: a file of the host store needs none, and it takes long."""
        return CompileRequest(
            sha256=self.module_sha256,
            engine=self.engine or None,
            target=self.target or None,
            cpu=self.cpu or None,
            settings=self.settings,
            inline_limit_bytes=_INLINE_LIMIT_BYTES,
            accept_fast=self.accept_fast,
            compatibility=self.compatibility_key or None,
        )

    @property
    def compatibility_key(self) -> bytes:
        """What daemons and host stores know `compatibility` by; empty without."""
        return hashlib.sha256(self.compatibility).digest() if self.compatibility else b""

    def read(self) -> bytes | None:
        """Return the module's bytes; None for a digest. Raise OSError if they changed."""
        if self.module is not None or self.size_bytes is None:
            return self.module
        module = self.piece(0, self.size_bytes)
        if hashlib.sha256(module).hexdigest() != self.module_sha256:
            raise self.changed()
        return module

    def piece(self, offset: int, most: int) -> bytes:
        """Return the next bytes of the module. Raise OSError if its file got shorter."""
        if self.module is not None:
            return self.module[offset : offset + most]
        source: Any = self.source
        with open(source, "rb", buffering=0) as file:  # noqa: PTH123
            piece = os.pread(file.fileno(), most, offset)
        if len(piece) != min(most, (self.size_bytes or 0) - offset):
            raise self.changed()
        return piece

    def changed(self) -> OSError:
        """Return what a caller gets whose file is no longer the one that was hashed."""
        return OSError(f"the file of module {self.module_sha256} changed during a call: ask again")


def check(call: Call, header: Any) -> None:
    """Raise ArtifactMismatch when a header is not about what the call asked for.

    It is an ArtifactHeader, or what the host store has of one.
    """
    for difference in _differences(call, header):
        raise ArtifactMismatch(difference)


def _differences(call: Call, header: Any) -> Iterator[str]:
    asked, engine, changed = call.settings, header.engine, header.changed_settings
    full = engine_id(engine)
    named = full if call.engine == engine.name else call.engine
    settings = {name: header.settings.get(name, UNHASHED_DEFAULTS.get(name, "")) for name in asked}
    for what, wanted, got in (
        ("an artifact of module", call.module_sha256, header.module_sha256),
        ("engine", named, full),
        ("target", call.target, header.target),
        ("cpu", call.cpu, header.cpu),
        *((f"setting {quoted(name)}", asked[name], settings[name]) for name in asked),
    ):
        if wanted and wanted != got:
            yield f"asked for {what} {quoted(wanted)}, got {quoted(got) or 'none'}"
    if call.kind is not None and header.kind != call.kind:
        yield f"asked for an artifact of kind {call.kind}, got one of kind {header.kind}"
    # Attestations do not have the id, and callers name files after it.
    if engine.id != full:
        yield f"the header calls the engine {quoted(full)} {quoted(engine.id) or 'nothing'}"
    fast, value = FAST_SETTINGS.get(engine.name, ("", ""))
    is_fast = bool(fast) and changed.get(fast) == value
    if header.is_fast != is_fast:
        yield f"the header says is_fast={header.is_fast}, and its settings say the opposite"
    if call.compatibility:  # The engine compares the rest itself.
        return
    if is_fast and not (call.accept_fast or asked.get(fast) == value):
        yield "asked for optimised code, got a fast compiler's"
    # A setting that the call did not name has to have the engine's default, apart from the one
    # that makes the artifact a fast one.
    for name in changed:  # items() takes long the first time
        got = changed[name]
        if got != asked.get(name) and not (is_fast and name == fast):
            default = quoted(asked.get(name, "as the engine has it"))
            yield f"asked for setting {quoted(name)} {default}, got {quoted(got) or 'none'}"
