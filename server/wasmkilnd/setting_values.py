"""How one value of a setting is read, checked and written again.

Each reader takes what a flag, a variable or a TOML file can hold, and raises ValueError with a
sentence that says what is allowed. ``settings_loader`` puts the setting's name and the source of
the value in front of that sentence. The annotated types at the end are those of ``settings``.
"""

from __future__ import annotations

import grp
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, SecretStr

from wasmkilnd.redis_address import SCHEMES, RedisAddress

NONE: Final = "none"
"""The value that switches the admin server, the host store or the Redis tier off."""
EMBEDDED: Final = ""
"""The value of redis_url that asks for the embedded server."""
AUTO: Final = "auto"
"""The value of a size that the daemon chooses by the machine."""
MIB, GIB, DAY_S = 2**20, 2**30, 86400
_MAX_SIZE, _YEARS_S = 2**50, 10 * 366 * DAY_S


# Sizes, durations and numbers as people write them: ``256MiB``, ``500ms``, ``7d``.

_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)")
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": MIB, "gib": GIB}
_SECONDS: Mapping[str, int | Fraction] = {
    "ms": Fraction(1, 1000),
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": DAY_S,
}


def parse_bytes(value: object) -> int:
    """Return a size in bytes from an integer or a text such as ``64MiB``. Raises ValueError."""
    what = "a size: write bytes as in 268435456, or a suffix as in 256MiB or 1GB"
    return int(_number(value, what, _BYTES, whole=True))


def parse_seconds(value: object) -> float:
    """Return a duration from a number or a text such as ``500ms``. Raises ValueError."""
    what = "a duration: write seconds as in 30 or 0.5, or a suffix as in 500ms, 5m or 7d"
    return float(_number(value, what, _SECONDS))


def parse_count(value: object) -> int:
    """Return a whole number from an integer or its digits. Raises ValueError."""
    return int(_number(value, "a whole number: write digits only", {}, whole=True))


def _number(
    value: object, what: str, units: Mapping[str, int | Fraction], *, whole: bool = False
) -> Fraction:
    number = None
    # bool is an int to Python, but `workers = true` is a mistake. Not a number, and infinity.
    if isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0:
        number = Fraction(value)
    elif isinstance(value, str) and (match := _NUMBER_AND_UNIT.fullmatch(value.strip())):
        # "m" means minutes only, so the case of a duration's unit counts; that of a size does not.
        unit = match[2].lower() if units is _BYTES else match[2]
        if factor := units.get(unit) if unit else 1:
            number = Fraction(match[1]) * factor
    if number is None or number < 0 or (whole and number.denominator != 1):
        text = repr(value)
        raise ValueError(f"{text if len(text) <= 60 else f'{text[:57]}...'} is not {what}")
    return number


def written(field: str, value: object) -> object:
    """Return a setting's value as a person writes it: the field's name says the unit."""
    units = {"d": DAY_S, "h": 3600, "m": 60} if field.endswith("_s") else {}
    units = {"GiB": GIB, "MiB": MIB, "KiB": 1024} if field.endswith("_bytes") else units
    if not units or not isinstance(value, int | float):
        return value
    for unit, factor in units.items():
        if value and value % factor == 0:
            return f"{int(value // factor)}{unit}"
    return int(value) if value == int(value) else value


# Where to listen: ``host:port``, ``[v6]:port`` or ``unix:/path``.

_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_SUN_PATH_BYTES = 107
"""The longest path of a Unix socket on Linux: unix(7), 108 with the final zero."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on. ``path`` is set for a Unix socket, else ``host`` and ``port``."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address as a person writes it. Raises ValueError with what is allowed."""
        text = text.strip()
        if text.startswith("unix:"):
            return cls(path=_unix_path(text))
        host, colon, port = text.rpartition(":")
        if not colon:
            raise ValueError(
                f"{text!r} is not an address: write host:port, [v6]:port or unix:/path"
            )
        if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError(f"{text!r} has no port from 0 to 65535 after its last colon")
        return cls(_host(host, text), int(port))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it. Asks no name server."""
        ip = _ip(self.host)
        return bool(self.path or self.host.lower() == "localhost" or (ip and ip.is_loopback))

    @property
    def listeners(self) -> int:
        """How many sockets may listen there: a host name may stand for IPv4 and IPv6."""
        return 1 if self.path or _ip(self.host) else 2


def _unix_path(text: str) -> str:
    path = text.removeprefix("unix:")
    if path.startswith("///"):  # the URL form of the same: unix:///path
        path = path.removeprefix("//")
    if not path.startswith("/") or path.startswith("//") or "\0" in path:
        raise ValueError(f"{text!r} has no absolute path: write unix:/path")
    if len(path.encode(errors="surrogateescape")) > _SUN_PATH_BYTES:
        raise ValueError(f"{text!r} is longer than the {_SUN_PATH_BYTES} bytes of a socket's path")
    return path


def _host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        ip = _ip(host[1:-1])
        if ip is None or ip.version != 6:
            raise ValueError(f"{text!r} has no IPv6 address between its brackets")
        return str(ip)
    if ":" in host:
        raise ValueError(f"{text!r} is ambiguous: write an IPv6 address in brackets, [v6]:port")
    if host in ("", "*"):
        raise ValueError(f"{text!r} has no host: write 0.0.0.0 or [::] for every interface")
    # A name without a letter is a mistyped IPv4 address.
    if not _ip(host) and (not _HOST_NAME.fullmatch(host) or re.fullmatch(r"[0-9.]+", host)):
        raise ValueError(f"{text!r} has neither an IP address nor a host name before its port")
    return host


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _addresses(value: object) -> tuple[str, ...]:
    what = "at least one address: host:port, [v6]:port or unix:/path"
    if not any(parts := _parts(value, what)):
        raise ValueError(f"expected {what}")
    return tuple(str(Address.parse(part)) for part in parts)


def _optional_addresses(value: object) -> tuple[str, ...]:
    empty = value in ((), []) or (isinstance(value, str) and not value.strip())
    return () if empty else _addresses(value)


def _admin_address(value: object) -> str:
    text = parse_text(value)
    return text if text == NONE else str(Address.parse(text))


# Redis, whose URL may hold a password.


class RedisUrl(SecretStr):
    """A Redis URL; its text and repr hide user and password."""

    def _display(self) -> str:
        return mask(self.get_secret_value())


def mask(url: str) -> str:
    """Return ``url`` with ``***`` for user and password, and for its options."""
    # Up to the last "@": a password may hold "/", "@" and "?" that were not percent-encoded.
    url = re.sub(r"://.*@", "://***:***@", url, flags=re.DOTALL)
    return re.sub(r"\?.+", "?***", url, flags=re.DOTALL)


def parse_redis_url(value: object) -> str:
    """Return the URL, or the word in its place. Raises ValueError, which holds no secret."""
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(value, str):
        raise ValueError(
            f"expected a string: a URL ({SCHEMES}), 'none' for memory only, '' for the embedded"
            " server"
        )
    if (url := value.strip()) not in (EMBEDDED, NONE):
        RedisAddress.parse(url)
    return url


# Paths and words.


def parse_toml(text: str) -> dict[str, Any]:
    """Return the content of ``text``. Raises ValueError with a sentence for people."""
    try:
        content = tomllib.loads(text)
        if _holds_a_large_number(content):
            raise ValueError
    except (tomllib.TOMLDecodeError, RecursionError) as mistake:
        raise ValueError(f"not valid TOML: {mistake}") from None
    except ValueError:  # the library's own, of thousands of digits, gives advice on Python
        raise ValueError("not valid TOML: a number does not fit into 64 bits") from None
    return content


def _holds_a_large_number(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_a_large_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def expanded(path: str | Path) -> Path:
    """Return ``path`` with a home for its tilde. Raises ValueError where that user has none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{str(path)!r} names the home of an unknown user") from None


def _path(value: object) -> str:
    # A string: an empty Path would be the working directory.
    if not isinstance(value, str | Path) or "\0" in str(value):
        raise ValueError("expected a path")
    return str(expanded(value).absolute()) if str(value).strip() else ""


def _directory(value: object) -> Path:
    if not (path := _path(value)):
        raise ValueError("expected the path of a directory")
    return Path(path)


def _store_directory(value: object) -> str:
    return NONE if isinstance(value, str) and value.strip() == NONE else _path(value)


def parse_text(value: object) -> str:
    """Return a text without the blanks around it, also a secret one. Raises ValueError."""
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value.strip()


def _text_or_path(value: object) -> str:
    text = parse_text(value)
    return str(expanded(text)) if text.startswith("~") else text


def _parts(value: object, what: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
        raise ValueError(f"expected {what}")
    return [part.strip() for each in texts for part in each.split(",")]


def _texts(value: object) -> tuple[str, ...]:
    return tuple(filter(None, _parts(value, "strings, separated by commas")))


def _texts_or_paths(value: object) -> tuple[str, ...]:
    return tuple(map(_text_or_path, _texts(value)))


def _size_or_auto(value: object) -> int | str:
    if isinstance(value, str) and value.strip().lower() == AUTO:
        return AUTO
    if (size_bytes := parse_bytes(value)) > _MAX_SIZE:
        raise ValueError(f"{value!r} is too large a size")
    return size_bytes


def _group(value: object) -> str:
    if (group := parse_text(value)) and not group.isdecimal():
        try:
            grp.getgrnam(group)
        except KeyError:
            raise ValueError(f"{value!r} is not a group of this machine") from None
    return group


def _prefix(value: object) -> str:
    # Braces would change the cluster slot of keys, and glob characters what an eviction finds.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:/-]{1,64}", value):
        raise ValueError(
            f"{value!r} is not allowed: write 1 to 64 letters, digits or any of _ . : / -"
        )
    return value


def _engine(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"([a-z][a-z0-9.+_-]{0,63})?", value.strip()):
        raise ValueError(
            f"{value!r} is not an engine: write a name such as wasmtime or wasmer-1.1.0"
        )
    return value.strip()


def _aliases(value: object) -> tuple[str, ...]:
    if isinstance(value, Mapping):  # a table of TOML
        value = tuple(f"{name}={each}" for name, each in value.items())
    found: dict[str, str] = {}
    for text in _texts(value):
        name = text.partition("=")[0].strip()
        if name == "default":
            raise ValueError("'default' is no alias: default_engine says what it stands for")
        # Clients refuse an answer with an engine of another name than they asked for.
        if not (match := re.fullmatch(r"([a-z]+) *= *(\1-[0-9][0-9A-Za-z.+!-]{0,63})", text)):
            raise ValueError(
                f"{text!r} is not an alias: write an engine's name and the id of one of its"
                " versions, such as wasmtime=wasmtime-50.0.1"
            )
        if name in found:
            raise ValueError(f"{name!r} cannot stand for two engines")
        found[name] = match[2]
    return tuple(f"{name}={engine_id}" for name, engine_id in sorted(found.items()))


def _word(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _switch(value: object) -> bool:
    for meant, words in ((True, ("true", "1", "yes", "on")), (False, ("false", "0", "no", "off"))):
        if value is meant or (isinstance(value, str) and _word(value) in words):
            return meant
    raise ValueError(f"{value!r} is not a switch: write true or false")


Size = Annotated[int, BeforeValidator(parse_bytes), Field(le=_MAX_SIZE)]
SizeOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_size_or_auto)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(le=_YEARS_S)]
WholeSeconds = Annotated[int, BeforeValidator(parse_seconds), Field(le=_YEARS_S)]
Count = Annotated[int, BeforeValidator(parse_count)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Addresses = Annotated[tuple[str, ...], BeforeValidator(_addresses)]
OptionalAddresses = Annotated[tuple[str, ...], BeforeValidator(_optional_addresses)]
AdminAddress = Annotated[str, BeforeValidator(_admin_address)]
RedisLocation = Annotated[RedisUrl, BeforeValidator(parse_redis_url)]
Directory = Annotated[Path, BeforeValidator(_directory)]
StoreDirectory = Annotated[str, BeforeValidator(_store_directory)]
"""A directory, empty for the default, or NONE."""
OptionalPath = Annotated[str, BeforeValidator(_path)]
Secret = Annotated[SecretStr, BeforeValidator(parse_text)]
Text = Annotated[str, BeforeValidator(parse_text)]
TextOrPath = Annotated[str, BeforeValidator(_text_or_path)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
TextsOrPaths = Annotated[tuple[str, ...], BeforeValidator(_texts_or_paths)]
Group = Annotated[str, BeforeValidator(_group)]
KeyPrefix = Annotated[str, BeforeValidator(_prefix)]
EngineAliases = Annotated[tuple[str, ...], BeforeValidator(_aliases)]
"""Texts NAME=ID, sorted; in TOML also a table."""
EngineName = Annotated[str, BeforeValidator(_engine)]
LowerCase = BeforeValidator(_word)
"""Lets a choice be written in capitals."""
