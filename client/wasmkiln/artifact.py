"""An engine's native code for one module: what it is, its files, and loading it."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from wasmkiln.attestation import MISMATCH, TrustedKeys, verify_header
from wasmkiln.errors import ArtifactMismatch, AttestationInvalid, IncompatibleEngine
from wasmkiln.shared import engine_id
from wasmkiln.v1.types_pb2 import ArtifactHeader

if TYPE_CHECKING:
    import builtins

    from wasmkiln.attestation import KeySource, Statement
    from wasmkiln.loading import Engine, Kind


class Origin(IntEnum):
    """Where the daemon had an artifact from: the numbers of the contract, with names."""

    UNSPECIFIED = 0
    MEMORY = 1
    REDIS = 2
    COMPILED = 3
    JOINED_FLIGHT = 4
    HOST_STORE = 5
    OBJECT_STORE = 6

    @classmethod
    def _missing_(cls, value: object) -> Origin | None:
        """Name a number that only a newer daemon knows."""
        if not isinstance(value, int):
            return None
        unknown = int.__new__(cls, value)
        unknown._name_, unknown._value_ = f"ORIGIN_{value}", value
        return unknown


@dataclass(frozen=True)
class Artifact:
    """The result of a compile.

    `bytes` is what the engine deserializes, empty when the call asked for the header alone;
    `header` is the contract's ArtifactHeader; `trusted_keys` are those of the client: `load`
    verifies by them, if there are any; `requested_settings` are those of the call, empty for an
    artifact that `open` read.
    """

    bytes: builtins.bytes = field(repr=False)
    header: ArtifactHeader = field(repr=False)
    trusted_keys: TrustedKeys = field(default_factory=TrustedKeys, repr=False, compare=False)
    requested_settings: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        return (
            f"<Artifact of {self.header.module_sha256[:12]}… for {engine_id(self.header.engine)} "
            f"on {self.header.target} {self.header.cpu}, {len(self.bytes)} bytes>"
        )

    @property
    def origin(self) -> Origin:
        """Where the daemon had it from: `header.origin` with a name."""
        return Origin(self.header.origin)

    def intact(self) -> bool:
        """Return whether the bytes have the SHA-256 of the header."""
        return hashlib.sha256(self.bytes).hexdigest() == self.header.artifact_sha256

    def verify(
        self, trusted_keys: TrustedKeys | KeySource | Iterable[KeySource] | None = None
    ) -> Statement:
        """Check that a trusted key signed these bytes with this header. Return the statement.

        `trusted_keys` are keys (hex, base64, PEM), or files or folders of keys; without them,
        those of the artifact, else WASMKILN_TRUSTED_KEYS. The signature covers the digests of
        artifact and module, fingerprint, kind, engine, target, cpu and settings, and no other
        field of the header.

        Raise AttestationInvalid; VerificationNotInstalled without `wasmkiln[verify]`; and
        ValueError when there are no keys, or one cannot be read.
        """
        keys = self.trusted_keys if trusted_keys is None else None
        keys = keys or TrustedKeys.choose(trusted_keys)
        if not keys:
            raise ValueError("no trusted key: pass trusted_keys, or set WASMKILN_TRUSTED_KEYS")
        if self.bytes and not self.intact():
            raise AttestationInvalid(
                "the artifact's bytes are no longer those of its header",
                metadata={"cause": MISMATCH},
            )
        return verify_header(self.header, keys)

    def save(
        self, path: str | os.PathLike[str], *, header: bool = True, follow_link: bool = True
    ) -> Path:
        """Write the bytes to `path` and, with `header`, two files beside it. Return the path.

        The two are the header, as `<path>.json`, and its attestation, as `<path>.dsse.json`.

        Write each file under another name and rename it, so that a reader sees the old or the
        new one and never a part; the umask gives its mode. Follow a link at `path`, unless
        `follow_link` is False; replace a link at the two other names. Raise OSError.
        """
        target = Path(path)
        if header:
            _write_aside(header_path(target), header_text(self.header), follow_link=False)
            if self.header.attestation:
                _write_aside(attestation_path(target), self.header.attestation, follow_link=False)
            else:
                # Otherwise the attestation of an older artifact would seem to be of this one.
                attestation_path(target).unlink(missing_ok=True)
        _write_aside(target, self.bytes, follow_link=follow_link)
        return target

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        trusted_keys: TrustedKeys | KeySource | Iterable[KeySource] | None = None,
    ) -> Artifact:
        """Read what `save` wrote, and compare bytes and header.

        `load` then verifies by `trusted_keys`, else by those of WASMKILN_TRUSTED_KEYS. Raise
        OSError when a file cannot be read, ArtifactMismatch when the bytes are not those of the
        header or the header cannot be parsed, and ValueError for keys that cannot be read.
        """
        keys, source, header = TrustedKeys.choose(trusted_keys), Path(path), ArtifactHeader()
        text = header_path(source).read_bytes()
        from google.protobuf import json_format  # takes as long to import as a load

        try:
            json_format.Parse(text, header, ignore_unknown_fields=True)
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise ArtifactMismatch(
                f"cannot read {header_path(source)}: it is not an artifact's header"
            ) from error
        artifact = cls(source.read_bytes(), header, keys)
        if not artifact.intact():
            raise ArtifactMismatch(f"{source} does not hold the artifact that its header describes")
        return artifact

    def engine(self) -> Any:
        """Return the engine that `load` uses without an argument.

        It is a `wasmtime.Engine` with the artifact's settings, or a `wasmer.Store`; one per
        process for each set of settings, so that a `wasmtime.Store(artifact.engine())` fits
        every module loaded with those. Where there are trusted keys, one of them has to have
        signed the settings. Raise EngineNotInstalled, IncompatibleEngine or AttestationInvalid.
        """
        from wasmkiln.loading import host_engine

        return host_engine(self)

    @overload
    def load(self, engine: Engine, *, kind: type[Kind] = ...) -> Kind: ...
    @overload
    def load(self, engine: Any = None, *, kind: type[Any] | None = None) -> Any: ...
    def load(self, engine: Any = None, *, kind: type[Any] | None = None) -> Any:
        """Load the artifact into the engine of this interpreter, without compiling.

        Return a `wasmtime.Module`, a `wasmtime.component.Component` or a `wasmer.Module`. `kind` is
        which of them the caller expects: for another one, raise TypeError.
        `engine` is a `wasmtime.Engine` or a `wasmer.Store`; without one, it is `engine()`.

        Loading an artifact is running its code. Without trusted keys, load only what comes from
        a daemon that you trust; with them, raise AttestationInvalid unless one of them signed
        the artifact.

        Raise EngineNotInstalled, and IncompatibleEngine when the artifact does not fit the
        engine's version, its settings or this machine, or when the bytes are no longer those of
        the header. Check all of that before the engine sees a byte, as far as it can be known.
        """
        from wasmkiln.loading import expected, load_verified

        if not self.bytes:
            raise IncompatibleEngine("the artifact has no bytes: compile it without omit_artifact")
        if not self.intact():
            raise IncompatibleEngine("the artifact's bytes are no longer those of its header")
        # Without keys, `compile` only compared the header.
        if self.trusted_keys:
            verify_header(self.header, self.trusted_keys)
        fits = "artifact.engine() is an engine that fits"
        return expected(kind, load_verified(self, engine, advice=fits))


def attestation_path(path: Path) -> Path:
    """Return where `save` writes the attestation of the artifact at `path`."""
    return path.with_name(path.name + ".dsse.json")


def header_path(path: Path) -> Path:
    """Return where `save` writes the header of the artifact at `path`."""
    return path.with_name(path.name + ".json")


def header_text(header: ArtifactHeader) -> bytes:
    """Return the content of the file that holds `header`. The daemon writes the same."""
    from google.protobuf import json_format

    text = json_format.MessageToJson(header, preserving_proto_field_name=True, sort_keys=True)
    return text.encode() + b"\n"


def _write_aside(path: Path, content: bytes, *, follow_link: bool) -> None:
    """Write a file next to `path` and rename it to `path`; the umask gives its mode.

    With `follow_link`, for a path that a person gave: keep a link and replace the file behind
    it; write into what is not a regular file, such as /dev/null or a pipe. Without, for a name
    that the client made up: replace a link, and refuse what is not a regular file, so that
    nothing is written elsewhere. Raise OSError, and then leave nothing behind.
    """
    if (follow_link or not path.is_symlink()) and path.exists() and not path.is_file():
        if not follow_link:
            raise FileExistsError(errno.EEXIST, "exists and is not a regular file", str(path))
        path.write_bytes(content)
        return
    target = path.resolve() if follow_link else path
    # Not made from `path`, whose name may already have the longest length allowed.
    aside = target.with_name(f".{secrets.token_hex(12)}.tmp")
    try:
        with aside.open("xb") as file:  # not through a link that somebody put there before
            file.write(content)
        aside.replace(target)
    except BaseException as failure:
        with suppress(OSError):
            aside.unlink()
        if isinstance(failure, OSError) and failure.errno:  # name the path that the caller knows
            raise OSError(failure.errno, failure.strerror, str(path)) from None
        raise
