"""The host store: where a daemon keeps artifacts as files, and how this process maps them.

`wasmkiln.shared` has the store's layout.

What a client promises:

- It opens nothing through a link, and nothing by its path a second time: what was checked is the
  descriptor that the engine maps.
- A folder or file counts only if its owner is root, this process's user, or the owner of the
  store's directory (the last one only if no folder above the store can be changed by anybody but
  root and that owner), if nobody else can write to it, and, for a file, if it is a regular one
  with one name: a hard link may be another user's file, and would stay when the daemon evicts.
- Anything that is not as it should be raises Refused, which callers turn into a miss: they ask
  the daemon. No other exception leaves here but VerificationNotInstalled.
- It writes nothing. The daemon sees by the file's time of access that an entry is in use.

Settings: WASMKILN_HOST_STORE_DIR, and the client's arguments host_store_dir and check_files.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_args

from wasmkiln import _header_fields, attestation, shared
from wasmkiln._source import file_digest
from wasmkiln.attestation import KINDS, UNREADABLE, TrustedKeys, verify_header
from wasmkiln.errors import ArtifactMismatch, AttestationInvalid
from wasmkiln.shared import identity, is_digest, is_racy
from wasmkiln.v1.types_pb2 import KIND_COMPONENT, KIND_CORE_MODULE

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable

    from wasmkiln._header_fields import Call
    from wasmkiln.v1.types_pb2 import ArtifactHeader, HostFile

    # Returns whether this process can load artifacts of an engine's name and version.
    Fits = Callable[[str, str], bool]

ENV = "WASMKILN_HOST_STORE_DIR"
NONE = "none"
"""As argument or in the environment: use no host store."""
SYSTEM = Path("/var/cache/wasmkiln")
"""Where the systemd unit has it."""

CheckFiles = Literal["always", "once", "owner"]
"""Whether digest and signature of a mapped file are checked: docs/how-to/host-store.md."""

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER = _READ | os.O_DIRECTORY
_FILE = _READ | os.O_NONBLOCK  # a pipe in place of a file must not make the caller wait
_SHARED_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ENGINES_VERSION = 1
_MAX_ENGINES_BYTES = 4 * 1024 * 1024
# Imports and exports are part of it, and the daemon bounds those.
_MAX_HEADER_BYTES = 64 * 1024 * 1024
_TEXTS = ("module_sha256", "artifact_sha256", "fingerprint", "target", "cpu")
# protobuf takes as long to look one up, the first time, as all else here.
_KINDS = {"KIND_CORE_MODULE": KIND_CORE_MODULE, "KIND_COMPONENT": KIND_COMPONENT}
_ENGINE_TEXTS = ("name", "version", "core_version", "compiler", "id")


class Refused(Exception):  # noqa: N818
    """The store cannot serve this call: there is no such entry, or something is wrong with it."""


# Where it is.


def candidates(argument: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> list[Path]:
    """Return the directories where the store may be, the first that exists counts.

    An argument, else WASMKILN_HOST_STORE_DIR, leaves one directory, or none if it is "none".
    """
    chosen = os.fspath(argument) if argument is not None else environ.get(ENV, "")
    if chosen:
        return [] if chosen == NONE else [Path(chosen).expanduser()]
    found = [SYSTEM]
    with suppress(RuntimeError):
        found.insert(0, shared.default_state_dir(environ) / "host_store")
    return found


# What the daemon serves.


@dataclass(frozen=True)
class Engines:
    """What the daemon serves: the rows of engines.json, in the daemon's order."""

    cache_format: int
    rows: tuple[Mapping[str, Any], ...]
    fits: Mapping[str, Any] = field(default_factory=dict)
    """What engines load that hosts have shown, by compatibility key."""

    @classmethod
    def parse(cls, text: bytes) -> Engines:
        """Read engines.json. Raise Refused for anything but a document of this version."""
        try:
            document = json.loads(text)
            if document["version"] != _ENGINES_VERSION:
                raise Refused(f"engines.json has the version {document['version']!r:.20}")
            rows = tuple(row for row in document["engines"] if row["id"] and row["name"])
            return cls(document["cache_format"], rows, dict(document.get("fits", {})))
        except UNREADABLE as error:
            raise Refused("cannot read engines.json") from error

    def choose(
        self, engine: str, kind: str, fits: Fits = lambda _name, _version: True
    ) -> Mapping[str, Any]:
        """Return the engine that a request names, as the daemon chooses it.

        Of several versions under one name, return the first that `fits(name, version)`. An
        empty name stands for the default, or, for a `kind` that the default does not run, the
        first engine that does. Raise Refused where there is none, and for an empty name without
        a kind, which decides.
        """
        if engine:
            named = [row for row in self.rows if row["id"] == engine]
            named = named or [row for row in self.rows if row["name"] == engine]
            for row in named:
                # Of a single one, whoever loads says better why not.
                if len(named) == 1 or fits(engine, row["version"]):
                    return row
            raise Refused(f"the daemon serves no engine {engine:.100} that fits here")
        default = [row for row in self.rows if row["default"]]
        if not (default and kind):
            raise Refused("only the daemon knows its engine for this module")
        able = (row for row in (*default, *self.rows) if kind in row["kinds"])
        return next(able, default[0])

    def fingerprint_of(self, key: str) -> str:
        """Return the fingerprint of what an engine loads that was shown. Raise Refused."""
        try:
            return str(self.fits[key]["fingerprint"])
        except UNREADABLE as error:
            raise Refused("the daemon does not know this engine yet") from error

    def fingerprint(
        self, row: Mapping[str, Any], target: str, cpu: str, settings: Mapping[str, str]
    ) -> str:
        """Return the fingerprint of a request. Raise Refused for what the engine does not know."""
        known = row.get("fingerprint")
        if isinstance(known, str) and known and not (target or cpu or settings):
            return known
        try:
            targets = {each["triple"]: each for each in row["targets"]}
            hosts = [each for each in targets.values() if each["host"]]
            chosen = targets[target] if target else hosts[0]
            cpu, defaults = cpu or chosen["cpus"][0], row["settings"]
            in_force = {**defaults, **chosen.get("settings", {}), **settings}
            if cpu not in chosen["cpus"] or settings.keys() - defaults.keys():
                raise Refused("the engine does not know the cpu, or a setting")
            return shared.fingerprint(
                SimpleNamespace(**row),
                *(chosen["triple"], cpu),
                row["native_cpu_features"] if cpu == "native" else (),
                in_force,
                unhashed={name: defaults[name] for name in row["unhashed_defaults"]},
                cache_format=self.cache_format,
            )
        except UNREADABLE as error:
            raise Refused("engines.json lacks what the fingerprint needs") from error


# Its folders and files.


class _Folders:
    """What is open of a store: its folders, the innermost last, and behind them a file. Close it.

    What is refused stays among them, and is closed with them.
    """

    def __init__(self, directory: str) -> None:
        """Raise Refused. `directory` itself may be a link; what lies in the store may not."""
        self.path, self._open = directory, list[int]()
        try:
            self._open.append(os.open(directory, _FOLDER & ~os.O_NOFOLLOW))
            status = os.fstat(self._open[0])
            self._owners = owners(directory, status)
            self._check(status, directory)
        except BaseException as error:
            self.close()
            if isinstance(error, (OSError, ValueError)):
                raise Refused(f"cannot open a host store at {directory}: {error}") from error
            raise

    def enter(self, fingerprint: str, module_sha256: str) -> None:
        """Open the folders that lead to an entry. Raise Refused."""
        if not (is_digest(fingerprint) and is_digest(module_sha256)):
            raise Refused("a fingerprint or a module's digest is not 64 hexadecimal digits")
        for name in (fingerprint, module_sha256[:2], module_sha256):
            self._enter(name, _FOLDER)
            self.path += f"/{name}"

    def file(self, name: str) -> os.stat_result:
        """Open a file in the innermost folder. Return its status. Raise Refused."""
        status = self._enter(name, _FILE)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            return status
        raise Refused(f"{name} is not a regular file, or has {status.st_nlink} names")

    def take(self) -> int:
        """Return the descriptor of the open file, for the caller to close."""
        return self._open.pop()

    def read(
        self, name: str, max_bytes: int, unless: tuple[int, ...] | None = None
    ) -> tuple[tuple[int, ...], bytes]:
        """Return identity and content of a file in the innermost folder; b"" for `unless`."""
        status = self.file(name)
        if status.st_size > max_bytes:
            raise Refused(f"{name} has more than {max_bytes:,} bytes")
        known = identity(status) == unless
        content = b"" if known else _read_all(self._open[-1], status.st_size)
        os.close(self.take())
        return identity(status), content

    def close(self) -> None:
        """Close all of them."""
        while self._open:
            os.close(self._open.pop())

    def _enter(self, name: str, flags: int) -> os.stat_result:
        try:
            self._open.append(os.open(name, flags, dir_fd=self._open[-1]))
        except (OSError, ValueError) as error:
            raise Refused(f"cannot open {name}: {error}") from error
        status = os.fstat(self._open[-1])
        self._check(status, name)
        return status

    def _check(self, status: os.stat_result, name: str) -> None:
        if status.st_uid not in self._owners:
            raise Refused(f"{name} belongs to the user {status.st_uid}, who is not trusted")
        if status.st_mode & _SHARED_WRITE:
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "file"
            raise Refused(f"users other than the owner can write to the {kind} {name}")


def owners(directory: str, status: os.stat_result) -> frozenset[int]:
    """Return who may own files of the store at `directory`, whose status is given."""
    owner, trusted = status.st_uid, frozenset({0, os.geteuid()})
    if owner in trusted:
        return trusted
    # Can anybody but root and the owner put another folder into this one's place?
    resolved = Path(directory).resolve()
    if not os.path.samestat(os.stat(resolved), status):  # noqa: PTH116
        return trusted
    for folder in resolved.parents:
        above = os.stat(folder)  # noqa: PTH116  The path has no links.
        # A sticky folder does not help: anybody could have made the store in it.
        if above.st_uid not in (0, owner) or above.st_mode & _SHARED_WRITE:
            return trusted
    return trusted | {owner}


def _read_all(descriptor: int, size_bytes: int) -> bytes:
    """Return a file's bytes. Raise Refused unless there are as many as its status said."""
    try:
        content = os.pread(descriptor, size_bytes + 1, 0)
    except OSError as error:
        raise Refused(f"cannot read a file of the store: {error}") from error
    if len(content) != size_bytes:
        raise Refused("a file changed while it was read")
    return content


# Its entries.


@dataclass
class Entry:
    """An open artifact of the store, which fits the call. Close it.

    It has what loading needs of an `Artifact`. Its header has no imports and exports.
    """

    folder: str
    """Where it was found; only to show."""
    header: Any
    requested_settings: Mapping[str, str]
    status: os.stat_result
    file: int
    trusted_keys: TrustedKeys = field(default_factory=TrustedKeys)
    """Empty: the store verifies the header, not what loads it."""
    content: builtins.bytes | None = None
    """What was checked of a file that may change without a trace: load this."""

    @property
    def path(self) -> Path:
        """Where its artifact was found; only to show."""
        return Path(self.folder, shared.ARTIFACT)

    @property
    def descriptor(self) -> int | None:
        """What the engine may map; None where it has to copy `bytes`."""
        return self.file if self.content is None else None

    @property
    def bytes(self) -> builtins.bytes:
        """The artifact's bytes. Raise Refused."""
        if self.content is not None:
            return self.content
        return _read_all(self.file, self.status.st_size)

    def check_unchanged(self) -> None:
        """Raise Refused when the file that is mapped was written to since it was opened."""
        if self.content is None and identity(os.fstat(self.file)) != identity(self.status):
            raise Refused("the file changed while it was loaded")

    def close(self) -> None:
        """Close the file. A module that was loaded keeps what it has mapped."""
        os.close(self.file)


def _entry(
    folders: _Folders, header: Any, settings: Mapping[str, str], named: HostFile | None = None
) -> Entry:
    """Open the artifact in the innermost folder: the file that a daemon `named`, where one did."""
    status = folders.file(shared.ARTIFACT)
    if not status.st_size == header.size_bytes > 0:
        raise Refused("the artifact does not have the size that its header says")
    if named is not None and (status.st_dev, status.st_ino) != (named.device, named.inode):
        raise Refused("the path leads to another file here than the daemon's")
    return Entry(folders.path, header, settings, status, folders.take())


def parse_header(text: bytes) -> Any:
    """Return what loading needs of the ArtifactHeader in artifact.json. Raise Refused.

    A message of protobuf would take a tenth of the time in which an engine maps the artifact.
    """
    try:
        document: dict[str, Any] = json.loads(text)
        engine, as_text = document["engine"], attestation.as_text
        return SimpleNamespace(
            size_bytes=int(as_text(document["size_bytes"])),
            kind=_KINDS[document["kind"]],
            engine=SimpleNamespace(**{n: as_text(engine.get(n, "")) for n in _ENGINE_TEXTS}),
            attestation=binascii.a2b_base64(document.get("attestation", "")),
            is_fast=document.get("is_fast") is True,
            **{name: as_text(document.get(name, "")) for name in _TEXTS},
            settings=attestation.as_texts(document.get("settings", {})),
            changed_settings=attestation.as_texts(document.get("changed_settings", {})),
        )
    except UNREADABLE as error:
        raise Refused("cannot read the header of an entry") from error


class HostStore:
    """The host store of this machine. Safe for many threads at once.

    It may appear, or be removed, while the client runs. `check_files` and `trusted_keys` are the
    client's.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        namespace: str,
        check_files: CheckFiles | None,
        trusted_keys: TrustedKeys,
    ) -> None:
        """Without `check_files` it is "once" with trusted keys, else "owner". Raise ValueError."""
        self._policy: CheckFiles = check_files or ("once" if trusted_keys else "owner")
        self._trusted_keys = trusted_keys
        if self._policy not in get_args(CheckFiles):
            raise ValueError(
                f"check_files is 'always', 'once', 'owner' or None, not {check_files!r}"
            )
        # What follows takes longer than a load, or a tenth of one: so not within the first call,
        # which has a deadline. Without the package, that call says so.
        if trusted_keys and self._policy != "owner":
            with suppress(ImportError):
                import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
        self._candidates = [
            str(shared.namespace_path(each, namespace))
            for each in candidates(directory, os.environ)
        ]
        self._engines: tuple[tuple[int, ...], Engines] | None = None
        with suppress(Refused), closing(self._found()) as folders:
            self._read_engines(folders)

    @property
    def is_off(self) -> bool:
        """Whether the client is to use no host store at all, not even files that a daemon names."""
        return not self._candidates

    def open(self, call: Call, fits: Fits, *, fast: bool = False) -> Entry:
        """Open the entry for a call, without calling anybody. Raise Refused.

        `fits` says whether this process can load artifacts of an engine's name and version. With
        `fast`, open what the engine's fast compiler made, for a call that names no compiler.
        """
        settings = dict(call.settings)
        with closing(self._found()) as folders:
            engines = self._read_engines(folders)
            if key := call.compatibility_key.hex():
                return self._entry_for(folders, call, engines.fingerprint_of(key))
            row = engines.choose(call.engine, KINDS[call.kind] if call.kind else "", fits)
            if fast:
                name, value = shared.FAST_SETTINGS.get(row["name"], ("", ""))
                if not name or name in settings:
                    raise Refused("the call names its compiler, or the engine has one only")
                settings[name] = value
            digest = engines.fingerprint(row, call.target, call.cpu, settings)
            return self._entry_for(folders, call, digest)

    def _entry_for(self, folders: _Folders, call: Call, digest: str) -> Entry:
        folders.enter(digest, call.module_sha256)
        header = parse_header(folders.read(shared.HEADER, _MAX_HEADER_BYTES)[1])
        try:
            _header_fields.check(call, header)
        except ArtifactMismatch as error:
            raise Refused(f"the entry is about something else: {error}") from error
        if header.fingerprint != digest:
            raise Refused("the entry is about another fingerprint")
        return _entry(folders, header, call.settings)

    def engine_id(self, engine: str, fits: Fits) -> str:
        """Return what to ask the daemon for instead of an engine's name.

        It is the id of the newest version that fits, where engines.json says that a newer one
        is served which does not; otherwise the name itself.
        """
        with suppress(Refused):
            if self._engines is not None:
                known = self._engines[1]
                fitting = known.choose(engine, "", fits)
                if known.choose(engine, "") is not fitting:
                    return str(fitting["id"])
        return engine

    def open_answered(self, call: Call, header: ArtifactHeader) -> Entry:
        """Open the file that a daemon's answer names. Raise Refused.

        The header has been compared with the call. The file has to be where the store's layout
        puts this artifact, and to have the device and the inode that the daemon sees: a process
        in another mount namespace may find another file under this path.
        """
        named, path = header.host_file, Path(header.host_file.path)
        directory = path.parents[3] if len(path.parts) > 5 else path
        folder = shared.entry_path(directory, header.fingerprint, header.module_sha256)
        if not path.is_absolute() or ".." in path.parts or path != folder / shared.ARTIFACT:
            raise Refused("the path is not one of a host store")
        with closing(_Folders(str(directory))) as folders:
            folders.enter(header.fingerprint, header.module_sha256)
            return _entry(folders, header, call.settings, named)

    def check(self, entry: Entry) -> None:
        """Check what is going to be loaded, as the policy says. Raise Refused."""
        if self._policy == "owner":
            return
        try:
            if is_racy(entry.status):
                entry.content = entry.bytes
                digest = hashlib.sha256(entry.content).hexdigest()
            else:
                again = self._policy == "always"
                digest, _ = file_digest(entry.file, entry.status, again=again)
            if digest != entry.header.artifact_sha256:
                raise Refused("the file's bytes are not those of its header")
            if self._trusted_keys:
                verify_header(entry.header, self._trusted_keys)
        except (OSError, AttestationInvalid) as error:
            raise Refused(f"cannot read a file of the store, or trust it: {error}") from error

    def _found(self) -> _Folders:
        """Return the store's own folder, opened. Raise Refused."""
        why = Refused("this client uses no host store")
        for directory in self._candidates:
            try:
                return _Folders(directory)
            except Refused as error:
                why = error
        raise why

    def _read_engines(self, folders: _Folders) -> Engines:
        known = self._engines
        key, text = folders.read(shared.ENGINES, _MAX_ENGINES_BYTES, known[0] if known else None)
        if known is None or known[0] != key:
            self._engines = known = key, Engines.parse(text)
        return known[1]
