"""Read a policy from its TOML file, and say in words what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic_core import ErrorDetails

from wasmkilnd.access.policy import Claim, Pattern, Policy, Rule
from wasmkilnd.access.unusable import AccessUnusable, read
from wasmkilnd.model import NAMESPACE_NAME, NamespaceLimits, Role
from wasmkilnd.setting_values import Size, parse_toml

_ANONYMOUS = "anonymous"
_KINDS = ("token:", "spiffe://", "dns:", "jwt:", "unix:")
_JWT = "jwt:"
_GONE = {
    "calls": "write calls_per_minute instead",
    "bytes_in_flight": "leave it out: each caller has its share of receive_bytes",
    "queue_share": "leave it out: callers take turns in the queue",
    "cpu_seconds_per_hour": "write compiles_per_minute instead: compile_cpu_s bounds each",
    "bytes_kept": "write stored_bytes_per_hour instead",
}
"""Quotas of earlier releases, and what to do about them."""


def read_policy(path: Path) -> Policy:
    """Return the policy of a file. Raises AccessUnusable with a line for each problem."""
    try:
        text = read("policy", path).decode()
        content = parse_toml(text)
    except FileNotFoundError:
        raise _refused(path, "there is no such file") from None
    except UnicodeDecodeError:
        raise _refused(path, "it is not UTF-8 text") from None
    except ValueError as mistake:
        raise _refused(path, str(mistake)) from None
    try:
        found = _File.model_validate(content)
    except ValidationError as error:
        # Of a value that may have several types, the first problem is enough.
        wrong: dict[str, str] = {}
        for detail in error.errors(include_input=False, include_url=False):
            wrong.setdefault(_where(detail["loc"]), _why(detail))
        raise _all_refused(path, [where + why for where, why in wrong.items()]) from None
    policy = found.policy()
    if problems := list(_disagreements(policy, found)):
        raise _all_refused(path, problems)
    return policy


def _identity(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("expected a text, or a list of texts")
    text = value.strip()
    if text != _ANONYMOUS and not text.startswith(_KINDS):
        raise ValueError(
            f"{text[:100]!r} is no identity: write token:NAME, spiffe://DOMAIN/PATH, dns:HOST,"
            " jwt:SUBJECT, unix:/PATH or anonymous; * stands for any text"
        )
    if text.startswith("dns:"):
        text = text.lower()
    return text


def _identities(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _namespace(value: object) -> object:
    if not isinstance(value, str) or (value and not NAMESPACE_NAME.fullmatch(value)):
        raise ValueError(
            f"{str(value)[:100]!r} is no name of a namespace: write 1 to 63 lowercase letters,"
            " digits or hyphens"
        )
    return value


def _role(value: object) -> object:
    known = [role.value for role in Role]
    if value not in known:
        raise ValueError(f"{str(value)[:100]!r} is no role: write one of {', '.join(known)}")
    return value


_Text: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_Identity: TypeAlias = Annotated[str, BeforeValidator(_identity), Field(max_length=2048)]
_QuotaName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
_Number: TypeAlias = Annotated[float, Field(gt=0, le=1e9, strict=True)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class _RuleTable(_Table):
    identity: Annotated[list[_Identity], BeforeValidator(_identities), Field(max_length=1000)] = []
    claims: Annotated[dict[_Text, Claim], Field(max_length=50)] = {}
    roles: list[Annotated[Role, BeforeValidator(_role)]] = []
    namespace: Annotated[str | None, BeforeValidator(_namespace)] = None
    quota: str = ""

    def rule(self) -> Rule:
        names = self.identity or ([f"{_JWT}*"] if self.claims else [])
        return Rule(
            tuple(map(Pattern, names)),
            frozenset(self.roles),
            self.namespace,
            self.quota,
            self.claims,
        )


class _NamespaceTable(_Table):
    memory_bytes: Size | None = None
    host_store_bytes: Size | None = None

    def limits(self) -> NamespaceLimits:
        return NamespaceLimits(self.memory_bytes, self.host_store_bytes)


class _QuotaTable(_Table):
    calls_per_minute: _Number | None = None
    compiles_per_minute: _Number | None = None
    stored_bytes_per_hour: Size | None = None


class _File(_Table):
    rule: Annotated[list[_RuleTable], Field(max_length=10_000)] = []
    namespace: dict[Annotated[str, BeforeValidator(_namespace)], _NamespaceTable] = {}
    quota: Annotated[dict[_QuotaName, _QuotaTable], Field(max_length=1000)] = {}

    def policy(self) -> Policy:
        limits = {name: table.limits() for name, table in self.namespace.items()}
        for row in self.rule:
            if row.namespace:
                limits.setdefault(row.namespace, NamespaceLimits())
        quotas = {name: table.model_dump(exclude_none=True) for name, table in self.quota.items()}
        return Policy([row.rule() for row in self.rule], limits, quotas)


def _disagreements(policy: Policy, found: _File) -> Iterator[str]:
    """Yield what is wrong across tables."""
    for number, row in enumerate(found.rule, start=1):
        if not row.identity and not row.claims:
            yield f"rule {number}: it is about nobody: write identity or claims"
        elif row.claims and not all(name.startswith(_JWT) for name in row.identity):
            yield f"rule {number}: claims are those of jwt: identities, and it names others too"
        if row.quota and row.quota not in policy.quotas:
            yield f"rule {number}: there is no [quota.{row.quota}]{_known(policy.quotas)}"
    if "" in policy.namespaces:
        yield "namespace: the default namespace has the sizes of the settings"


def _known(names: Mapping[str, object]) -> str:
    return f"; there is {', '.join(sorted(names)[:20])}" if names else ""


def _where(loc: tuple[int | str, ...]) -> str:
    """Return the place of a problem: "rule 2: roles: "."""
    match loc:
        case ("rule", int(index), *rest):
            place = [f"rule {index + 1}"]
        case ("namespace" | "quota" as table, str(name), *rest):
            place = [f"{table}.{name}"]
        case _:
            place, rest = [], list(loc)
    place += [str(step) for step in rest if isinstance(step, str) and step != "[key]"][:1]
    return "".join(f"{step}: " for step in place)


def _why(detail: ErrorDetails) -> str:
    if detail["type"] == "value_error":
        return str(detail.get("ctx", {})["error"])
    if detail["type"] == "extra_forbidden":
        gone = _GONE.get(str(detail["loc"][-1])) if detail["loc"][0] == "quota" else None
        return (
            f"there is no such quota any more: {gone}" if gone else "the daemon knows no such key"
        )
    return detail["msg"].replace("Input should", "it should")


def _refused(path: Path, why: str) -> AccessUnusable:
    return AccessUnusable(f"cannot use policy {path}: {why}")


def _all_refused(path: Path, problems: Sequence[str]) -> AccessUnusable:
    return AccessUnusable("\n".join(str(_refused(path, why)) for why in problems[:20]))
