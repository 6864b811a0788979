"""One call of `module`: what it asks for, and which failures end it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wasmkiln import errors
from wasmkiln._requests import identify
from wasmkiln._untrusted import one_line, quoted
from wasmkiln.host_store import Refused

if TYPE_CHECKING:
    from wasmkiln._flow import Deadline
    from wasmkiln._requests import IdentifiedModule, Source
    from wasmkiln.v1.module_service_pb2 import CompileRequest
    from wasmkiln.v1.types_pb2 import ArtifactHeader

# What the engine of this process would not do better, or should not try: a module that breaks a
# compiler or takes too long would do the same here, where nothing confines it.
FINAL = (
    *(errors.NotWasm, errors.ModuleInvalid, errors.ModuleTooLarge, errors.EngineLacksFeature),
    *(errors.CompileTimeout, errors.CompileMemoryLimit, errors.CompilerCrashed),
    *(errors.ModuleQuarantined, errors.ArtifactTooLarge, errors.InvalidRequest),
    *(errors.EngineUnknown, errors.EngineRemoved),
    *(errors.SettingUnknown, errors.TargetUnsupported),
    *(errors.EngineNotInstalled, errors.VerificationNotInstalled),
)

# Why a file of the host store is not used.
MISSES = (Refused, errors.IncompatibleEngine, OSError)


def is_denied(error: errors.WasmkilnError) -> bool:
    """Return whether a daemon that could be reached does not let this client in."""
    if isinstance(error, (errors.CredentialsMissing, errors.CredentialsInvalid)):
        return True
    return isinstance(error, errors.ConnectionFailed) and "cause" in error.metadata


@dataclass(frozen=True)
class Asking:
    """What a call of `module` asks for."""

    source: Source
    request: CompileRequest
    engine: str
    """As the caller named it: the request may name the version that fits here."""
    into: Any
    fallback: str | None
    deadline: Deadline


class FileChanged(OSError):  # noqa: N818
    """A module's file changed while a call for it ran."""


def identify_again(source: Source, sha256: str) -> IdentifiedModule:
    """Return the module with its bytes. Raise FileChanged unless they still have this digest."""
    identified = identify(source)
    if identified.sha256 != sha256:
        raise FileChanged(f"the file of module {sha256} changed while a call for it ran")
    return identified


def no_file(address: str, header: ArtifactHeader, why: Exception) -> errors.HostFileUnavailable:
    """Return the error for an answer after which this client has no file to name."""
    detail = one_line(str(why))
    if header.HasField("host_file"):
        return errors.HostFileUnavailable(
            f"cannot use the file that the daemon at {address} names, "
            f"{quoted(header.host_file.path)}: {detail}",
            metadata={"cause": "refused", "detail": detail},
        )
    return errors.HostFileUnavailable(
        f"the daemon at {address} has the artifact of {header.size_bytes:,} bytes, and named no "
        "file of it: it keeps no host store (host_store_bytes is 0), the artifact is larger than "
        "that store, or it cannot write there, as its log then says",
        metadata={"cause": "not_named", "detail": detail},
    )
