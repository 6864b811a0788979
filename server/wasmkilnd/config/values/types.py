"""The types of settings: how each is read, and the message for a value that is not allowed."""

from __future__ import annotations

import grp
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic.config import JsonDict

from wasmkilnd.config.values.address import Address
from wasmkilnd.config.values.quantity import parse_bytes, parse_count, parse_ratio, parse_seconds
from wasmkilnd.config.values.redis_url import RedisUrl, parse_redis_url

NO_ADMIN: Final = "none"
"""The value of admin_listen that switches the admin server off."""
NO_DIRECTORY: Final = "none"
"""The value of host_store_dir that switches the host store off."""
AUTO: Final = "auto"
"""The value of a size that the daemon chooses by the machine."""

MIB, GIB = 2**20, 2**30
DAY_S = 86400
_YEARS_S = 10 * 366 * DAY_S
_MAX_SIZE = 2**50
_ENGINE_ID = re.compile(r"[a-z]+-[0-9][0-9A-Za-z.+!-]{0,63}")

LIVE: Final[JsonDict] = {"live": True}
"""Marks a setting that a running daemon takes over at a reload; others need a restart."""


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return the state directory of this user. Raises RuntimeError where the user has no home."""
    # The XDG specification says to ignore a relative path.
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if state_home.is_absolute():
        return state_home / "wasmkiln"
    home = Path(environ.get("HOME", ""))
    return (home if home.is_absolute() else Path.home()) / ".local" / "state" / "wasmkiln"


def _addresses(value: object) -> object:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError("expected addresses: host:port, [v6]:port or unix:/path")
    texts = [part for each in value for part in each.split(",")]
    if not any(text.strip() for text in texts):
        raise ValueError("expected at least one address: host:port, [v6]:port or unix:/path")
    addresses = [Address.parse(text) for text in texts]
    for index, address in enumerate(addresses):
        if any(address.overlaps(other) for other in addresses[:index]):
            raise ValueError(f"{address} is listed twice, or another address of the list covers it")
    return tuple(str(address) for address in addresses)


def _optional_addresses(value: object) -> object:
    empty = value in ("", (), []) or (isinstance(value, str) and not value.strip())
    return () if empty else _addresses(value)


def _socket_mode(value: object) -> object:
    mode = -1
    if isinstance(value, int) and not isinstance(value, bool):
        mode = value
    elif isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{1,4}", value.strip()):
        mode = int(value.strip().removeprefix("0o"), 8)
    if mode < 0 or mode & ~0o666 or mode & 0o600 != 0o600:
        raise ValueError(
            f"{value!r} is not allowed: write a mode in octal that lets the daemon's user read and"
            " write, such as 0600, 0660 or 0666"
        )
    return f"{mode:04o}"


def _admin_address(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("expected an address or 'none'")
    return NO_ADMIN if value.strip() == NO_ADMIN else str(Address.parse(value))


def expanded(path: str | Path) -> Path:
    """Return ``path`` with a home for its tilde. Raises ValueError where that user has none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{str(path)!r} names the home of an unknown user") from None


def _directory(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value).strip() or "\0" in str(value):
        raise ValueError("expected the path of a directory")
    return expanded(value).absolute()


def _directory_or_none(value: object) -> object:
    # A string: an empty Path would be the working directory.
    return "" if value == "" else str(_directory(value))


def _store_directory(value: object) -> object:
    if isinstance(value, str) and value.strip() == NO_DIRECTORY:
        return NO_DIRECTORY
    return _directory_or_none(value)


def _file_or_none(value: object) -> object:
    if not isinstance(value, str | Path) or "\0" in str(value):
        raise ValueError("expected the path of a file")
    return str(expanded(value).absolute()) if str(value).strip() else ""


def _one_word(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value.strip()


def _word_or_path(value: object) -> object:
    word = _one_word(value)
    return str(expanded(word)) if isinstance(word, str) and word.startswith("~") else word


def _secret(value: object) -> object:
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value.strip()


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError("expected strings, separated by commas")
    return tuple(part.strip() for each in value for part in each.split(",") if part.strip())


def _words_or_paths(value: object) -> tuple[object, ...]:
    return tuple(_word_or_path(text) for text in _texts(value))


def _size_or_auto(value: object) -> object:
    if isinstance(value, str) and value.strip().lower() == AUTO:
        return AUTO
    size_bytes = parse_bytes(value)
    if size_bytes > _MAX_SIZE:
        raise ValueError(f"{value!r} is too large a size")
    return size_bytes


def _file_mode(value: object) -> object:
    # TOML has octal numbers; elsewhere a mode is a text of octal digits.
    mode = -1
    if isinstance(value, int) and not isinstance(value, bool):
        mode = value
    elif isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{1,4}", value.strip()):
        mode = int(value.strip().removeprefix("0o"), 8)
    if mode < 0 or mode & ~0o644 or not mode & 0o400:
        raise ValueError(
            f"{value!r} is not allowed: write a mode in octal that lets the daemon's user read and"
            " nobody else write, such as 0600, 0640 or 0644"
        )
    return f"{mode:04o}"


def _group(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("expected the name or number of a group")
    group = value.strip()
    if group and not group.isdecimal():
        try:
            grp.getgrnam(group)
        except KeyError:
            raise ValueError(f"{value!r} is not a group of this machine") from None
    return group


def _prefix(value: object) -> object:
    # Braces would change the cluster slot of keys, and glob characters what an eviction finds.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:/-]{1,64}", value):
        raise ValueError(
            f"{value!r} is not allowed: write 1 to 64 letters, digits or any of _ . : / -"
        )
    return value


def _engine(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"([a-z][a-z0-9.+_-]{0,63})?", value.strip()):
        raise ValueError(
            f"{value!r} is not an engine: write a name such as wasmtime or wasmer-1.1.0"
        )
    return value.strip()


def _aliases(value: object) -> object:
    if isinstance(value, Mapping):  # a table of TOML
        value = tuple(f"{name}={each}" for name, each in value.items())
    found: dict[str, str] = {}
    for text in _texts(value):
        name, _, engine_id = (part.strip() for part in text.partition("="))
        if name == "default":
            raise ValueError("'default' is no alias: default_engine says what it stands for")
        # Clients refuse an answer with an engine of another name than they asked for.
        if not _ENGINE_ID.fullmatch(engine_id) or engine_id.partition("-")[0] != name:
            raise ValueError(
                f"{text!r} is not an alias: write an engine's name and the id of one of its"
                " versions, such as wasmtime=wasmtime-50.0.1"
            )
        if name in found:
            raise ValueError(f"{name!r} cannot stand for two engines")
        found[name] = engine_id
    return tuple(f"{name}={engine_id}" for name, engine_id in sorted(found.items()))


def _word(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = _word(value)
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"{value!r} is not a switch: write true or false")


Size = Annotated[int, BeforeValidator(parse_bytes), Field(le=_MAX_SIZE)]
SizeOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_size_or_auto)]
FileMode = Annotated[str, BeforeValidator(_file_mode)]
"""Four octal digits."""
SocketMode = Annotated[str, BeforeValidator(_socket_mode)]
"""Four octal digits."""
Group = Annotated[str, BeforeValidator(_group)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(le=_YEARS_S)]
WholeSeconds = Annotated[int, BeforeValidator(parse_seconds), Field(le=_YEARS_S)]
Count = Annotated[int, BeforeValidator(parse_count)]
Ratio = Annotated[float, BeforeValidator(parse_ratio)]
Switch = Annotated[bool, BeforeValidator(_boolean)]
Addresses = Annotated[tuple[str, ...], BeforeValidator(_addresses)]
OptionalAddresses = Annotated[tuple[str, ...], BeforeValidator(_optional_addresses)]
AdminAddress = Annotated[str, BeforeValidator(_admin_address)]
RedisLocation = Annotated[RedisUrl, BeforeValidator(parse_redis_url)]
Directory = Annotated[Path, BeforeValidator(_directory)]
OptionalDirectory = Annotated[str, BeforeValidator(_directory_or_none)]
StoreDirectory = Annotated[str, BeforeValidator(_store_directory)]
"""A directory, empty for the default, or NO_DIRECTORY."""
OptionalFile = Annotated[str, BeforeValidator(_file_or_none)]
Secret = Annotated[SecretStr, BeforeValidator(_secret)]
Text = Annotated[str, BeforeValidator(_one_word)]
TextOrPath = Annotated[str, BeforeValidator(_word_or_path)]
"""A word, or the path of a file."""
TextsOrPaths = Annotated[tuple[str, ...], BeforeValidator(_words_or_paths)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
KeyPrefix = Annotated[str, BeforeValidator(_prefix)]
EngineAliases = Annotated[tuple[str, ...], BeforeValidator(_aliases)]
"""Texts NAME=ID, sorted; in TOML also a table."""
EngineName = Annotated[str, BeforeValidator(_engine)]
LowerCase = BeforeValidator(_word)
"""Lets a choice be written in capitals."""
