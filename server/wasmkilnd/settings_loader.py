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

from wasmkilnd import settings as schema
from wasmkilnd.mistakes import by_place, in_words
from wasmkilnd.settings import AUTO, ENV_PREFIX, RedisUrl, Settings, env_name, flag_name, written

CONFIG_ENV: Final = ENV_PREFIX + "CONFIG"
"""The variable that names the TOML file."""

FlagValue = str | bool | Sequence[str]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_LEAVE_OUT = "leave it out: docs/how-to/upgrade.md says what holds instead"
_GONE = {
    "abandoned_compiles banner cache_ttl_refresh compile_lease_s compile_priority": _LEAVE_OUT,
    "host_store_mode job_uid max_streams redis_retry_max_s socket_mode": _LEAVE_OUT,
    "write_queue_bytes": _LEAVE_OUT,
    "audit_file_bytes audit_files": "leave it out, and have logrotate rename the file",
    "redis_sentinel_user redis_sentinel_password": "append ?sentinel_user=...&sentinel_password="
    "..., percent-encoded, to redis_url",
    "queue_bytes send_bytes send_pinned_bytes": "set receive_bytes, of which this is a share now",
    "admin_names": "have the proxy ask for localhost or for an IP address",
    "jwt_audience jwt_issuer jwt_keys": "write it into the policy file, below [jwt]",
    "open_health": "leave it out where callers need no identity; else write `open_health = true` at"
    " the top of the policy file, with rules: docs/reference/policy.md has those of no file",
    "python_mirror": "set UV_PYTHON_INSTALL_MIRROR, which uv reads, to the same mirror",
    "trusted_ca_file": "trust each daemon's key itself: `wasmkilnd keys trust`, or trusted_keys",
    "trace_ca_file": "set OTEL_EXPORTER_OTLP_CERTIFICATE to the same path",
    "trace_endpoint": "set OTEL_EXPORTER_OTLP_ENDPOINT to its URL for OTLP over HTTP: port 4318",
    "trace_headers_file": "set OTEL_EXPORTER_OTLP_HEADERS in the environment: name=value, ...",
    "trace_sample_ratio": "set OTEL_TRACES_SAMPLER to parentbased_traceidratio, and"
    " OTEL_TRACES_SAMPLER_ARG to it",
    "signing_cert_file": "leave it out, and have others trust the key of `wasmkilnd keys show`",
}
REMOVED: Final = {name: advice for names, advice in _GONE.items() for name in names.split()}
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

    exit_code = 2


def is_foreseen(failure: Exception) -> bool:
    """Return whether this package has defined the exception: its text is a sentence for people.

    All others are defects.
    """
    return type(failure).__module__.startswith("wasmkilnd.")


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and where each value came from, by field.

    An origin is ``flag --listen``, ``env WASMKILN_LISTEN``, ``file /x/y.toml`` or ``default``.
    """

    settings: Settings
    origins: Mapping[str, str]


def load(
    flags: Mapping[str, FlagValue], environ: Mapping[str, str], file: Path | None = None
) -> LoadedSettings:
    """Return the settings: flag over environment over file over default.

    ``flags`` holds those that were given, by field name. ``file`` is a TOML file;
    without it, the one that WASMKILN_CONFIG names, if any. Raises ConfigError.
    """
    fields = Settings.model_fields
    from_file, file_origin = _read_file(environ, file)
    named = {env_name(field): field for field in fields}
    ours = [name for name, value in environ.items() if _is_ours(name, value)]
    problems = _unknown(from_file, fields, file_origin)
    problems += _unknown(ours, [*named, CONFIG_ENV], "the environment")
    problems += _unknown(flags, fields, "the command line")
    given = {name: (value, file_origin) for name, value in from_file.items()}
    given |= {named[name]: (environ[name], f"env {name}") for name in ours if name in named}
    given |= {name: (value, f"flag {flag_name(name)}") for name, value in flags.items()}
    values = {name: value for name, (value, _) in given.items() if name in fields}
    origins = {field: given.get(field, ("", "default"))[1] for field in fields}
    for field, name in _from_upstash(values, environ).items():
        values[field], origins[field] = environ[name], f"env {name}"
    settings = None
    try:
        if "state_dir" not in values:
            values["state_dir"] = schema.default_state_dir(environ)
        settings = Settings.model_validate(values)
        wrong = dict(list(settings.conflicts())[:1])
    except RuntimeError:
        wrong = {"state_dir": f"this user has no home directory: set {env_name('state_dir')}"}
    except ValidationError as error:
        wrong = by_place(error, steps=1, why=functools.partial(_why, values))
    problems += [f"{field} ({origins[field]}): {why}" for field, why in wrong.items()]
    if problems or settings is None:
        # From None: the cause holds every value, secrets included.
        raise ConfigError("\n".join(problems)) from None
    return LoadedSettings(settings, origins)


def _is_ours(name: str, value: str) -> bool:
    foreign = _FOREIGN.fullmatch(name) or _KUBERNETES.fullmatch(f"{name}={value}")
    return name.startswith(ENV_PREFIX) and not foreign


def _read_file(environ: Mapping[str, str], file: Path | None) -> tuple[dict[str, Any], str]:
    named_by = "--config" if file else CONFIG_ENV
    if not (name := file or environ.get(CONFIG_ENV)):
        return {}, ""
    try:
        file = schema.expanded(name)
        return schema.parse_toml(file.read_bytes().decode()), f"file {file}"
    except OSError as error:
        why = error.strerror
    except UnicodeDecodeError:
        why = "it is not UTF-8 text"
    except ValueError as error:
        why = str(error)
    raise ConfigError(f"cannot read file {name} (named by {named_by}): {why}") from None


def _unknown(names: Iterable[str], known: Iterable[str], origin: str) -> list[str]:
    removed = REMOVED | {env_name(field): advice for field, advice in REMOVED.items()}
    problems = []
    for name in names:
        if name in removed:
            problems.append(f"{name} in {origin} is no longer a setting: {removed[name]}")
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {close[0]}?" if close else "see docs/reference/configuration.md"
            problems.append(f"{name} in {origin} is not a setting: {advice}")
    return problems


def _from_upstash(given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable to take for each setting that ``given`` leaves open.

    A token is taken for a REST URL only: any other server must not see it.
    """
    url, taken = given.get("redis_url"), {}
    if url is None and (name := next(filter(environ.get, _UPSTASH_URLS), "")):
        taken["redis_url"], url = name, environ[name]
    rest = re.match(r"\s*https?://[^@]*$", str(url))
    has_token = given.get("redis_password") or given.get("redis_password_file")
    if rest and not has_token and (name := next(filter(environ.get, _UPSTASH_TOKENS), "")):
        taken["redis_password"] = name
    return taken


def _why(values: Mapping[str, object], detail: ErrorDetails) -> str:
    """Return what is wrong with a value, which is shown if it is no secret."""
    field, what = str(detail["loc"][0]), in_words(detail)
    is_secret = Settings.model_fields[field].annotation in (RedisUrl, SecretStr)
    if is_secret or detail["type"] == "value_error":
        return what
    about = detail.get("ctx", {})
    for bound in {"gt", "ge", "le"} & about.keys():
        what = what.replace(str(about[bound]), str(written(field, about[bound])))
    return f"{values[field]!r} is not allowed: {what}"


# What a reload finds.


def changes(old: Settings, new: Settings) -> dict[str, tuple[object, object]]:
    """Return the settings that differ, in the schema's order, with their old and new values.

    These are as a person writes them, with secrets masked.
    """
    differ = [each for each in Settings.model_fields if getattr(old, each) != getattr(new, each)]
    was, now = ([written(each, _plain(it, each)) for each in differ] for it in (old, new))
    return dict(zip(differ, zip(was, now, strict=True), strict=True))


# The command line flags.


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add a flag for every setting, and ``--config``, to a click command.

    The command receives ``flags``, a dict by field name of those that were given, and ``config``, a
    path or None: the first and last arguments of ``load``. click does not check values: ``load``
    reports the mistakes of every layer in the same words, and says for the flag of a removed
    setting what to do instead.
    """
    fields = [field for field in Settings.model_fields if schema.has_flag(field)]

    @functools.wraps(command)
    def decorated(*args: Any, **given: Any) -> Any:
        values = {field: given.pop(field) for field in (*fields, *REMOVED)}
        flags = {field: value for field, value in values.items() if value not in (None, ())}
        return command(*args, flags=flags, **given)

    for field in REMOVED:
        names = (flag_name(field), f"--no-{flag_name(field)[2:]}", field)
        click.option(*names, hidden=True, is_flag=False, flag_value="")(decorated)
    # A decorator that comes later shows earlier in the help.
    for field in reversed(fields):
        _option(field)(decorated)
    told = f"A TOML file with settings.  [env: {CONFIG_ENV}]"
    click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help=told)(decorated)
    return decorated


def _option(field: str) -> Decorator:
    info, flag = Settings.model_fields[field], flag_name(field)
    text = f"{info.description}  [env: {env_name(field)}; default: {_default(field) or '-'}]"
    if info.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", field, default=None, help=text)
    is_choice = get_origin(info.annotation) is Literal
    metavar = "|".join(get_args(info.annotation)) if is_choice else field.rpartition("_")[2].upper()
    repeatable = get_origin(info.annotation) is tuple
    return click.option(flag, field, type=str, multiple=repeatable, metavar=metavar, help=text)


# Settings for people and scripts: as TOML, as JSON, and as the reference page.


def render(loaded: LoadedSettings) -> str:
    """Return one line ``key = value  # origin`` per setting: valid TOML, secrets masked."""
    lines = []
    for field, told in _told(loaded).items():
        value, in_force = written(field, told["value"]), written(field, told["in_force"])
        note = "" if in_force == value else f"; {in_force} in force"
        lines.append(f"{field} = {_toml(value)}  # {_toml(told['origin'])[1:-1]}{note}\n")
    return "".join(lines)


def as_json(loaded: LoadedSettings) -> str:
    """Return a JSON object: by field ``value``, ``origin`` and ``in_force``, secrets masked.

    Sizes are in bytes and durations in seconds. ``in_force`` differs from ``value``
    where 0 or auto stands for what the machine has.
    """
    return json.dumps(_told(loaded), indent=2)


def _told(loaded: LoadedSettings) -> dict[str, dict[str, Any]]:
    told = {}
    for field, origin in loaded.origins.items():
        value, in_force = _plain(loaded.settings, field), None
        if value in (0, AUTO):
            in_force = getattr(loaded.settings, f"effective_{field}", None)
        told[field] = {"value": value, "origin": origin, "in_force": in_force or value}
    return told


def reference() -> str:
    """Return the table of docs/reference/configuration.md."""
    rows = ["| key | environment | flag | default | live | meaning |", "|---|---|---|---|---|---|"]
    for field, info in Settings.model_fields.items():
        default = f"`{_default(field)}`" if _default(field) else "(empty)"
        flag = f"`{flag_name(field)}`" if schema.has_flag(field) else "none: it is a secret"
        live = "yes" if schema.is_live(field) else ""
        names = f"`{field}` | `{env_name(field)}` | {flag}"
        rows.append(f"| {names} | {default} | {live} | {info.description} |")
    return "\n".join([*rows, ""])


def _default(field: str) -> str:
    """Return a setting's default as the documentation writes it, the same on every machine."""
    if field == "state_dir":
        return "$XDG_STATE_HOME/wasmkiln, else ~/.local/state/wasmkiln"
    if (info := Settings.model_fields[field]).default_factory:
        return "by the machine"
    value = info.default
    text = ",".join(value) if isinstance(value, tuple) else str(written(field, value))
    return text.lower() if isinstance(value, bool) else text


def _plain(settings: Settings, field: str) -> object:
    value = getattr(settings, field)
    return str(value) if isinstance(value, SecretStr | Path) else value


def _toml(value: object) -> str:
    # JSON's values are TOML's too, but for one control character, and for halves of surrogate
    # pairs, by which Python represents a file name that is not UTF-8.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
