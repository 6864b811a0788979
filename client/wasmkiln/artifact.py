"""An engine's native code for one module: its bytes and all that is known about them."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from wasmkiln._header_fields import engine_id
from wasmkiln.attestation import Claims, verify
from wasmkiln.errors import ArtifactMismatch, AttestationInvalid
from wasmkiln.trusted_keys import TrustedKeys
from wasmkiln.v1.types_pb2 import KIND_COMPONENT, KIND_CORE_MODULE, ArtifactHeader

if TYPE_CHECKING:
    import builtins
    from collections.abc import Iterable, Mapping

    from wasmkiln.attestation import Statement
    from wasmkiln.trusted_keys import KeySource

_KINDS = {KIND_CORE_MODULE: "core", KIND_COMPONENT: "component"}


@dataclass(frozen=True)
class Artifact:
    """The answer of a compile.

    `bytes` is what the engine deserializes, empty when the call asked for the header alone;
    `header` is the contract's ArtifactHeader; `trusted_keys` are those that `load` asks for,
    and none where nobody gave any; `requested_settings` are those of the compile, which an
    artifact that was read from a file doesn't have.
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

    def intact(self) -> bool:
        """Whether the bytes are those that the header describes."""
        return hashlib.sha256(self.bytes).hexdigest() == self.header.artifact_sha256

    def verify(
        self, trusted_keys: TrustedKeys | KeySource | Iterable[KeySource] | None = None
    ) -> Statement:
        """Checks that a trusted key vouches for these bytes under this header.

        `trusted_keys` are keys (hex, base64, PEM), files or folders with such; without them,
        those that the artifact came with, else WASMKILN_TRUSTED_KEYS. Of the header, the
        artifact's and the module's digest, fingerprint, kind, engine, target, cpu and settings
        are vouched for. Answers what the attestation says.

        Raises AttestationInvalid; VerificationNotInstalled without `wasmkiln[verify]`; and
        ValueError when there are no keys at all, or some can't be read.
        """
        keys = self.trusted_keys if trusted_keys is None else None
        keys = keys or TrustedKeys.choose(trusted_keys)
        if not keys:
            raise ValueError("there are no trusted keys: give some, or set WASMKILN_TRUSTED_KEYS")
        if self.bytes and not self.intact():
            raise AttestationInvalid(
                "the artifact's bytes are no longer those of its header",
                metadata={"cause": "mismatch"},
            )
        return self.verify_header(keys)

    def verify_header(self, trusted_keys: TrustedKeys) -> Statement:
        """Checks the header alone: what `verify` does, without hashing the bytes."""
        return verify(self.header.attestation, claims_of(self.header), trusted_keys)

    def save(
        self, path: str | os.PathLike[str], *, header: bool = True, follow_link: bool = True
    ) -> Path:
        """Writes the bytes to `path` and, with `header`, what is known about them beside it.

        That is the header as `<path>.json`, and its attestation as `<path>.dsse.json`.

        Each file is written aside and renamed, so that a reader sees the old or the new one
        and never a part; its mode follows the umask. A link at `path` is followed, unless
        `follow_link` is False; one at the two other names is replaced. Returns the path.
        Raises OSError.
        """
        target = Path(path)
        if header:
            text = json_format.MessageToJson(
                self.header, preserving_proto_field_name=True, sort_keys=True
            )
            _write_aside(header_path(target), text.encode() + b"\n", follow_link=False)
            if self.header.attestation:
                _write_aside(attestation_path(target), self.header.attestation, follow_link=False)
            else:
                # Or that of the artifact that was here before would seem to be this one's.
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
        """Reads what `save` wrote, and compares bytes and header.

        `load` then asks for an attestation by `trusted_keys`, or by those of
        WASMKILN_TRUSTED_KEYS. Raises OSError when a file can't be read, ArtifactMismatch when
        the bytes aren't those of the header, or the header is none, and ValueError for keys
        that can't be read.
        """
        keys = TrustedKeys.choose(trusted_keys)
        source = Path(path)
        header = ArtifactHeader()
        text = header_path(source).read_bytes()
        try:
            json_format.Parse(text, header, ignore_unknown_fields=True)
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise ArtifactMismatch(f"{header_path(source)} is no artifact's header") from error
        artifact = cls(source.read_bytes(), header, keys)
        if not artifact.intact():
            raise ArtifactMismatch(f"{source} doesn't hold the artifact that its header describes")
        return artifact

    def engine(self) -> Any:
        """The engine that `load` uses when it is given none.

        A `wasmtime.Engine` set as the artifact needs it, or a `wasmer.Store`. It is made
        once per process for each set of settings, so that a `wasmtime.Store(artifact.engine())`
        fits every module loaded with those. Where there are trusted keys, one of them has to
        vouch for the settings. Raises EngineNotInstalled, IncompatibleEngine or
        AttestationInvalid.
        """
        from wasmkiln.loading import host_engine

        return host_engine(self)

    def load(self, engine: Any = None) -> Any:
        """Loads the artifact into the engine of this interpreter, without compiling.

        Returns a `wasmtime.Module`, a `wasmtime.component.Component` or a `wasmer.Module`.
        `engine` is a `wasmtime.Engine` or a `wasmer.Store`; without one, it is `engine()`.

        Loading an artifact is running its code. Where there are trusted keys, one of them has
        to vouch for the artifact, or AttestationInvalid is raised; without any, load only what
        comes from a daemon that you trust.

        Raises EngineNotInstalled, and IncompatibleEngine when the engine's version,
        its settings or this machine can't take the artifact, or when the bytes are no longer
        those of the header; nearly all of that is found before the engine sees a byte.
        """
        from wasmkiln.loading import load_artifact

        return load_artifact(self, engine)


def attestation_path(path: Path) -> Path:
    """Where `save` puts the attestation of the artifact at `path`."""
    return path.with_name(path.name + ".dsse.json")


def claims_of(header: ArtifactHeader) -> Claims:
    """What a header says of its artifact, for an attestation to vouch for."""
    engine = header.engine
    return Claims(
        artifact_sha256=header.artifact_sha256,
        module_sha256=header.module_sha256,
        fingerprint=header.fingerprint,
        kind=_KINDS.get(header.kind, ""),
        engine={
            "name": engine.name,
            "version": engine.version,
            "coreVersion": engine.core_version,
            "compiler": engine.compiler,
        },
        target=header.target,
        cpu=header.cpu,
        settings=dict(header.settings),
        changed_settings=dict(header.changed_settings),
    )


def header_path(path: Path) -> Path:
    """Where `save` puts the header of the artifact at `path`."""
    return path.with_name(path.name + ".json")


def _write_aside(path: Path, content: bytes, *, follow_link: bool) -> None:
    """Writes a file next to `path` and renames it there, with the mode that the umask gives.

    With `follow_link`, for a path that a person gave: a link there stays, what it points to is
    replaced, and what is no regular file, such as /dev/null or a pipe, is written to. Without,
    for a name that was made up: a link is replaced, and what else is no regular file refused,
    so that nothing is written elsewhere. Raises OSError, and then leaves nothing behind.
    """
    if follow_link:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        target = path.resolve()
    else:
        if not path.is_symlink() and path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "there is something that is no file", str(path))
        target = path
    # Its length does not depend on that of `path`, which may be as long as a name can be.
    aside = target.with_name(f".{secrets.token_hex(12)}.tmp")
    # O_EXCL: never through a link that somebody put there first.
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as failure:  # Under a name that its caller knows.
        raise OSError(failure.errno, failure.strerror, str(path)) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
