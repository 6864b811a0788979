"""The settings of the daemon: the only place that names, types, explains and defaults them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from wasmkilnd.config.address import Address
from wasmkilnd.config.machine import cpu_count, memory_bytes
from wasmkilnd.config.quantity import parse_bytes, parse_count, parse_seconds
from wasmkilnd.config.redis_url import RedisUrl, parse_redis_url, redis_conflict

ENV_PREFIX: Final = "WASMKILN_"
NO_ADMIN: Final = "none"
"""The value of admin_listen that switches the page off."""

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
_DAY_S = 86400
_YEARS_S = 10 * 366 * _DAY_S
_MAX_SIZE = 2**50

_LIVE: Final[JsonDict] = {"live": True}
"""Of a setting that a running daemon takes over when it reloads; the others need a restart."""


def env_name(field: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + field.upper()


def flag_name(field: str) -> str:
    """Return the command line flag of a setting."""
    return "--" + field.replace("_", "-")


def has_flag(field: str) -> bool:
    """Whether a setting has a command line flag: a secret has none, everybody could read it."""
    return Settings.model_fields[field].annotation is not SecretStr


def is_live(field: str) -> bool:
    """Whether a running daemon takes the setting over when it reloads."""
    extra = Settings.model_fields[field].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("live"))


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return the user's state home. Raises RuntimeError where the user has no home."""
    # The XDG specification says that a relative path is to be passed over.
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if state_home.is_absolute():
        return state_home / "wasmkiln"
    home = Path(environ.get("HOME", ""))
    return (home if home.is_absolute() else Path.home()) / ".local" / "state" / "wasmkiln"


def _addresses(value: object) -> object:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError("it takes addresses: host:port, [v6]:port or unix:/path")
    texts = [part for each in value for part in each.split(",")]
    if not any(text.strip() for text in texts):
        raise ValueError("it takes at least one address: host:port, [v6]:port or unix:/path")
    addresses = [Address.parse(text) for text in texts]
    for index, address in enumerate(addresses):
        if any(address.overlaps(other) for other in addresses[:index]):
            raise ValueError(f"{address} is there twice, or within another address of the list")
    return tuple(str(address) for address in addresses)


def _admin_address(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("it takes an address or 'none'")
    return NO_ADMIN if value.strip() == NO_ADMIN else str(Address.parse(value))


def _directory(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value).strip() or "\0" in str(value):
        raise ValueError("it takes the path of a directory")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{str(value)!r} names a home directory that is not known") from None


def _directory_or_none(value: object) -> object:
    # A text: an empty path would be the working directory.
    return "" if value == "" else str(_directory(value))


def _file_or_none(value: object) -> object:
    if not isinstance(value, str | Path) or "\0" in str(value):
        raise ValueError("it takes the path of a file")
    return str(Path(value).expanduser().absolute()) if str(value).strip() else ""


def _one_word(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("it takes a text")
    return value.strip()


def _secret(value: object) -> object:
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(value, str):
        raise ValueError("it takes a text")
    return value.strip()


def _texts(value: object) -> object:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError("it takes texts, separated by commas")
    return tuple(part.strip() for each in value for part in each.split(",") if part.strip())


def _prefix(value: object) -> object:
    # Braces would move the keys' cluster slot, and a glob's characters what an eviction finds.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:/-]{1,64}", value):
        raise ValueError(f"{value!r} is not 1 to 64 letters, digits or any of _ . : / -")
    return value


def _engine(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"([a-z][a-z0-9.+_-]{0,63})?", value.strip()):
        raise ValueError(f"{value!r} is not an engine, such as wasmtime or wasmer-1.1.0")
    return value.strip()


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
    raise ValueError(f"{value!r} is neither true nor false")


Size = Annotated[int, BeforeValidator(parse_bytes), Field(le=_MAX_SIZE)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(le=_YEARS_S)]
WholeSeconds = Annotated[int, BeforeValidator(parse_seconds), Field(le=_YEARS_S)]
Count = Annotated[int, BeforeValidator(parse_count)]


class Settings(BaseModel):
    """What the daemon runs with. Immutable; text and dumps hide secrets.

    Raises pydantic's ValidationError for an impossible value, without the value.
    Where 0 stands for "as the machine has it", the ``effective_`` property of the
    same name answers what is in force.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    listen: Annotated[tuple[str, ...], BeforeValidator(_addresses)] = Field(
        default=("127.0.0.1:50051",),
        description="Where gRPC is served: host:port, [v6]:port or unix:/path; several are"
        " separated by commas (the flag may also be repeated). Port 0 takes any free one.",
    )
    admin_listen: Annotated[str, BeforeValidator(_admin_address)] = Field(
        default="127.0.0.1:9464",
        description="Where /metrics, /healthz and /readyz are served over HTTP: one address as"
        " in listen, or none to switch them off.",
    )
    allow_remote: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=False,
        description="Permit addresses that other machines can reach. There is no TLS yet: who"
        " reaches such an address may use the daemon.",
    )
    state_dir: Annotated[Path, BeforeValidator(_directory)] = Field(
        default_factory=lambda: default_state_dir(os.environ),
        description="Where engines, keys and the embedded server's data live. Daemons that share"
        " it share those.",
        json_schema_extra={
            "shown_default": "$XDG_STATE_HOME/wasmkiln, else ~/.local/state/wasmkiln"
        },
    )
    keys_dir: Annotated[str, BeforeValidator(_directory_or_none)] = Field(
        default="",
        description="Where the signing key and the trusted keys are; empty for keys below the"
        " state directory. A fleet on one Redis may share it.",
        json_schema_extra=_LIVE,
    )
    signing_key: Annotated[SecretStr, BeforeValidator(_secret)] = Field(
        default=SecretStr(""),
        description="The Ed25519 private key that artifacts are signed with, instead of the one"
        " in keys_dir: PKCS #8 PEM, or base64 of its 32 bytes. `wasmkilnd keys generate --print`"
        " makes one.",
        json_schema_extra=_LIVE,
    )
    trusted_keys: Annotated[tuple[str, ...], BeforeValidator(_texts)] = Field(
        default=(),
        description="Public keys that are trusted beside those in keys_dir: hex, base64, or the"
        " path of a PEM file or of a folder of such; several are separated by commas.",
        json_schema_extra=_LIVE,
    )
    redis_url: Annotated[RedisUrl, BeforeValidator(parse_redis_url)] = Field(
        default=RedisUrl(""),
        description="The Redis tier: redis://, rediss:// (TLS) or unix:// for a server;"
        " redis+sentinel:// or rediss+sentinel://; redis+cluster:// or rediss+cluster://;"
        " https:// for Upstash's REST API; none for memory only; empty for the embedded server."
        " Where it is not set, UPSTASH_REDIS_URL or UPSTASH_REDIS_REST_URL is taken. Put a URL"
        " with a password into the environment or the file: others on the machine can read"
        " flags.",
    )
    redis_password: Annotated[SecretStr, BeforeValidator(_secret)] = Field(
        default=SecretStr(""),
        description="The password of the URL's user, or the token of an https:// URL, where the"
        " URL does not hold it. For an https:// URL, UPSTASH_REDIS_TOKEN or"
        " UPSTASH_REDIS_REST_TOKEN is taken where it is not set.",
        json_schema_extra=_LIVE,
    )
    redis_password_file: Annotated[str, BeforeValidator(_file_or_none)] = Field(
        default="",
        description="A file that holds the password or token instead. It is read again for"
        " each connection, so that it can change while the daemon runs.",
        json_schema_extra=_LIVE,
    )
    redis_ca_file: Annotated[str, BeforeValidator(_file_or_none)] = Field(
        default="",
        description="Certificates in PEM of the authorities that Redis's certificate is checked"
        " against; empty for the system's.",
        json_schema_extra=_LIVE,
    )
    redis_sentinel_user: Annotated[str, BeforeValidator(_one_word)] = Field(
        default="",
        description="The user to be at the Sentinels, where they ask for one: the URL's is that"
        " at the primary.",
        json_schema_extra=_LIVE,
    )
    redis_sentinel_password: Annotated[SecretStr, BeforeValidator(_secret)] = Field(
        default=SecretStr(""),
        description="The password at the Sentinels, where they ask for one.",
        json_schema_extra=_LIVE,
    )
    redis_timeout_s: Seconds = Field(
        default=1.0,
        gt=0,
        description="How long to wait for Redis to accept a connection, to answer, or to take a"
        " write. A call that meets a sick Redis waits about this long; those after it do not.",
    )
    redis_retry_max_s: Seconds = Field(
        default=10.0,
        gt=0,
        description="While Redis does not answer, it is asked whether it is back after 0.25 s, and"
        " then twice as long each time, up to this.",
    )
    redis_prefix: Annotated[str, BeforeValidator(_prefix)] = Field(
        default="wasm:", description="What every key in Redis begins with."
    )
    embedded_redis_bytes: Size = Field(
        default=_GIB,
        ge=4 * _MIB,
        description="Memory that the embedded server may fill; the least recently used entries"
        " then make room. The daemon that starts the server decides it, for all that share it.",
    )
    cache_ttl_s: WholeSeconds = Field(
        default=7 * _DAY_S, gt=0, description="How long an entry stays in Redis."
    )
    cache_ttl_refresh: Annotated[bool, BeforeValidator(_boolean)] = Field(
        default=False,
        description="Let an entry that is used stay for cache_ttl_s from then on, rather than"
        " from when it was stored.",
    )
    compile_lease_s: Seconds = Field(
        default=5.0,
        ge=0,
        description="Daemons on one Redis compile each artifact once: the others wait for it."
        " When the one that compiles dies, another takes over after this time. 0 lets each"
        " compile for itself.",
    )
    write_queue_bytes: Size = Field(
        default=0,
        ge=0,
        description="Bytes that may wait to be written to Redis; when they are more, the oldest"
        " artifacts, and then the oldest modules, are not written, which the log tells. 0 for"
        " max_module_bytes and max_artifact_bytes together, and 64 MiB at least. The newest module"
        " with its newest artifact waits whatever their sizes.",
        json_schema_extra=_LIVE,
    )
    memory_bytes: Size = Field(
        default=256 * _MIB,
        ge=0,
        description="Memory that the daemon's own tier may fill; 0 keeps nothing.",
        json_schema_extra=_LIVE,
    )
    max_module_bytes: Size = Field(
        default=5 * _MIB,
        gt=0,
        le=_GIB,
        description="The largest module that is accepted.",
        json_schema_extra=_LIVE,
    )
    max_artifact_bytes: Size = Field(
        default=256 * _MIB,
        gt=0,
        description="The largest artifact that is kept and sent.",
        json_schema_extra=_LIVE,
    )
    default_engine: Annotated[str, BeforeValidator(_engine)] = Field(
        default="",
        description="The engine of requests that name none: an id such as wasmtime-50.0.1, or a"
        " name for its newest installed version. Empty: wasmer where it is installed.",
    )
    workers: Count = Field(
        default=0,
        ge=0,
        le=1024,
        description="Compilations that run at once, for each engine; 0 for as many as there are"
        " CPUs.",
    )
    queue_length: Count = Field(
        default=256,
        gt=0,
        le=1_000_000,
        description="Calls that may wait for a worker, for each engine; more are refused.",
        json_schema_extra=_LIVE,
    )
    queue_bytes: Size = Field(
        default=256 * _MIB,
        gt=0,
        description="Modules that may wait for a worker, in bytes, for each engine; more are"
        " refused. All work under way may hold twice that.",
        json_schema_extra=_LIVE,
    )
    abandoned_compiles: Annotated[Literal["finish", "yield", "kill"], BeforeValidator(_word)] = (
        Field(
            default="finish",
            description="What becomes of a compilation that runs when its last caller has gone:"
            " finish it for the cache, let it yield to others that wait for its worker, or kill"
            " it. One that still waits is always dropped.",
            json_schema_extra=_LIVE,
        )
    )
    max_calls: Count = Field(
        default=2048,
        gt=0,
        le=1_000_000,
        description="Calls that may be under way, each waiting, receiving or being answered. No"
        " caller gets more of them than it leaves to others.",
        json_schema_extra=_LIVE,
    )
    max_connections: Count = Field(
        default=1024,
        gt=0,
        le=1_000_000,
        description="Connections, for each address of listen; more are closed at once. An eighth"
        " is kept free: idle ones are closed, and then those of the host that has most.",
    )
    max_streams: Count = Field(
        default=256, gt=0, le=100_000, description="Calls under way on one connection."
    )
    receive_bytes: Size = Field(
        default=512 * _MIB,
        ge=_MIB,
        description="Memory for requests that arrive or are being looked at. One that arrives"
        " slowly counts as large as a message may be.",
        json_schema_extra=_LIVE,
    )
    send_bytes: Size = Field(
        default=128 * _MIB,
        ge=8 * _MIB,
        description="Memory for copies of answers that their callers have not read yet.",
        json_schema_extra=_LIVE,
    )
    send_pinned_bytes: Size = Field(
        default=512 * _MIB,
        gt=0,
        description="Artifacts that may be on their way at once, in bytes, each counted once,"
        " beside those in the memory tier; they stay in memory until they are sent. No caller gets"
        " more of it than it leaves to others.",
        json_schema_extra=_LIVE,
    )
    caller_timeout_s: Seconds = Field(
        default=60.0,
        gt=0,
        description="How long a caller may take to send its request, and how long it may take"
        " nothing of its answer, before its call is ended.",
        json_schema_extra=_LIVE,
    )
    compile_timeout_s: Seconds = Field(
        default=30.0,
        gt=0,
        description="How long one compilation may take before it is killed.",
        json_schema_extra=_LIVE,
    )
    compile_cpu_s: Seconds = Field(
        default=0.0,
        ge=0,
        description="CPU time, of all its threads together, that one compilation may use before"
        " it is killed; 0 for compile_timeout_s times the number of CPUs.",
        json_schema_extra=_LIVE,
    )
    compile_memory_bytes: Size = Field(
        default=0,
        ge=0,
        description="Memory that one compilation may use before it is killed; 0 for 4 GiB, or"
        " half of the machine's or control group's memory where that is less.",
        json_schema_extra=_LIVE,
    )
    quarantine_s: Seconds = Field(
        default=600.0,
        ge=0,
        description="How long a module is refused for an engine that it crashed, or with which it"
        " ran past its time or memory; twice as long each time it does so again, up to a day. 0"
        " refuses nothing.",
        json_schema_extra=_LIVE,
    )
    isolation: Annotated[Literal["strict", "required", "best-effort"], BeforeValidator(_word)] = (
        Field(
            default="required",
            description="What becomes of an engine whose jobs are not confined on this machine, as"
            " its workers find out by trying to break out: required does not serve it, best-effort"
            " warns. strict does not start the daemon unless seccomp, Landlock and a changed root"
            " confine the jobs of every engine, even where two of them refuse all attempts.",
        )
    )
    job_uid: Count = Field(
        default=0,
        ge=0,
        le=2**32 - 2,
        description="The user, and the group of the same number, that workers and jobs run as where"
        " the daemon is root; no other process should have it. 0 gives each worker a user that is"
        " free. A daemon that is not root cannot change it.",
    )
    shutdown_grace_s: Seconds = Field(
        default=30.0,
        ge=0,
        description="How long calls in progress may go on after the daemon was told to stop.",
        json_schema_extra=_LIVE,
    )
    log_format: Annotated[Literal["auto", "text", "json"], BeforeValidator(_word)] = Field(
        default="auto",
        description="How log lines look: text, json, or auto for text on a terminal and json"
        " elsewhere.",
        json_schema_extra=_LIVE,
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_word)] = (
        Field(
            default="info",
            description="The least important log lines that are written.",
            json_schema_extra=_LIVE,
        )
    )

    @property
    def effective_keys_dir(self) -> Path:
        """The key directory."""
        return Path(self.keys_dir) if self.keys_dir else self.state_dir / "keys"

    @property
    def effective_workers(self) -> int:
        """Workers per engine."""
        return self.workers or cpu_count()

    @property
    def effective_compile_cpu_s(self) -> float:
        """CPU seconds of one compilation, its threads together."""
        return self.compile_cpu_s or self.compile_timeout_s * cpu_count()

    @property
    def effective_compile_memory_bytes(self) -> int:
        """Bytes of memory of one compilation."""
        # 4 GiB lets the hungriest honest module measured through: tree-sitter-cpp, 2.4 GB.
        return self.compile_memory_bytes or min(4 * _GIB, memory_bytes() // 2)

    @property
    def effective_write_queue_bytes(self) -> int:
        """Bytes that may wait to be written to the shared tier."""
        pair = self.max_module_bytes + self.max_artifact_bytes
        return self.write_queue_bytes or max(64 * _MIB, pair)

    @model_validator(mode="after")
    def _redis_settings_agree(self) -> Self:
        conflict = redis_conflict(
            self.redis_url.get_secret_value(),
            password=bool(self.redis_password.get_secret_value()),
            password_file=bool(self.redis_password_file),
            ca_file=bool(self.redis_ca_file),
        )
        if conflict:
            field, why = conflict
            raise PydanticCustomError("redis_conflict", "{why}", {"field": field, "why": why})
        return self

    @model_validator(mode="after")
    def _addresses_agree(self) -> Self:
        listen = [Address.parse(text) for text in self.listen]
        admin = None if self.admin_listen == NO_ADMIN else Address.parse(self.admin_listen)
        if admin is not None and any(admin.overlaps(address) for address in listen):
            raise PydanticCustomError(
                "address_conflict",
                "{address} is where gRPC is served already (listen): choose another, or none",
                {"field": "admin_listen", "address": str(admin)},
            )
        surfaces = [("listen", address) for address in listen]
        if admin is not None:
            # Unauthenticated as well: forgetting one surface is forgetting all.
            surfaces.append(("admin_listen", admin))
        for field, address in surfaces:
            if not self.allow_remote and not address.local:
                raise PydanticCustomError(
                    "address_remote",
                    "other machines can reach {address}, and there is no TLS yet: choose a"
                    " loopback or unix: address, or permit it with allow_remote"
                    " (--allow-remote, WASMKILN_ALLOW_REMOTE=true)",
                    {"field": field, "address": str(address)},
                )
        return self
