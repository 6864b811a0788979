"""Read all that says who may do what, from the settings and the files that they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wasmkilnd.access.policy import Policy, default_policy
from wasmkilnd.access.policy_file import MOST_NAMESPACES, read_policy
from wasmkilnd.access.tokens import Tokens, read_tokens
from wasmkilnd.access.unusable import AccessUnusable
from wasmkilnd.config.schema import Settings
from wasmkilnd.model import NamespaceLimits


@dataclass(frozen=True, slots=True)
class Sources:
    """What was read together and agrees."""

    policy: Policy
    """With the namespaces of tokens among its own."""
    tokens: Tokens | None
    """None where there is no file of them."""
    on: bool
    """Whether callers need an identity."""


def read_sources(settings: Settings) -> Sources:
    """Read and check everything. It may block: call it in a thread. Raises AccessUnusable."""
    policy = read_policy(Path(settings.policy_file)) if settings.policy_file else default_policy()
    tokens = read_tokens(settings.tokens_file)
    namespaces = dict(policy.namespaces)
    for token in tokens.all if tokens else ():
        if token.namespace:
            namespaces.setdefault(token.namespace, NamespaceLimits())
    if len(namespaces) > MOST_NAMESPACES:
        raise AccessUnusable(
            f"cannot serve {len(namespaces)} namespaces: policy and tokens may name"
            f" {MOST_NAMESPACES} together"
        )
    on = bool(
        settings.policy_file
        or settings.tls_client_ca_file
        or settings.jwt_issuer
        or tokens is not None
    )
    return Sources(replace(policy, namespaces=namespaces), tokens, on)


def files_of(settings: Settings) -> Sequence[Path]:
    """Return the files that ``read_sources`` reads, whether or not they exist."""
    policy = [Path(settings.policy_file)] if settings.policy_file else []
    return [settings.tokens_file, *policy]
