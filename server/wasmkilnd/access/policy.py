"""The policy: which identity has which roles, which namespace and which quota."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from wasmkilnd.model import (
    ALL_ROLES,
    DEFAULT_NAMESPACE,
    Identity,
    NamespaceLimits,
    Role,
    with_included,
)
from wasmkilnd.quota import Limits

Claim = str | int | bool
Claims = Mapping[str, object]
"""What a verified JSON Web Token says."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """The name of an identity, in which ``*`` stands for any text."""

    text: str

    def matches(self, name: str) -> bool:
        """Return whether ``name`` is one of those that the pattern stands for.

        The time is linear in both: callers choose names.
        """
        first, *others = self.text.split("*")
        if not others:
            return name == first
        *middle, last = others
        if not name.startswith(first):
            return False
        at, end = len(first), len(name) - len(last)
        for part in middle:
            found = name.find(part, at, max(at, end))
            if found < 0:
                return False
            at = found + len(part)
        return at <= end and name.endswith(last)


@dataclass(frozen=True, slots=True)
class Rule:
    """Which identities get what."""

    identities: Sequence[Pattern]
    roles: frozenset[Role] = frozenset()
    """What it gives, without the roles that these include; see ``with_included``."""
    namespace: str | None = None
    """None where the rule names none."""
    quota: str = ""
    claims: Mapping[str, Claim] = field(default_factory=dict)
    """What a JSON Web Token must say too."""

    def matches(self, name: str, claims: Claims) -> bool:
        """Return whether the rule is about the identity ``name``."""
        return any(pattern.matches(name) for pattern in self.identities) and all(
            _says(claims.get(claim), wanted, in_words=claim == "scope")
            for claim, wanted in self.claims.items()
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may do what. The first rule that matches an identity counts, and no other."""

    rules: Sequence[Rule] = ()
    namespaces: Mapping[str, NamespaceLimits] = field(default_factory=lambda: MappingProxyType({}))
    """Every namespace that the policy or a token names, beside the default one, by name."""
    quotas: Mapping[str, Limits] = field(default_factory=lambda: MappingProxyType({}))
    """By name."""

    def identity(
        self,
        name: str,
        claims: Claims = MappingProxyType({}),
        *,
        own_roles: frozenset[Role] = frozenset(),
        own_namespace: str = DEFAULT_NAMESPACE,
    ) -> Identity:
        """Return the identity of this name.

        ``own_roles`` are those of its token, which count beside those of the rule;
        ``own_namespace`` is the token's, which counts where the rule names none.
        """
        for rule in self.rules:
            if rule.matches(name, claims):
                namespace = own_namespace if rule.namespace is None else rule.namespace
                return Identity(name, with_included(rule.roles | own_roles), namespace, rule.quota)
        return Identity(name, with_included(own_roles), own_namespace)

    def names(self, name: str) -> bool:
        """Return whether a rule without claims is about the identity ``name``."""
        return any(rule.matches(name, {}) for rule in self.rules)


def default_policy() -> Policy:
    """Return the policy of a daemon without a policy file."""
    return Policy(
        (
            Rule((Pattern("spiffe://*"), Pattern("dns:*")), frozenset({Role.COMPILE})),
            Rule((Pattern("unix:*"),), ALL_ROLES),
        )
    )


def _says(said: object, wanted: Claim, *, in_words: bool) -> bool:
    """Return whether a claim equals ``wanted``, or is a list that contains it.

    ``scope`` is a list in one text, with spaces between its words (RFC 8693).
    """
    if isinstance(said, list):
        return any(_equal(each, wanted) for each in said)
    if in_words and isinstance(said, str):
        return wanted in said.split(" ")
    return _equal(said, wanted)


def _equal(said: object, wanted: Claim) -> bool:
    # To Python, True equals 1.
    return type(said) is type(wanted) and said == wanted
