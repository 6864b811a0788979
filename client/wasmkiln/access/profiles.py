"""The file with profiles: each names a daemon and the way to reach it.

[profile.prod]
address = "kiln.example.org:50051"
ca_file = "kiln-ca.pem"            # paths begin in the file's folder
token_file = "~/.config/wasmkiln/prod.token"
namespace = "team-a"
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wasmkiln._untrusted import quoted
from wasmkiln.access.files import read_small
from wasmkiln.access.tls import TLS

ENV_FILE = "WASMKILN_PROFILES_FILE"

_PATHS = ("ca_file", "cert_file", "key_file")
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "address": str,
    "tls": bool,
    **dict.fromkeys(_PATHS, str),
    "server_name": str,
    "token_file": str,
    "token_over_plaintext": bool,
    "trusted_keys": (str, list),
    "namespace": str,
}


@dataclass(frozen=True)
class Profile:
    """A daemon and the way to reach it."""

    name: str
    address: str
    tls: TLS | None = None
    token: str = field(default="", repr=False)
    """Only the environment has one; a file with profiles names a file."""
    token_file: str = ""
    token_over_plaintext: bool = False
    trusted_keys: tuple[str, ...] = ()
    namespace: str = ""


def profiles_file() -> Path:
    """Return the path of the profiles: WASMKILN_PROFILES_FILE, else in the user's configuration."""
    if named := os.environ.get(ENV_FILE):
        return Path(named).expanduser()
    home = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not home.is_absolute():  # the XDG specification says to ignore a relative path
        home = Path("~/.config").expanduser()
    return home / "wasmkiln" / "profiles.toml"


def read_profile(name: str) -> Profile:
    """Return a profile. Raise ValueError where there is none, or it is wrong, and OSError."""
    path = profiles_file()
    found = _read(path)
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{path} has no [profile.{quoted(name)}]: it has {quoted(known)}")
    try:
        return _profile(name, found[name], path.parent)
    except ValueError as error:
        raise ValueError(f"cannot use profile {quoted(name)} of {path}: {error}") from None


def read_profiles() -> list[Profile]:
    """Return all profiles, by name. Raise ValueError where one is wrong, and OSError."""
    return [read_profile(name) for name in sorted(_read(profiles_file()))]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:
        raise ValueError("profiles need Python 3.11 or newer") from None
    try:
        document = tomllib.loads(read_small(str(path)).decode())
    except FileNotFoundError:
        raise ValueError(
            f"there are no profiles: {path} does not exist; write it as"
            f" docs/how-to/call-with-credentials.md says, or set {ENV_FILE}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: it is not TOML: {quoted(str(error))}") from None
    profiles = document.pop("profile", {})
    if document or not isinstance(profiles, dict):
        other = next(iter(document), "profile")
        raise ValueError(f"cannot use {path}: expected tables [profile.NAME], not {quoted(other)}")
    return profiles


def _profile(name: str, table: Any, folder: Path) -> Profile:
    if not isinstance(table, dict):
        raise ValueError("expected a table")
    if "token" in table:
        raise ValueError("put the token into a file of its own, and name that as token_file")
    for key, value in table.items():
        if key not in _KINDS:
            raise ValueError(f"unknown key {quoted(key)}: it may have {', '.join(_KINDS)}")
        if not isinstance(value, _KINDS[key]):
            raise ValueError(f"{key} has the wrong type")
    if not table.get("address"):
        raise ValueError("address is missing")
    paths = {key: _path(folder, table[key]) for key in _PATHS if table.get(key)}
    server_name = table.get("server_name", "")
    wanted = table.get("tls", bool(paths or server_name))
    if not wanted and (paths or server_name):
        raise ValueError("tls is false, and there are files or a name for it: leave out either")
    keys = table.get("trusted_keys", [])
    keys = [keys] if isinstance(keys, str) else keys
    if not all(isinstance(key, str) for key in keys):
        raise ValueError("trusted_keys has the wrong type")
    return Profile(
        name,
        table["address"],
        tls=TLS(server_name=server_name, **paths) if wanted else None,
        token_file=_path(folder, table["token_file"]) if table.get("token_file") else "",
        token_over_plaintext=table.get("token_over_plaintext", False),
        trusted_keys=tuple(_key(folder, key) for key in keys),
        namespace=table.get("namespace", ""),
    )


def _path(folder: Path, text: str) -> str:
    return str(folder / Path(text).expanduser())


def _key(folder: Path, text: str) -> str:
    """Return the path of a key's file or folder beside the profiles, or the key as it is."""
    beside = _path(folder, text)
    return beside if "\n" not in text and Path(beside).exists() else text
