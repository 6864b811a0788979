"""Merge flags, environment and file into settings, and remember where each value came from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from wasmkilnd.config.schema import ENV_PREFIX, Settings, env_name, flag_name
from wasmkilnd.config.upstash import from_upstash
from wasmkilnd.config.values.quantity import written
from wasmkilnd.config.values.redis_url import RedisUrl
from wasmkilnd.config.values.toml_text import parse_toml
from wasmkilnd.config.values.types import default_state_dir, expanded

CONFIG_ENV: Final = ENV_PREFIX + "CONFIG"
"""The variable that names the TOML file."""
DEFAULT: Final = "default"

FlagValue = str | bool | Sequence[str]

REMOVED: Final = {
    "abandoned_compiles": "leave it out: a compilation that has begun is finished and stored",
    "compile_priority": "leave it out: compilations run behind everything else",
    "trusted_ca_file": "trust each daemon's key itself: `wasmkilnd keys trust`, or trusted_keys",
    "signing_cert_file": "leave it out, and have others trust the key of `wasmkilnd keys show`",
}
"""By field, the settings that are gone, and what to do instead."""

# No message shows values of these types.
_SECRETS = (RedisUrl, SecretStr)
# Variables of the same prefix that the client and the tests use.
_FOREIGN = re.compile(
    r"WASMKILN_(ADDRESS|TIMEOUT_S|PROFILE|PROFILES_FILE|TLS|CA_FILE|SERVER_NAME|CLIENT_CERT_FILE"
    r"|CLIENT_KEY_FILE|TOKEN|TOKEN_FILE|TEST_.*)"
)
# What Kubernetes sets in every pod for a service called wasmkiln, or wasmkiln-something.
_KUBERNETES = re.compile(
    r"WASMKILN_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?"
    r"|PORT_[0-9]+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)"
)
_KUBERNETES_PORT = re.compile(r"WASMKILN_(\w+_)?PORT")
_KUBERNETES_PORT_VALUE = re.compile(r"(tcp|udp|sctp)://.*")


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
    values: dict[str, Any] = {}
    origins = dict.fromkeys(fields, DEFAULT)
    problems: list[str] = []

    def layer(given: Mapping[str, Any], origin_of: Mapping[str, str]) -> None:
        values.update(given)
        origins.update(origin_of)

    from_file, file_origin = _read_file(environ, file)
    problems += _unknown(from_file, fields, file_origin)
    known = {key: value for key, value in from_file.items() if key in fields}
    layer(known, dict.fromkeys(known, file_origin))

    variables = {env_name(field): field for field in fields}
    given = {name: value for name, value in environ.items() if name.startswith(ENV_PREFIX)}
    problems += _unknown(
        (name for name, value in given.items() if not _is_foreign(name, value)),
        [*variables, CONFIG_ENV],
        "the environment",
    )
    from_env = {field: given[name] for name, field in variables.items() if name in given}
    layer(from_env, {field: f"env {env_name(field)}" for field in from_env})

    problems += _unknown(flags, fields, "the command line")
    from_flags = {field: value for field, value in flags.items() if field in fields}
    layer(from_flags, {field: f"flag {flag_name(field)}" for field in from_flags})

    for field, name in from_upstash(values, environ).items():
        layer({field: environ[name]}, {field: f"env {name}"})

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
    named_by = "--config"
    if file is None:
        named_by = CONFIG_ENV
        name = environ.get(CONFIG_ENV, "")
        if not name:
            return {}, ""
        try:
            file = expanded(name)
        except ValueError as failure:
            raise ConfigError(f"cannot read the file that {CONFIG_ENV} names: {failure}") from None
    origin = f"file {file}"
    try:
        return parse_toml(file.read_bytes().decode()), origin
    except OSError as error:
        raise ConfigError(f"cannot read {origin} (named by {named_by}): {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"cannot read {origin} (named by {named_by}): it is not UTF-8 text"
        ) from None
    except ValueError as error:
        raise ConfigError(f"cannot read {origin} (named by {named_by}): {error}") from None


def _is_foreign(name: str, value: str) -> bool:
    if _FOREIGN.fullmatch(name) or _KUBERNETES.fullmatch(name):
        return True
    # Look at the value too: WASMKILN_ADMIN_PORT=9464 is a mistake, and not from Kubernetes.
    return bool(_KUBERNETES_PORT.fullmatch(name) and _KUBERNETES_PORT_VALUE.fullmatch(value))


def _unknown(names: Iterable[str], known: Iterable[str], origin: str) -> list[str]:
    known = list(known)
    removed = REMOVED | {env_name(field): advice for field, advice in REMOVED.items()}
    problems = []
    for name in names:
        if name in known:
            continue
        if name in removed:
            problems.append(f"{name} in {origin} is no longer a setting: {removed[name]}")
            continue
        close = difflib.get_close_matches(name, known, n=1)
        known_ones = "docs/reference/configuration.md lists them all"
        advice = f"did you mean {close[0]}?" if close else known_ones
        problems.append(f"{name} in {origin} is not a setting: {advice}")
    return problems


def _explain(
    error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]
) -> list[str]:
    problems = []
    for detail in error.errors(include_input=False, include_url=False):
        context = detail.get("ctx", {})
        field = str(detail["loc"][0] if detail["loc"] else context.get("field", ""))
        if detail["type"] == "value_error":
            what = str(context["error"])
        elif "field" in context or Settings.model_fields[field].annotation in _SECRETS:
            what = detail["msg"]
        else:
            what = f"{values[field]!r} is not allowed: it {_allowed(field, detail)}"
        problems.append(f"{field} ({origins[field]}): {what}")
    return problems


def _allowed(field: str, detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "greater_than":
            return f"must be more than {written(field, context['gt'])}"
        case "greater_than_equal":
            return f"must be at least {written(field, context['ge'])}"
        case "less_than_equal":
            return f"must be at most {written(field, context['le'])}"
        case "int_from_float":
            return "must be whole seconds"
    return detail["msg"].removeprefix("Input ")
