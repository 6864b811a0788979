"""``Settings``: every setting of the daemon, with its sentence, default, unit and bounds.

The daemon reads no other source of configuration, and no other file repeats a default. The flags,
the environment variables and docs/reference/configuration.md are made from this file. The sentence
of a setting stands below it. A name ends in ``_bytes`` or ``_s`` where the value has a unit: the
readers of sizes and durations, and the docs, go by that. ``_live`` marks what a running daemon
takes over when it reloads; the rest needs a restart. A field of the type ``SecretStr`` gets no flag
and is masked everywhere.

A reader takes what a flag, a variable or a TOML file can hold, and raises ValueError with a
sentence that says what is allowed. ``settings_loader`` puts the setting's name and the source of
the value in front of it, and merges flags, environment and file. CONTRIBUTING.md lists the files
that a new setting touches.
"""

from __future__ import annotations

import grp
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from wasmkiln.shared import default_state_dir as default_state_dir
from wasmkiln.shared import parse_bytes as parse_bytes
from wasmkiln.shared import parse_count as parse_count
from wasmkiln.shared import parse_seconds as parse_seconds

from wasmkilnd.machine import cpu_count, file_system_bytes, memory_bytes
from wasmkilnd.model import Limits
from wasmkilnd.redis_address import RedisAddress, RedisKind, host_and_port, ip_of, is_local

ENV_PREFIX: Final = "WASMKILN_"
NONE: Final = "none"
"""The value that switches the admin server or a tier off."""
EMBEDDED: Final = ""
"""The value of redis_url that asks for the embedded server."""
AUTO: Final = "auto"
"""The value of a size that the daemon chooses by the machine."""
GRPC: Final = ("listen", "token_listen", "operator_listen")
"""The settings of the addresses of gRPC."""
KIB, MIB, GIB, DAY_S = 2**10, 2**20, 2**30, 86400
_MAX_SIZE, _YEARS_S = 2**50, 10 * 366 * DAY_S
# With less, wasmtime and wasmer refuse modules of 40 KB.
_LEAST_JOB_BYTES = 128 * MIB


def env_name(field: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + field.upper()


def flag_name(field: str) -> str:
    """Return the command line flag of a setting."""
    return "--" + field.replace("_", "-")


def _part(of: int, most: int) -> int:
    return min(memory_bytes() // of, most)


def written(field: str, value: object) -> object:
    """Return a setting's value as a person writes it: the field's name says the unit."""
    units = {"d": DAY_S, "h": 3600, "m": 60} if field.endswith("_s") else {}
    units = {"GiB": GIB, "MiB": MIB, "KiB": KIB} if field.endswith("_bytes") else units
    if not units or not isinstance(value, int | float):
        return value
    for unit, factor in units.items():
        if value and value % factor == 0:
            return f"{int(value // factor)}{unit}"
    return int(value) if value == int(value) else value


# Where to listen: ``host:port``, ``[v6]:port`` or ``unix:/path``.

# The longest path of a Unix socket on Linux: unix(7), 108 with the final zero.
_SUN_PATH_BYTES = 107


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
            # unix:///path is the URL form of the same.
            path = re.sub("^unix:(//(?=/))?", "", text)
            if not re.fullmatch(r"/(?!/)[^\0]*", path) or len(os.fsencode(path)) > _SUN_PATH_BYTES:
                what = f"an absolute path of at most {_SUN_PATH_BYTES} bytes: write unix:/path"
                raise ValueError(f"{text!r} has not {what}")
            return cls(path=path)
        host, port = host_and_port(text, -1)
        if not host or not 0 <= port < 65536:
            raise ValueError(
                f"{text!r} is not an address: write host:port, [v6]:port or unix:/path; 0.0.0.0 and"
                " [::] are every interface"
            )
        return cls(host, port)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it. Asks no name server."""
        return bool(self.path) or is_local(self.host)

    @property
    def listeners(self) -> int:
        """How many sockets may listen there: a host name may stand for IPv4 and IPv6."""
        return 1 if self.path or ip_of(self.host) else 2


def _addresses(value: object) -> tuple[str, ...]:
    return tuple(str(Address.parse(part)) for part in _parts(value))


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


def _redis_url(url: RedisUrl) -> RedisUrl:
    if (text := url.get_secret_value()) not in (EMBEDDED, NONE):
        RedisAddress.parse(text)
    return url


# The object store, whose URL holds no secret.

# No step is "." or "..".
_STEP = r"/(?!\.\.?(?:/|\Z))"
_BUCKET = rf"[A-Za-z0-9][A-Za-z0-9._-]{{1,254}}/*(?:{_STEP}[A-Za-z0-9._=+-]+)*/*"
_FOLDER = rf"/*(?:{_STEP}[^/\x00-\x1f\ufffd]+)+/*"


def object_store_url(url: str) -> str:
    """Return the URL, empty for none. Raises ValueError without quoting it: it may hold a key."""
    if url in ("", NONE):
        return ""
    scheme, _, place = url.partition("://")
    if scheme not in ("s3", "gs", "az", "file"):
        raise ValueError("it has no known scheme: write one of s3://, gs://, az://, file://")
    how, good = "file:///path", re.fullmatch(_FOLDER, unquote(place))
    if scheme != "file":
        how, good = f"{scheme}://bucket/prefix", re.fullmatch(_BUCKET, place)
        how += "; credentials, region and endpoint come from the environment variables of the store"
        how += ", such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
    if not good or {"?", "#"} & {*place}:
        raise ValueError(f"it is not a valid URL: write {how}")
    return url.rstrip("/")


# Paths and words.


def parse_toml(text: str) -> dict[str, Any]:
    """Return the content of ``text``. Raises ValueError with a sentence for people."""
    try:
        content = tomllib.loads(text)
        repr(content)  # Raises ValueError too for hexadecimal numbers of thousands of digits.
    except (tomllib.TOMLDecodeError, RecursionError) as mistake:
        raise ValueError(f"not valid TOML: {mistake}") from None
    except ValueError:  # the library's own, of thousands of digits, gives advice on Python
        raise ValueError("not valid TOML: a number does not fit into 64 bits") from None
    return content


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


def _path_or(word: str) -> Any:
    return BeforeValidator(lambda value: word if _word(value) == word else _path(value))


def _keys(value: object) -> tuple[str, ...]:
    parts = _parts(value)
    return tuple(str(expanded(part)) if part.startswith("~") else part for part in parts)


def _parts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
        raise ValueError("expected strings, separated by commas")
    return [part.strip() for each in texts for part in each.split(",") if part.strip()]


def group_id(group: str) -> int | None:
    """Return the number of a group, None for none. Raises ValueError."""
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        raise ValueError(f"{group!r} is not a group of this machine") from None


def _group(group: str) -> str:
    group_id(group)
    return group


def _aliases(value: object) -> tuple[str, ...]:
    if isinstance(value, Mapping):  # a table of TOML
        value = tuple(f"{name}={each}" for name, each in value.items())
    found: dict[str, str] = {}
    for text in _parts(value):
        # Clients refuse an answer with an engine of another name than they asked for.
        match = re.fullmatch(r"([a-z]+) *= *(\1-[0-9][0-9A-Za-z.+!-]{0,63})", text)
        if not match or match[1] in found:
            raise ValueError(
                f"{text!r} is not an alias: write an engine's name, once, and the id of one of its"
                " versions, such as wasmtime=wasmtime-50.0.1"
            )
        found[match[1]] = match[2]
    return tuple(f"{name}={engine_id}" for name, engine_id in sorted(found.items()))


def _word(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


LowerCase = BeforeValidator(_word)
"""Lets a choice be written in capitals."""
Size = Annotated[int, BeforeValidator(parse_bytes), Field(le=_MAX_SIZE)]
SizeOrAuto = Size | Annotated[Literal["auto"], LowerCase]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(le=_YEARS_S)]
WholeSeconds = Annotated[int, BeforeValidator(parse_seconds), Field(le=_YEARS_S)]
Count = Annotated[int, BeforeValidator(parse_count)]
Addresses = Annotated[tuple[str, ...], BeforeValidator(_addresses)]
AdminAddress = Annotated[
    str, AfterValidator(lambda text: text if text == NONE else str(Address.parse(text)))
]
RedisLocation = Annotated[RedisUrl, AfterValidator(_redis_url)]
ObjectStoreUrl = Annotated[str, AfterValidator(object_store_url)]
TierMode = Annotated[Literal["read-write", "read-only", "write-only"], LowerCase]
OptionalPath = Annotated[str, BeforeValidator(_path)]
Keys = Annotated[tuple[str, ...], BeforeValidator(_keys)]
Group = Annotated[str, AfterValidator(_group)]
# Braces would change the cluster slot of keys, and glob characters what an eviction finds.
KeyPrefix = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,64}$")]
EngineAliases = Annotated[tuple[str, ...], BeforeValidator(_aliases)]
"""Texts NAME=ID, sorted; in TOML also a table."""
EngineName = Annotated[str, Field(pattern=r"^([a-z][a-z0-9.+_-]{0,63})?$")]


def _live(default: object, **bounds: Any) -> Any:
    """Return a field that a running daemon takes over when it reloads."""
    return Field(default=default, json_schema_extra={"live": True}, **bounds)


class Settings(BaseModel):
    """All settings of one daemon. Immutable; text and dumps hide secrets.

    Raises pydantic's ValidationError for an impossible value, without the value.
    Where 0 or "auto" stands for "as the machine has it", the ``effective_`` property of the same
    name returns the value for this machine.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        str_strip_whitespace=True,
    )

    # Where the daemon serves, where its state is, and which keys it uses.
    listen: Annotated[Addresses, Field(min_length=1)] = ("127.0.0.1:50051",)
    """Where gRPC is served: host:port, [v6]:port or unix:/path; several are separated by commas
    (the flag may also be repeated). Port 0 takes any free one."""
    admin_listen: AdminAddress = "127.0.0.1:9464"
    """Where /metrics, /healthz, /readyz and the status page (/) are served over HTTP: one address
    as in listen, or none."""
    http_listen: Addresses = ()
    """Where artifacts and modules that a tier holds can be fetched over HTTP: addresses as in
    listen. Empty for nowhere."""
    allow_remote: bool = False
    """Permit addresses that other machines can reach without TLS, or without identities: everyone
    who reaches such an address may then use the daemon, or read along."""
    state_dir: Annotated[Path, BeforeValidator(_directory)] = Field(
        default_factory=lambda: default_state_dir(os.environ)
    )
    """The directory of engines, keys and the embedded server's data; daemons may share it."""
    keys_dir: OptionalPath = _live("")
    """The directory of the signing key and the trusted keys; empty for keys below the state
    directory. Daemons on one Redis may share it."""
    signing_key: SecretStr = _live(SecretStr(""))
    """The Ed25519 private key that artifacts are signed with, instead of the one in keys_dir: PKCS
    #8 PEM, or base64 of its 32 bytes. `wasmkilnd keys generate --print` makes one."""
    trusted_keys: Keys = _live(())
    """Public keys to trust besides those in keys_dir: hex, base64, or the path of a PEM file or of
    a folder of PEM files; several are separated by commas."""

    # Who may reach the daemon, how connections are protected, and what is written about it.
    tls_cert_file: OptionalPath = _live("")
    """The certificate of the daemon, with its chain, as PEM. With it, gRPC and HTTP are served over
    TLS on every TCP address. `wasmkilnd tls init` makes one for a first try."""
    tls_key_file: OptionalPath = _live("")
    """The private key of tls_cert_file, as PEM without a password."""
    tls_client_ca_file: OptionalPath = _live("")
    """The CAs that sign the certificates of callers, as PEM. With it, callers at the TCP addresses
    of listen need a certificate by one of them."""
    tls_min_version: Annotated[Literal["1.2", "1.3"], LowerCase] = "1.3"
    """The lowest version of TLS that is spoken."""
    token_listen: Addresses = ()
    """More addresses of gRPC, over TLS and without client certificates, for callers with tokens.
    Only useful beside tls_client_ca_file: without that, listen is such an address itself."""
    operator_listen: Addresses = ()
    """Addresses of gRPC for operators. With any, AdminService is served there alone."""
    socket_group: Group = ""
    """The group, by name or number, whose members can connect to the daemon's Unix sockets (mode
    0660). Empty for the daemon's own user alone (0600)."""
    policy_file: OptionalPath = _live("")
    """The TOML file that says who may do what, and whose JSON Web Tokens count."""
    tokens_file: OptionalPath = _live("")
    """The file of the tokens of callers, such as a file that daemons share or a mounted secret;
    empty for access/tokens.json below the state directory. A file that is set has to exist."""
    audit_file: Annotated[str, _path_or("log")] = _live("")
    """Where each compile, upload, act of an operator, refusal and change of keys is written, as a
    line of JSON: the path of a file, `log` for the daemon's log, or empty for no audit."""
    value_max_age_s: Seconds = _live(0.0, ge=0)
    """The greatest age of a stored artifact, by the time that its signature states; older ones are
    compiled again. 0 for no limit."""

    # What each tier of the cache holds, for how long, and how Redis is reached.
    redis_url: RedisLocation = RedisUrl(EMBEDDED)
    """The Redis tier: redis://, rediss:// (TLS), unix://, redis+sentinel://, rediss+sentinel://,
    redis+cluster://, rediss+cluster://, or https:// for Upstash's REST API; none for memory only;
    empty for the embedded server. A flag shows a password in it to other users."""
    redis_password: SecretStr = _live(SecretStr(""))
    """The password of the URL's user, or the token of an https:// URL, if the URL does not hold
    it."""
    redis_password_file: OptionalPath = _live("")
    """A file that holds the password or token instead. It is read again for each connection."""
    redis_ca_file: OptionalPath = _live("")
    """A PEM file of the authorities of Redis's certificate; empty for the system's."""
    redis_timeout_s: Seconds = Field(default=1.0, gt=0)
    """How long to wait for each step of Redis: to accept a connection, to take a command, or to
    answer it. One call may meet a Redis that hangs; later calls do not wait, nor do writes."""
    redis_prefix: KeyPrefix = "wasm:"
    """What every key in Redis begins with."""
    redis_mode: TierMode = "read-write"
    """What the daemon does with values in Redis: read-write, read-only or write-only. In other
    modes than read-write it shares no leases, quarantine, pins and uses with other daemons."""
    embedded_redis_bytes: Size = Field(default_factory=lambda: _part(8, GIB), ge=4 * MIB)
    """Memory that the embedded server may fill; it then drops the least recently used. By default
    1 GiB, or an eighth of the machine's or control group's memory if that is less."""
    cache_ttl_s: WholeSeconds = Field(default=7 * DAY_S, gt=0)
    """How long an entry stays in Redis after its last use."""
    memory_bytes: Size = _live(256 * MIB, ge=0)
    """Memory that the tier in the daemon itself may fill; with 0 it keeps nothing."""

    # What keeps values behind Redis.
    object_store_url: ObjectStoreUrl = ""
    """The object store, which keeps what Redis may lose: s3://bucket/prefix, gs://bucket/prefix,
    az://container/prefix, or file:///path of a directory that hosts share; empty or none for no
    such tier. Credentials come from the store's own environment variables."""
    object_store_mode: TierMode = "read-write"
    """What the daemon does with the object store: read-write, read-only or write-only."""
    object_store_timeout_s: Seconds = Field(default=5.0, gt=0)
    """How long to wait for each answer of the object store, and longer for large values. One call
    may meet a store that hangs; later calls do not wait, nor do writes."""

    # Where the files are that processes on this host map, how many bytes, who may read them.
    host_store_dir: Annotated[str, _path_or(NONE)] = ""
    """The directory of the host store, artifacts as files that processes on this host map; empty
    for host_store below the state directory, none for no host store. Daemons may share it."""
    host_store_bytes: SizeOrAuto = _live(AUTO)
    """Bytes on disk that the host store may fill; the least recently used artifacts go first. auto
    for 4 GiB, or a tenth of a smaller file system; 0 for no store. 0 or not needs a restart."""
    host_store_group: Group = ""
    """The group whose members may map the files (mode 0640), one that the daemon's user is in."""

    # What is compiled: how large, with which engine, how many at once, how many wait.
    max_module_bytes: Size = _live(5 * MIB, gt=0, le=GIB)
    """The largest module that the daemon accepts."""
    max_artifact_bytes: Size = _live(256 * MIB, gt=0)
    """The largest artifact that the daemon keeps and sends. As many bytes and max_module_bytes may
    wait to be written to a tier; above that the oldest are dropped, and the log says so."""
    default_engine: EngineName = _live("")
    """The engine for requests that name none: an id such as wasmtime-50.0.1, or a name. Empty for
    the one that it was before; at first wasmer, if it is installed."""
    engine_alias: EngineAliases = _live(())
    """Which engine a name stands for: wasmtime=wasmtime-50.0.1, and more after commas; in the file
    a table, [engine_alias]. Other names stand for the engine from before, at first the newest."""
    install_engines: bool = _live(True)
    """Whether `serve` installs wasmtime and wasmer (with a CPython 3.10, where there is none) from
    the package index when no engine is installed."""
    advisories_file: OptionalPath = _live("")
    """A TOML file of known vulnerabilities in engines, besides those that this release knows."""
    vulnerable_engines: Annotated[Literal["warn", "refuse"], LowerCase] = _live("warn")
    """Whether to serve an engine with a known vulnerability and warn, or to refuse it."""
    workers: Count = Field(default=0, ge=0, le=1024)
    """Compilations that run at the same time, for each engine; 0 for one per CPU."""
    queue_length: Count = _live(256, gt=0, le=1000000)
    """Jobs that may wait for a worker, for each engine; the daemon refuses more."""

    # Limits on calls in progress, so that no caller can crowd out the others.
    max_calls: Count = _live(2048, gt=0, le=1000000)
    """Calls in progress, in any phase. No caller may have more of them than it leaves to others."""
    max_connections: Count = Field(default=1024, gt=0, le=1000000)
    """Connections, for each address of listen; the daemon closes others at once."""
    receive_bytes: Size = Field(
        default_factory=lambda: _part(16, 512 * MIB), ge=MIB, json_schema_extra={"live": True}
    )
    """Memory for requests. Artifacts that are being sent may take as much, modules of all work too,
    of those half may wait for a worker; copies of unread answers a quarter. By default 512 MiB, or
    a sixteenth of the machine's or control group's memory if that is less."""
    upload_bytes: Size = _live(2 * GIB, gt=0)
    """Disk, below the state directory, for uploads that have not ended, each as large as its caller
    says at first. No caller may have more than it leaves to others; one upload alone always may."""
    caller_timeout_s: Seconds = _live(60.0, gt=0)
    """How long a caller may take to send its request, and read nothing of its answer; for a whole
    artifact it has ten times as long. The daemon then ends the call."""

    # What one compilation may use and reach, and what follows when it breaks a limit.
    compile_timeout_s: Seconds = _live(30.0, ge=1)
    """How long one compilation may take before the daemon kills it."""
    compile_cpu_s: Seconds = _live(0.0, ge=0)
    """CPU time that all threads of one compilation may use together before the kernel kills it; 0
    for compile_timeout_s times the number of CPUs."""
    compile_memory_bytes: Size = _live(0, ge=0)
    """Memory that one compilation may use before it is killed; 0 for 4 GiB, or for
    compile_memory_total_bytes if that is less."""
    compile_memory_total_bytes: Size = _live(0, ge=0)
    """Memory that all compilations and validations of all engines may use together: others wait; 0
    for what the daemon and the embedded server leave of the machine's or control group's memory,
    and a quarter of that at least."""
    compile_memory_retry_bytes: Size = _live(0, ge=0)
    """Memory with which a module is tried once more, alone, that needs more than
    compile_memory_bytes. Meanwhile nothing else is compiled or validated. With 0 it fails."""
    quarantine_s: Seconds = _live(600.0, ge=0)
    """How long a module is refused for an engine that it crashed, or with which it reached its time
    or memory limit. Each further failure doubles it, up to a day. With 0 nothing is refused."""
    isolation: Annotated[Literal["strict", "required", "best-effort"], LowerCase] = "required"
    """What to do with an engine whose jobs are not confined: required does not serve it,
    best-effort warns, strict does not start the daemon without seccomp, Landlock and a changed
    root."""

    # How the daemon ends, and what it writes to its log.
    shutdown_grace_s: Seconds = _live(30.0, ge=0)
    """How long calls in progress may continue after the daemon is told to stop."""
    log_format: Annotated[Literal["auto", "text", "json"], LowerCase] = _live("auto")
    """How log lines look: text, json, or auto for text on a terminal and json elsewhere."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], LowerCase] = _live("info")
    """The lowest level of log lines to write."""

    @property
    def effective_keys_dir(self) -> Path:
        """The key directory."""
        return Path(self.keys_dir) if self.keys_dir else self.state_dir / "keys"

    @property
    def effective_tokens_file(self) -> Path:
        """The file of the tokens. Where it exists, the daemon asks callers for an identity."""
        default = self.state_dir / "access" / "tokens.json"
        return Path(self.tokens_file) if self.tokens_file else default

    @property
    def has_tokens_file(self) -> bool:
        """Whether there is a file of tokens, or may be one where this user cannot look."""
        try:
            return bool(self.effective_tokens_file.stat())
        except OSError as failure:
            return not isinstance(failure, FileNotFoundError | NotADirectoryError)

    @property
    def engine_aliases(self) -> dict[str, str]:
        """The id of an engine by alias."""
        return dict(text.split("=", 1) for text in self.engine_alias)

    @property
    def effective_host_store_dir(self) -> Path:
        """The directory of the host store."""
        there = self.host_store_dir not in ("", NONE)
        return Path(self.host_store_dir) if there else self.state_dir / "host_store"

    @property
    def effective_host_store_bytes(self) -> int:
        """Bytes that the host store may fill; 0 if it is off."""
        if self.host_store_dir == NONE:
            return 0
        if self.host_store_bytes != AUTO:
            return self.host_store_bytes
        # Where the size is not known, as in /proc, using the directory fails, and says why.
        return min(4 * GIB, file_system_bytes(self.effective_host_store_dir) // 10 or 4 * GIB)

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
        # 4 GiB is enough for the largest honest module measured: tree-sitter-cpp, 2.4 GB.
        most = self.compile_memory_total_bytes or self._left_for_jobs_bytes
        return self.compile_memory_bytes or min(4 * GIB, most)

    @property
    def effective_compile_memory_total_bytes(self) -> int:
        """Bytes of memory of all compilations and validations together."""
        most = max(self._left_for_jobs_bytes, self.compile_memory_bytes)
        return self.compile_memory_total_bytes or most

    @property
    def _left_for_jobs_bytes(self) -> int:
        return max(memory_bytes() // 4, memory_bytes() - self.beside_jobs_bytes)

    @property
    def beside_jobs_bytes(self) -> int:
        """What all but jobs may hold: docs/reference/limits.md has the sum."""
        embedded = self.redis_url.get_secret_value() == EMBEDDED
        return (
            (96 + 64 * self.effective_workers) * MIB
            + 128 * KIB * self.max_connections
            + 64 * KIB * self.max_calls
            + self.memory_bytes
            + self.receive_bytes * 13 // 4
            + self.max_module_bytes
            + self.max_artifact_bytes
            # Its memory is in pieces; and while it writes its file anew, it has old pages twice.
            + (self.embedded_redis_bytes * 3 // 2 if embedded else 0)
        )

    @property
    def limits(self) -> Limits:
        """What compilations are held to, on this machine."""
        return Limits(
            module_bytes=self.max_module_bytes,
            artifact_bytes=self.max_artifact_bytes,
            compile_timeout_s=self.compile_timeout_s,
            compile_cpu_s=self.effective_compile_cpu_s,
            compile_memory_bytes=self.effective_compile_memory_bytes,
            queue_length=self.queue_length,
            queue_bytes=self.receive_bytes // 2,
            compile_memory_total_bytes=self.effective_compile_memory_total_bytes,
            compile_memory_retry_bytes=self.compile_memory_retry_bytes,
        )

    @property
    def addresses(self) -> list[tuple[str, Address]]:
        """Every address to listen on, with its setting; those of gRPC first."""
        admin = () if self.admin_listen == NONE else (self.admin_listen,)
        given = {setting: getattr(self, setting) for setting in (*GRPC, "http_listen")}
        given["admin_listen"] = admin
        return [(setting, Address.parse(one)) for setting, all_ in given.items() for one in all_]

    @property
    def needs_identities(self) -> bool:
        """Whether calls need an identity: as soon as there is any source of them."""
        sources = (self.policy_file, self.tls_client_ca_file, self.tokens_file)
        return any(sources) or self.has_tokens_file

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield each setting that cannot be as it is beside the others, and why."""
        if (url := self.redis_url.get_secret_value()) not in (EMBEDDED, NONE):
            yield from self._redis_conflicts(RedisAddress.parse(url))
        cert, key = self.tls_cert_file, self.tls_key_file
        if bool(cert) != bool(key):
            given, missing = ("tls_cert_file", "tls_key_file")[:: 1 if cert else -1]
            yield missing, f"it is missing: {given} needs it"
        if self.tls_client_ca_file and not cert:
            yield "tls_client_ca_file", "it needs TLS: set tls_cert_file and tls_key_file too"
        for setting, address in self.addresses:
            yield from self._address_conflicts(setting, address)
        yield from self._memory_conflicts()
        if self.audit_file == "log" and self.log_level not in ("info", "debug"):
            why = f"at log_level {self.log_level} the log leaves the audit out: set log_level to"
            yield "audit_file", f"{why} info, or name a file"

    def _memory_conflicts(self) -> Iterator[tuple[str, str]]:
        one, retry = self.effective_compile_memory_bytes, self.compile_memory_retry_bytes
        total = self.effective_compile_memory_total_bytes
        if one < _LEAST_JOB_BYTES:
            why = f"it is {one:,}: most modules need {_LEAST_JOB_BYTES:,} to compile; raise it, or"
            yield "compile_memory_bytes", f"{why} give the daemon more memory"
        if 0 < retry < one:
            yield "compile_memory_retry_bytes", f"it is below compile_memory_bytes, {one:,}"
        for setting, least in (("", one), ("retry_", retry)):
            if total < least:
                why = f"it is {total:,}, below compile_memory_{setting}bytes, {least:,}"
                yield "compile_memory_total_bytes", why

    def _redis_conflicts(self, address: RedisAddress) -> Iterator[tuple[str, str]]:
        password, file = self.redis_password.get_secret_value(), self.redis_password_file
        given = list(filter(None, (address.password, password, file)))
        if len(given) > 1:
            why = "the password is given twice: keep it in one of redis_url, redis_password and"
            yield f"redis_password{'_file' if file else ''}", f"{why} redis_password_file"
        if self.redis_ca_file and not address.tls:
            why = f"it is set, but {address.scheme}:// is not encrypted: leave it out, or use TLS"
            yield "redis_ca_file", why
        if address.kind is RedisKind.REST and not given:
            why = f"{address.scheme}:// needs a token: set UPSTASH_REDIS_TOKEN, redis_password or"
            yield "redis_url", f"{why} redis_password_file, or write https://:token@host"

    def _address_conflicts(self, setting: str, address: Address) -> Iterator[tuple[str, str]]:
        if setting == "token_listen" and address.path:
            yield setting, f"{address} is a Unix socket, which speaks no TLS: name it in listen"
        if address.local:
            return
        lacks = [] if self.tls_cert_file else ["TLS (tls_cert_file, tls_key_file)"]
        if lacks and setting in ("token_listen", "operator_listen"):
            yield setting, f"other machines can reach {address}: it needs {lacks[0]}"
        if not self.needs_identities:
            sources = "tls_client_ca_file, policy_file, or tokens: `wasmkilnd token add`"
            lacks.append(f"identities ({sources})")
        if lacks and not self.allow_remote:
            yield (
                setting,
                f"other machines can reach {address}, which needs {' and '.join(lacks)}: set these,"
                " choose a loopback or unix: address, or permit it with allow_remote"
                " (--allow-remote, WASMKILN_ALLOW_REMOTE=true)",
            )


for _info in Settings.model_fields.values():
    _info.description = " ".join((_info.description or "").split())


def has_flag(field: str) -> bool:
    """Whether a setting has a command line flag: a secret has none, as others could read it."""
    return Settings.model_fields[field].annotation is not SecretStr


def is_live(field: str) -> bool:
    """Whether a running daemon takes the setting over when it reloads."""
    extra = Settings.model_fields[field].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("live"))
