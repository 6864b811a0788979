"""The policy: which identity has which roles, which namespace and which quota.

It comes from a TOML file (``read_policy``), whose rules are the models here. Whatever is wrong with
the file is said in words, a line for each problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, TypeAlias
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from wasmkilnd import model
from wasmkilnd.files.operator_files import CannotUse, read
from wasmkilnd.mistakes import in_words, sentences
from wasmkilnd.quota import Limits
from wasmkilnd.settings import GIB, Size, expanded, parse_toml

# The name of callers without credentials, where the policy lets them in.
ANONYMOUS = "anonymous"
# What a verified JSON Web Token says.
Claims: TypeAlias = Mapping[str, object]

_NO_CLAIMS: Claims = MappingProxyType({})
_NOBODY = model.Identity("", frozenset())
_KINDS = ("token:", "spiffe://", "dns:", "jwt:", "unix:")
# Tables and quotas of earlier releases, and what to do about them.
_GONE = {
    "namespace": "leave it out: namespaces have equal parts of memory and host store",
    "calls": "write calls_per_minute instead",
    "bytes_in_flight": "leave it out: each caller has its share of receive_bytes",
    "queue_share": "leave it out: callers take turns in the queue",
    "cpu_seconds_per_hour": "write compiles_per_minute instead: compile_cpu_s bounds each",
    "bytes_kept": "write stored_bytes_per_hour instead",
}


def _identity(value: object) -> object:
    text = value.strip() if isinstance(value, str) else ""
    if text != ANONYMOUS and not text.startswith(_KINDS):
        raise ValueError(
            f"{str(value)[:100]!r} is no identity: write token:NAME, spiffe://DOMAIN/PATH,"
            " dns:HOST, jwt:SUBJECT, unix:/PATH or anonymous; * stands for any text"
        )
    return text.lower() if text.startswith("dns:") else text


def _several(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _keys(value: object) -> object:
    if isinstance(value, str) and "://" in value:
        url = urlsplit(value)
        if url.scheme != "https" or not url.hostname or "@" in url.netloc:
            raise ValueError("write the path of a file, or an https:// URL without a password")
    elif isinstance(value, str) and value:
        return str(expanded(value).absolute())
    return value


_Identity: TypeAlias = Annotated[str, BeforeValidator(_identity), Field(max_length=2048)]
_Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
_Namespace: TypeAlias = Annotated[str, Field(pattern=f"^({model.NAMESPACE_NAME.pattern})?$")]
_QuotaName: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
_Number: TypeAlias = Annotated[float, Field(ge=0.001, le=1e9, strict=True)]


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, frozen=True
    )


class Rule(_Table):
    """Which identities get what.

    - ``identity``: their names, in which ``*`` stands for any text.
    - ``claims``: what a JSON Web Token must say too.
    - ``roles``: what it gives, without the roles that these include.
    - ``namespace``: None where the rule names none.
    - ``max_module_bytes``: the largest module that they may send; None for that of the setting.
    """

    identity: Annotated[
        tuple[_Identity, ...], BeforeValidator(_several), Field(max_length=1000)
    ] = ()
    claims: Annotated[dict[_Text, str | int | bool], Field(max_length=50)] = {}
    roles: tuple[model.Role, ...] = ()
    namespace: _Namespace | None = None
    quota: str = ""
    max_module_bytes: Annotated[Size, Field(gt=0, le=GIB)] | None = None

    def matches(self, name: str, claims: Claims) -> bool:
        """Return whether the rule is about the identity ``name``."""
        names = self.identity or ("jwt:*",)
        return any(_fits(pattern, name) for pattern in names) and all(
            _says(claims.get(claim), wanted, in_words=claim == "scope")
            for claim, wanted in self.claims.items()
        )


class _QuotaTable(_Table):
    calls_per_minute: _Number | None = None
    compiles_per_minute: _Number | None = None
    stored_bytes_per_hour: Annotated[Size, Field(gt=0)] | None = None


class Jwt(_Table):
    """Whose JSON Web Tokens callers may send.

    - ``audience``: of which a token must have one.
    - ``keys``: the path or the URL of the issuer's JSON Web Key Set.
    """

    issuer: _Text
    audience: Annotated[
        tuple[_Text, ...], BeforeValidator(_several), Field(min_length=1, max_length=100)
    ]
    keys: Annotated[str, BeforeValidator(_keys), Field(min_length=1, max_length=2048)]

    @property
    def file(self) -> Path | None:
        """The file of the keys; None for a URL."""
        return None if "://" in self.keys else Path(self.keys)


class _File(_Table):
    open_health: Annotated[bool, Field(strict=True)] = False
    jwt: Jwt | None = None
    rule: Annotated[tuple[Rule, ...], Field(max_length=10_000)] = ()
    quota: Annotated[dict[_QuotaName, _QuotaTable], Field(max_length=1000)] = {}


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may do what. The first rule that matches an identity counts, and no other.

    - ``namespaces``: every one that the policy or a token names, beside the default one.
    - ``quotas``: by name.
    - ``open_health``: whether health needs no identity.
    """

    rules: Sequence[Rule] = ()
    namespaces: frozenset[str] = frozenset()
    quotas: Mapping[str, Limits] = field(default_factory=dict)
    open_health: bool = False
    jwt: Jwt | None = None

    def identity(
        self, name: str, claims: Claims = _NO_CLAIMS, own: model.Identity = _NOBODY
    ) -> model.Identity:
        """Return the identity of this name.

        ``own`` has the roles of its token, which count beside those of the rule, and the token's
        namespace, which counts where the rule names none.
        """
        rule = next((rule for rule in self.rules if rule.matches(name, claims)), Rule())
        namespace = own.namespace if rule.namespace is None else rule.namespace
        roles = own.roles.union(rule.roles)
        roles |= {model.Role.READ} if model.Role.COMPILE in roles else set()
        return model.Identity(name, roles, namespace, rule.quota, rule.max_module_bytes or 0)

    @property
    def module_bytes(self) -> int:
        """The largest module that any rule allows; 0 if none says."""
        return max((rule.max_module_bytes or 0 for rule in self.rules), default=0)

    def names(self, name: str) -> bool:
        """Return whether a rule without claims is about the identity ``name``."""
        return any(rule.matches(name, {}) for rule in self.rules)


def default_policy() -> Policy:
    """Return the policy of a daemon without a policy file.

    Health is open: the first token must not fail the probes of a pod or container, which have none.
    """
    certificates = Rule(identity=("spiffe://*", "dns:*"), roles=(model.Role.COMPILE,))
    rules = certificates, Rule(identity=("unix:*",), roles=tuple(model.Role))
    return Policy(rules, open_health=True)


def read_policy(path: Path) -> Policy:
    """Return the policy of a file. Raises CannotUse with a line for each problem."""
    try:
        found = _File.model_validate(parse_toml(read("policy", path).decode()))
        problems = list(_disagreements(found))
    except ValidationError as error:
        problems = sentences(error, _why)
    except UnicodeDecodeError:
        problems = ["it is not UTF-8 text"]
    except ValueError as mistake:
        problems = [str(mistake)]
    if problems:
        said = [f"cannot use policy {path}: {why}" for why in problems[:20]]
        raise CannotUse("\n".join(said)) from None
    namespaces = frozenset(rule.namespace for rule in found.rule if rule.namespace)
    quotas = {name: table.model_dump(exclude_none=True) for name, table in found.quota.items()}
    return Policy(found.rule, namespaces, quotas, found.open_health, found.jwt)


def _fits(pattern: str, name: str) -> bool:
    """Return whether ``name`` is one that ``pattern`` stands for; only ``*`` is special in it."""
    if "*" not in pattern:
        return name == pattern
    # It never goes back to an earlier star, so callers cannot choose names that take long.
    return fnmatchcase(name, re.sub(r"([?[])", r"[\1]", pattern))


def _says(said: object, wanted: str | int | bool, *, in_words: bool) -> bool:
    """Return whether a claim equals ``wanted``, or is a list that contains it.

    ``scope`` is a list in one text, with spaces between its words (RFC 8693).
    """
    if in_words and isinstance(said, str):
        said = said.split(" ")
    # To Python, True equals 1.
    said = said if isinstance(said, list) else [said]
    return any(type(each) is type(wanted) and each == wanted for each in said)


def _disagreements(found: _File) -> Iterator[str]:
    """Yield what is wrong across tables."""
    for number, rule in enumerate(found.rule, start=1):
        if not rule.identity and not rule.claims:
            yield f"rule {number}: it is about nobody: write identity or claims"
        elif rule.claims and not all(name.startswith("jwt:") for name in rule.identity):
            yield f"rule {number}: claims are those of jwt: identities, and it names others too"
        if rule.quota and rule.quota not in found.quota:
            known = f"; there is {', '.join(sorted(found.quota)[:20])}" if found.quota else ""
            yield f"rule {number}: there is no [quota.{rule.quota}]{known}"


def _why(detail: ErrorDetails) -> str:
    what = detail["loc"][0]
    is_unknown = detail["type"] == "extra_forbidden" and what in ("quota", "namespace")
    if is_unknown and (gone := _GONE.get(str(detail["loc"][-1]))):
        return f"there is no such {'quota' if what == 'quota' else 'table'} any more: {gone}"
    return in_words(detail)
