"""Merge flags, environment and file into ``Settings``, and show them with their origins.

**Precedence**: a flag wins over the environment, the environment over the TOML file, the file over
the default. ``load`` merges the four layers, checks the result once, and remembers where each value
came from. It refuses unknown names and impossible values with one line each, and never shows a
secret. Upstash's own variables fill Redis settings that are unset.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import click
from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from wasmkilnd.setting_values import AUTO, RedisUrl, expanded, parse_toml, written
from wasmkilnd.settings import (
    ENV_PREFIX,
    Settings,
    default_state_dir,
    env_name,
    flag_name,
    has_flag,
    is_live,
)

CONFIG_ENV: Final = ENV_PREFIX + "CONFIG"
"""The variable that names the TOML file."""

FlagValue = str | bool | Sequence[str]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

REMOVED: Final = {
    "abandoned_compiles": "leave it out: a compilation that has begun is finished and stored",
    "admin_names": "have the proxy ask for localhost or for an IP address",
    "audit_file_bytes": "leave it out, and have logrotate rename the file: the daemon follows",
    "audit_files": "leave it out, and have logrotate rename the file: the daemon follows",
    "banner": "leave it out: it is printed on a terminal, and where log_format is text",
    "cache_ttl_refresh": "leave it out: an entry stays for cache_ttl_s after its last use",
    "compile_lease_s": "leave it out: another daemon takes over after 5 s",
    "compile_priority": "leave it out: compilations run behind everything else",
    "host_store_mode": "leave it out: files have the mode 0640; host_store_group may map them",
    "job_uid": "leave it out: a daemon that is root runs each worker as an unused user",
    "jwt_audience": "write it into the policy file: [jwt] audience",
    "jwt_issuer": "write it into the policy file: [jwt] issuer",
    "jwt_keys": "write it into the policy file: [jwt] keys",
    "max_streams": "leave it out: one connection carries 256 calls at a time",
    "open_health": "write `open_health = true` at the top of the policy file",
    "python_mirror": "set UV_PYTHON_INSTALL_MIRROR, which uv reads, to the same mirror",
    "queue_bytes": "set receive_bytes: modules that wait for a worker may take half of it",
    "redis_retry_max_s": "leave it out: the daemon asks a server that is down every 2 s",
    "redis_sentinel_password": "append ?sentinel_user=...&sentinel_password=... to redis_url",
    "redis_sentinel_user": "append ?sentinel_user=...&sentinel_password=... to redis_url",
    "send_bytes": "set receive_bytes: answers that callers have not read may take a quarter of it",
    "send_pinned_bytes": "set receive_bytes: artifacts that are being sent may take as much",
    "trusted_ca_file": "trust each daemon's key itself: `wasmkilnd keys trust`, or trusted_keys",
    "socket_mode": "leave it out: sockets have the mode 0600, and 0660 with socket_group",
    "trace_ca_file": "set OTEL_EXPORTER_OTLP_CERTIFICATE to the same path",
    "trace_endpoint": "set OTEL_EXPORTER_OTLP_TRACES_ENDPOINT in the environment to the same URL",
    "trace_headers_file": "set OTEL_EXPORTER_OTLP_HEADERS in the environment: name=value, ...",
    "trace_sample_ratio": (
        "set OTEL_TRACES_SAMPLER to parentbased_traceidratio, and OTEL_TRACES_SAMPLER_ARG to it"
    ),
    "write_queue_bytes": "leave it out: max_module_bytes plus max_artifact_bytes may wait",
    "signing_cert_file": "leave it out, and have others trust the key of `wasmkilnd keys show`",
}
"""By field, the settings that are gone, and what to do instead."""

# Variables of the same prefix that the client and the tests use.
_FOREIGN = re.compile(
    r"WASMKILN_(ADDRESS|TIMEOUT_S|PROFILE|PROFILES_FILE|TLS|CA_FILE|SERVER_NAME|CLIENT_CERT_FILE"
    r"|CLIENT_KEY_FILE|TOKEN|TOKEN_FILE|TOKEN_OVER_PLAINTEXT|COMPRESSION|TEST_.*)"
)
# What Kubernetes sets in every pod for a service called wasmkiln, or wasmkiln-something.
_KUBERNETES = re.compile(
    r"WASMKILN_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?"
    r"|PORT_[0-9]+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)=.*"
    # Look at the value too: WASMKILN_ADMIN_PORT=9464 is a mistake, and not from Kubernetes.
    r"|WASMKILN_(\w+_)?PORT=(tcp|udp|sctp)://.*",
    re.DOTALL,
)
# Upstash's own variables, the first that is set of each.
_UPSTASH_URLS = ("UPSTASH_REDIS_URL", "UPSTASH_REDIS_REST_URL")
_UPSTASH_TOKENS = ("UPSTASH_REDIS_TOKEN", "UPSTASH_REDIS_REST_TOKEN")


class ConfigError(Exception):
    """The daemon cannot use the configuration. One line for each problem; never a secret."""


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and where the value of each field came from."""

    settings: Settings
    origins: Mapping[str, str]
    """By field: ``flag --listen``, ``env WASMKILN_LISTEN``, ``file /x/y.toml`` or ``default``."""


def load(
    flags: Mapping[str, FlagValue], environ: Mapping[str, str], file: Path | None = None
) -> LoadedSettings:
    """Return the settings: flag over environment over file over default.

    ``flags`` holds those that were given, by field name. ``file`` is a TOML file;
    without it, the one that WASMKILN_CONFIG names, if any. Raises ConfigError.
    """
    fields = Settings.model_fields
    variables = {env_name(field): field for field in fields}
    values: dict[str, Any] = {}
    origins = dict.fromkeys(fields, "default")

    from_file, file_origin = _read_file(environ, file)
    problems = _unknown(from_file, fields, file_origin)
    ours = [
        name
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX)
        and not (_FOREIGN.fullmatch(name) or _KUBERNETES.fullmatch(f"{name}={value}"))
    ]
    problems += _unknown(ours, [*variables, CONFIG_ENV], "the environment")
    problems += _unknown(flags, fields, "the command line")
    for field in fields:
        if field in flags:
            values[field], origins[field] = flags[field], f"flag {flag_name(field)}"
        elif (name := env_name(field)) in environ:
            values[field], origins[field] = environ[name], f"env {name}"
        elif field in from_file:
            values[field], origins[field] = from_file[field], file_origin
    for field, name in _from_upstash(values, environ).items():
        values[field], origins[field] = environ[name], f"env {name}"
    if "state_dir" not in values:
        try:
            values["state_dir"] = default_state_dir(environ)
        except RuntimeError:
            problems.append(
                "state_dir (default): this user has no home directory: set it"
                f" ({flag_name('state_dir')}, {env_name('state_dir')})"
            )
            values["state_dir"] = "/"
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += _explain(error, values, origins)
    if problems:
        # From None: the cause holds every value, secrets included.
        raise ConfigError("\n".join(problems)) from None
    return LoadedSettings(settings, origins)


def _read_file(environ: Mapping[str, str], file: Path | None) -> tuple[dict[str, Any], str]:
    named_by, name = "--config", environ.get(CONFIG_ENV, "")
    if file is None:
        if not name:
            return {}, ""
        try:
            named_by, file = CONFIG_ENV, expanded(name)
        except ValueError as failure:
            raise ConfigError(f"cannot read the file that {CONFIG_ENV} names: {failure}") from None
    try:
        return parse_toml(file.read_bytes().decode()), f"file {file}"
    except OSError as error:
        why = error.strerror
    except UnicodeDecodeError:
        why = "it is not UTF-8 text"
    except ValueError as error:
        why = str(error)
    raise ConfigError(f"cannot read file {file} (named by {named_by}): {why}") from None


def _unknown(names: Iterable[str], known: Iterable[str], origin: str) -> list[str]:
    removed = REMOVED | {env_name(field): advice for field, advice in REMOVED.items()}
    problems = []
    for name in names:
        if name in removed:
            problems.append(f"{name} in {origin} is no longer a setting: {removed[name]}")
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {close[0]}?" if close else "docs/reference/configuration.md"
            advice += "" if close else " lists them all"
            problems.append(f"{name} in {origin} is not a setting: {advice}")
    return problems


def _from_upstash(given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable to take for each setting that ``given`` leaves open.

    A token is taken for a REST URL only: any other server must not see it.
    """
    taken = {}
    url = given.get("redis_url")
    if url is None and (name := next(filter(environ.get, _UPSTASH_URLS), "")):
        taken["redis_url"], url = name, environ[name]
    rest = isinstance(url, str) and url.strip().startswith(("https://", "http://"))
    has_token = "@" in str(url) or given.get("redis_password") or given.get("redis_password_file")
    if rest and not has_token and (name := next(filter(environ.get, _UPSTASH_TOKENS), "")):
        taken["redis_password"] = name
    return taken


def _explain(
    error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]
) -> list[str]:
    problems = []
    for detail in error.errors(include_input=False, include_url=False):
        context = detail.get("ctx", {})
        field = str(detail["loc"][0] if detail["loc"] else context.get("field", ""))
        if detail["type"] == "value_error":
            what = str(context["error"])
        # No message shows values of these types.
        elif "field" in context or Settings.model_fields[field].annotation in (RedisUrl, SecretStr):
            what = detail["msg"]
        else:
            what = f"{values[field]!r} is not allowed: it {_allowed(field, detail)}"
        problems.append(f"{field} ({origins[field]}): {what}")
    return problems


def _allowed(field: str, detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    for bound, words in (("gt", "more than"), ("ge", "at least"), ("le", "at most")):
        if bound in context:
            return f"must be {words} {written(field, context[bound])}"
    if detail["type"] == "int_from_float":
        return "must be whole seconds"
    return detail["msg"].removeprefix("Input ")


# What a reload finds.


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs; its values are as a person writes them, with secrets masked."""

    field: str
    old: object
    new: object
    live: bool
    """Whether a running daemon takes it over; otherwise it needs a restart."""


def changes(old: Settings, new: Settings) -> list[Change]:
    """Return each setting whose value differs, in the schema's order."""
    return [
        Change(field, shown_value(old, field), shown_value(new, field), is_live(field))
        for field in Settings.model_fields
        if getattr(old, field) != getattr(new, field)
    ]


def take_over(old: Settings, new: Settings, fields: list[str]) -> Settings:
    """Return the settings ``old`` with ``fields`` replaced by those of ``new``."""
    return old.model_copy(update={field: getattr(new, field) for field in fields})


# The command line flags.


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add a flag for every setting, and ``--config``, to a click command.

    It takes the flags of removed settings too, so that ``load`` says what to do instead.
    """
    for field in REMOVED:
        command = click.option(flag_name(field), field, hidden=True, is_flag=False, flag_value="")(
            command
        )
    return some_options(lambda field: True)(command)


def some_options(chosen: Callable[[str], bool]) -> Decorator:
    """Return a decorator that adds flags for ``chosen`` settings and ``--config`` to a command.

    The command receives ``flags``, a dict by field name of those that were given, and ``config``, a
    path or None: the first and last arguments of ``load``. click does not check values: ``load``
    reports the mistakes of every layer in the same words.
    """
    fields = [field for field in Settings.model_fields if has_flag(field) and chosen(field)]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_flags(*args: Any, **given: Any) -> Any:
            values = {field: given.pop(field, None) for field in (*fields, *REMOVED)}
            flags = {field: value for field, value in values.items() if value not in (None, ())}
            return command(*args, flags=flags, **given)

        decorated: Callable[..., Any] = with_flags
        # A decorator that comes later shows earlier in the help.
        for field in reversed(fields):
            decorated = _option(field)(decorated)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help=f"A TOML file with settings.  [env: {CONFIG_ENV}]",
        )(decorated)

    return decorate


_METAVARS = {
    "_bytes": "SIZE",
    "_s": "DURATION",
    "listen": "ADDRESS",
    "_file": "FILE",
    "_dir": "DIR",
}


def _option(field: str) -> Decorator:
    info, flag = Settings.model_fields[field], flag_name(field)
    text = f"{info.description}  [env: {env_name(field)}; default: {shown_default(field) or '-'}]"
    if info.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", field, default=None, help=text)
    metavar = "COUNT" if info.annotation is int else "TEXT"
    metavar = next((name for end, name in _METAVARS.items() if field.endswith(end)), metavar)
    if get_origin(info.annotation) is Literal:
        metavar = "|".join(get_args(info.annotation))
    repeatable = get_origin(info.annotation) is tuple
    return click.option(flag, field, type=str, multiple=repeatable, metavar=metavar, help=text)


# Settings for people and scripts: as TOML, as JSON, and as the reference page.


def render(loaded: LoadedSettings) -> str:
    """Return one line ``key = value  # origin`` per setting: valid TOML, secrets masked."""
    lines = []
    for field, origin in loaded.origins.items():
        value = _toml(shown_value(loaded.settings, field))
        effective = _effective(loaded.settings, field)
        note = "" if effective is None else f"; {written(field, effective)} in force"
        lines.append(f"{field} = {value}  # {_one_line(origin)}{note}\n")
    return "".join(lines)


def as_json(loaded: LoadedSettings) -> str:
    """Return a JSON object: by field ``value``, ``origin`` and ``in_force``, secrets masked.

    Sizes are in bytes and durations in seconds. ``in_force`` differs from ``value``
    where 0 or auto stands for what the machine has.
    """
    shown = {}
    for field, origin in loaded.origins.items():
        value, effective = _plain(loaded.settings, field), _effective(loaded.settings, field)
        in_force = value if effective is None else effective
        shown[field] = {"value": value, "origin": origin, "in_force": in_force}
    return json.dumps(shown, indent=2)


def shown_value(settings: Settings, field: str) -> object:
    """Return a setting's value as a person writes it, secrets masked."""
    return written(field, _plain(settings, field))


def shown_default(field: str) -> str:
    """Return a setting's default as the documentation writes it, the same on every machine."""
    info = Settings.model_fields[field]
    extra = info.json_schema_extra
    if isinstance(extra, dict) and "shown_default" in extra:
        return str(extra["shown_default"])
    if isinstance(info.default, tuple):
        return ",".join(info.default)
    value = written(field, info.default)
    return str(value).lower() if isinstance(value, bool) else str(value)


def reference() -> str:
    """Return the Markdown of docs/reference/configuration.md."""
    rows = []
    for field, info in Settings.model_fields.items():
        default = f"`{shown_default(field)}`" if shown_default(field) else "(empty)"
        flag = f"`{flag_name(field)}`" if has_flag(field) else "none: it is a secret"
        meaning = (info.description or "").replace("|", "\\|")
        live = "yes" if is_live(field) else ""
        cells = (f"`{field}`", f"`{env_name(field)}`", flag, default, live, meaning)
        rows.append(f"| {' | '.join(cells)} |\n")
    return _REFERENCE_HEAD + "".join(rows)


_REFERENCE_HEAD = f"""\
# Configuration

Generated from `server/wasmkilnd/settings.py`: change it there.

A flag wins over the environment, the environment over the file, the file over the default.
The file is TOML, named by `--config` or `{CONFIG_ENV}`; its keys are the names below. Unknown
keys, unknown `WASMKILN_*` variables and impossible values stop the daemon at start.
`wasmkilnd config` prints each value and where it came from.

Relative paths begin in the directory that the daemon, or the command, was started in.

Sizes (`_bytes`) are bytes, or take a suffix: `KB`, `MB`, `GB` (powers of 1,000), `KiB`, `MiB`,
`GiB` (powers of 1,024). Durations (`_s`) are seconds, or take a suffix: `ms`, `s`, `m`, `h`, `d`.

On `SIGHUP` a running daemon reads all of it again and takes over the settings marked *live*; the
others need a restart ([Reload a daemon](../how-to/reload.md)).

| key | environment | flag | default | live | meaning |
|---|---|---|---|---|---|
"""


def _effective(settings: Settings, field: str) -> int | float | None:
    # Only where 0 or auto stands for what the machine has.
    if getattr(settings, field) not in (0, AUTO):
        return None
    effective: int | float | None = getattr(settings, f"effective_{field}", None)
    return effective or None


def _plain(settings: Settings, field: str) -> object:
    value = getattr(settings, field)
    return str(value) if isinstance(value, SecretStr | Path) else value


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_one_line(escaped)}"' if isinstance(value, str) else str(value)


def _one_line(text: str) -> str:
    # TOML wants control characters escaped, and cannot write half a surrogate pair, which is
    # how Python represents a file name that is not UTF-8.
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)
