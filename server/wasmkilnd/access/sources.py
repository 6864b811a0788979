"""Read all that says who may do what, from the settings and the files that they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias, TypeVar
from urllib.parse import urlsplit

from wasmkilnd.access.key_set import KeySet, read_key_set
from wasmkilnd.access.policy import Policy, default_policy
from wasmkilnd.access.policy_file import read_policy
from wasmkilnd.access.tokens import Tokens, read_tokens
from wasmkilnd.access.unusable import AccessUnusable, defect_in
from wasmkilnd.access.web_tokens import Issuer
from wasmkilnd.model import NamespaceLimits
from wasmkilnd.settings import Settings


@dataclass(frozen=True, slots=True)
class Sources:
    """What was read together and agrees."""

    policy: Policy
    """With the namespaces of tokens among its own."""
    tokens: Tokens | None
    """None where there is no file of them."""
    on: bool
    """Whether callers need an identity."""
    issuer: Issuer | None = None
    """Whose JSON Web Tokens count; None for nobody's."""
    keys: KeySet = field(default_factory=KeySet)
    """The keys of a file; those of a URL are fetched beside the calls."""
    keys_url: str = ""


_WebTokens: TypeAlias = tuple[Issuer | None, KeySet, str]
T = TypeVar("T")


def read_sources(settings: Settings) -> Sources:
    """Read and check everything. It may block: call it in a thread. Raises AccessUnusable."""
    tokens = read_tokens(settings.tokens_file)
    return _together(settings, _policy(settings), tokens, _web_tokens(settings))


def read_again(settings: Settings, before: Sources) -> tuple[Sources, Sequence[str]]:
    """Read everything; return it with what ``before`` has for each part that cannot be used.

    Return also why, a text for each such part. It may block: call it in a thread.
    """
    causes: list[str] = []

    def part(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except AccessUnusable as refusal:
            causes.append(str(refusal))
        except Exception as defect:  # a revoked token must not count on because of it
            causes.append(f"cannot read {what}: {defect_in(defect)}")
        return otherwise

    policy = part("the policy", lambda: _policy(settings), before.policy)
    if (policy.rules, policy.quotas) == (before.policy.rules, before.policy.quotas):
        # The same object: what identities have used is shown while their quotas are the same.
        policy = replace(policy, quotas=before.policy.quotas)
    tokens = part("the tokens", lambda: read_tokens(settings.tokens_file), before.tokens)
    web_tokens = part(
        "the keys of JSON Web Tokens",
        lambda: _web_tokens(settings),
        (before.issuer, before.keys, before.keys_url),
    )
    return _together(settings, policy, tokens, web_tokens), causes


def _policy(settings: Settings) -> Policy:
    return read_policy(Path(settings.policy_file)) if settings.policy_file else default_policy()


def _together(
    settings: Settings, policy: Policy, tokens: Tokens | None, web_tokens: _WebTokens
) -> Sources:
    namespaces = dict(policy.namespaces)
    for token in tokens.all if tokens else ():
        if token.namespace:
            namespaces.setdefault(token.namespace, NamespaceLimits())
    issuer, keys, keys_url = web_tokens
    on = bool(
        settings.policy_file
        or settings.tls_client_ca_file
        or settings.jwt_issuer
        or tokens is not None
    )
    policy = replace(policy, namespaces=namespaces)
    return Sources(policy, tokens, on, issuer, keys, keys_url)


def files_of(settings: Settings) -> Sequence[Path]:
    """Return the files that ``read_sources`` reads, whether or not they exist."""
    named = [settings.policy_file, settings.jwt_keys if settings.jwt_issuer else ""]
    return [settings.tokens_file, *(_path(name) for name in named if name and not _is_url(name))]


def _web_tokens(settings: Settings) -> _WebTokens:
    named = {"jwt_issuer": settings.jwt_issuer, "jwt_audience": settings.jwt_audience}
    named["jwt_keys"] = settings.jwt_keys
    missing = [name for name, value in named.items() if not value]
    if len(missing) == len(named):
        return None, KeySet(), ""
    if missing:
        raise AccessUnusable(
            f"cannot accept JSON Web Tokens: {missing[0]} is not set; jwt_issuer, jwt_audience and"
            " jwt_keys are needed together"
        )
    issuer = Issuer(settings.jwt_issuer, settings.jwt_audience)
    if not _is_url(settings.jwt_keys):
        return issuer, read_key_set(_path(settings.jwt_keys)), ""
    url = urlsplit(settings.jwt_keys)
    if url.scheme != "https" or not url.hostname or url.username or url.password:
        raise AccessUnusable(
            "cannot use jwt_keys: write the path of a file, or a URL that begins with https:// and"
            " has no user and password"
        )
    return issuer, KeySet(), settings.jwt_keys


def _is_url(name: str) -> bool:
    return "://" in name


def _path(name: str) -> Path:
    return Path(name).expanduser().absolute()
