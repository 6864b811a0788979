"""The guard: who calls, and whether they may. ``Access`` is all that it decides by.

Every RPC and every HTTP request passes ``AccessGuard.admit`` before the daemon reads more of it.
``RPCS``, ``PATHS`` and ``ARTIFACTS`` say what each needs; a path without a row is refused. A token
counts before the certificate of its connection, both before the socket; a certificate is looked at
even beside a token. A credential is checked once and then remembered, until it expires or anything
of this changes: an ``Access`` is replaced whole, and nothing that was remembered outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wasmkilnd import errors, model
from wasmkilnd.access.jwt import Issuer, fetch_keys, read_issuer, refused
from wasmkilnd.access.policy import ANONYMOUS, Policy, default_policy, read_policy
from wasmkilnd.access.tls import Certificates, certificate_name
from wasmkilnd.access.tokens import PREFIX, Tokens, read_tokens
from wasmkilnd.files.operator_files import CannotUse, defect_in
from wasmkilnd.model import Identity, Role, Transport
from wasmkilnd.settings import EMBEDDED, NONE, Settings


@dataclass(frozen=True, slots=True)
class Need:
    """What an RPC or a path needs.

    - ``role``: the role that the caller needs; None where any identity will do.
    - ``health``: whether ``open_health`` opens it to everybody.
    - ``whole_daemon``: whether it acts on all namespaces, so that only the default one's callers
      may.
    """

    role: Role | None = None
    health: bool = False
    whole_daemon: bool = False


_ANY, _HEALTH, _ADMIN, _METRICS = Need(), Need(health=True), Need(Role.ADMIN), Need(Role.METRICS)
_READ = Need(Role.READ)
_METRICS_OF_ALL = Need(Role.METRICS, whole_daemon=True)
_REFLECTION = "ServerReflection/ServerReflectionInfo"


def _each(prefix: str, names: str, need: Need) -> Mapping[str, Need]:
    return {prefix + name: need for name in names.split()}


# Uploading and compiling need COMPILE: the services check that, which know the request.
RPCS: Mapping[str, Need] = {
    **_each("/wasmkiln.v1.ModuleService/", "Load Upload QueryUpload", Need(Role.COMPILE)),
    **_each("/wasmkiln.v1.ModuleService/", "Compile FindMissing", _READ),
    **_each("/wasmkiln.v1.ModuleService/", "GetCapabilities", _ANY),
    **_each("/wasmkiln.v1.ModuleService/", "Stats", _METRICS),
    **_each("/wasmkiln.v1.AdminService/", "Evict Pin Unpin ListPins ListJobs EndJob", _ADMIN),
    **_each("/wasmkiln.v1.AdminService/", "ListQuarantine ReleaseQuarantine", _ADMIN),
    **_each("/wasmkiln.v1.AdminService/", "Drain UndoDrain", Need(Role.ADMIN, whole_daemon=True)),
    **_each("/grpc.health.v1.Health/", "Check Watch", _HEALTH),
    **_each("/grpc.channelz.v1.Channelz/", "GetTopChannels GetServers GetServer", _METRICS_OF_ALL),
    **_each("/grpc.channelz.v1.Channelz/", "GetServerSockets GetChannel", _METRICS_OF_ALL),
    **_each("/grpc.channelz.v1.Channelz/", "GetSubchannel GetSocket", _METRICS_OF_ALL),
    **_each("/grpc.reflection.", f"v1.{_REFLECTION} v1alpha.{_REFLECTION}", _ANY),
}
PATHS: Mapping[str, Need] = {
    "/": _METRICS_OF_ALL,
    **_each("/status", ".json /page.css /page.js /icon.svg", _METRICS_OF_ALL),
    **_each("/", "metrics status", _METRICS_OF_ALL),
    **_each("/", "healthz readyz", _HEALTH),
}
# At ``http_listen``; the first stands for every path that there is not.
ARTIFACTS: Mapping[str, Need] = {
    "/v1": _ANY,
    **_each("/v1/", "modules/{sha256} artifacts/{sha256}/{fingerprint}", _READ),
    **_each("/v1/artifacts/{sha256}/{fingerprint}/", "attestation header", _READ),
}
_NEEDS: Mapping[str, Need] = {**RPCS, **PATHS, **ARTIFACTS}

_ANONYMOUS_OF_HEALTH = Identity(ANONYMOUS, frozenset())
_REMEMBERED = 4096
_BEARER = re.compile(r"bearer +([!-~]+) *", re.IGNORECASE)
_FOREVER = float("inf")
_FETCH_EVERY_S = 300.0
_FETCH_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Access:
    """All that says who may do what, read together. Another one whenever anything changes.

    - ``policy``: with the namespaces of tokens among its own.
    - ``tokens``: None where there is no file of them.
    - ``on``: whether callers need an identity.
    - ``issuer``: whose JSON Web Tokens count; None for nobody's.
    """

    policy: Policy = field(default_factory=Policy)
    tokens: Tokens | None = None
    on: bool = False
    issuer: Issuer | None = None

    def __str__(self) -> str:
        """Return how many rules and tokens there are: a comment, so that `config` stays TOML."""
        if not self.on:
            return "# access: everybody may do everything: there is no source of identities"
        tokens = len(self.tokens.all) if self.tokens else 0
        counts = f"{len(self.policy.rules):,} rules, {tokens:,} tokens"
        return f"# access: every caller needs an identity: {counts}"


def _policy(settings: Settings) -> Policy:
    return read_policy(Path(settings.policy_file)) if settings.policy_file else default_policy()


def read_access(settings: Settings, before: Access | None = None) -> tuple[Access, Sequence[str]]:
    """Read everything but the keys of a URL. It may block. Raises CannotUse.

    With ``before``, keep its part where one cannot be used, and return why: a text for each.
    """
    found: dict[str, Any] = {}
    causes: list[str] = []
    parts: Mapping[str, Callable[[], Any]] = {
        "policy": lambda: _policy(settings),
        "tokens": lambda: read_tokens(
            settings.effective_tokens_file, required=bool(settings.tokens_file)
        ),
        "issuer": lambda: read_issuer(found["policy"].jwt),
    }
    for what, read in parts.items():
        try:
            found[what] = read()
        except Exception as failure:  # a revoked token must not count on because of a defect
            if before is None:
                raise
            unusable = isinstance(failure, CannotUse)
            why = str(failure) if unusable else f"cannot read the {what}: {defect_in(failure)}"
            causes.append(why)
            found[what] = getattr(before, what)
    policy, tokens = found["policy"], found["tokens"]
    known = tokens.all if tokens else ()
    named = {token.namespace for token in known if token.namespace}
    policy = replace(policy, namespaces=policy.namespaces | named)
    if before and policy == before.policy:
        policy = before.policy  # What identities have used is shown while it is the same object.
    sources = (settings.policy_file, settings.tls_client_ca_file, settings.tokens_file)
    on = any(sources) or tokens is not None
    return Access(policy, tokens, on, found["issuer"]), causes


def open_fleet(settings: Settings, access: Access) -> str:
    """Return what to do where everybody may use what daemons share; empty where nobody may."""
    redis = settings.redis_url.get_secret_value() not in (EMBEDDED, NONE)
    if access.on or not (redis or settings.object_store_url):
        return ""
    return (
        "everybody may use this daemon, and so what it shares with others: set tokens_file,"
        " policy_file or tls_client_ca_file for each of them"
    )


def files_of(settings: Settings, access: Access) -> Sequence[Path]:
    """Return the files that ``read_access`` reads, whether or not they exist."""
    policy = Path(settings.policy_file) if settings.policy_file else None
    keys = access.policy.jwt.file if access.policy.jwt else None
    return [path for path in (settings.effective_tokens_file, policy, keys) if path]


class AccessGuard:
    """Admits callers by the ``Access`` in force. Never waits; for one event loop."""

    def __init__(
        self, access: Access | None = None, client_cas: Callable[[], Certificates] = tuple
    ) -> None:
        """Without ``access``, let everybody do everything.

        ``client_cas`` returns another object whenever the CAs in force have changed.
        """
        self._client_cas = client_cas
        self._cas = client_cas()
        self._keys_wanted = asyncio.Event()
        self._fetched_s = time.monotonic()
        self.keys_fetched = True  # Whether the last fetch worked, if a URL has the keys.
        self.access = Access()  # What is in force.
        self.replace(access or self.access)

    def replace(self, access: Access) -> None:
        """Admit by ``access`` from now on: what counted before lets no later call in.

        A guard that has asked for identities asks for them until the daemon ends: a file that
        vanishes opens nothing, and closes no health to probes.
        """
        if not access.on and self.access.on:
            access = Access(Policy(open_health=access.policy.open_health), on=True)
        self.access = access
        # By the SHA-256 of what was sent: a token never stays in memory, and equal ones are found
        # in a time that tells nothing.
        self._known: dict[tuple[object, bytes], tuple[Identity, float]] = {}
        by_rule = access.policy.names(ANONYMOUS)
        self._anonymous = access.policy.identity(ANONYMOUS) if by_rule else None

    def admit(
        self, what: str, entrance: model.Entrance, credentials: Callable[[], model.Credentials]
    ) -> Identity:
        """Return who calls.

        ``what`` is the path of an RPC, ``/wasmkiln.v1.ModuleService/Load``, or of a page,
        ``/metrics``. ``credentials`` reads what the call brings along; without access control it is
        not called. Raises CREDENTIALS_MISSING, CREDENTIALS_INVALID or ROLE_MISSING.
        """
        if not self.access.on:
            return model.ANYBODY
        need = _NEEDS.get(what)
        if need is not None and need.health and self.access.policy.open_health:
            return _ANONYMOUS_OF_HEALTH
        identity = self.identity(entrance, credentials())
        role = need.role.value if need and need.role else ""
        if need is None:
            refusal = errors.not_in_the_table(_act(what))
        elif need.role and need.role not in identity.roles:
            refusal = errors.role_missing(role, _act(what))
        elif need.whole_daemon and identity.namespace:
            refusal = errors.role_missing(role, _act(what), default_namespace=True)
        else:
            return identity
        refusal.identity = identity.name
        raise refusal

    def identity(self, entrance: model.Entrance, credentials: model.Credentials) -> Identity:
        """Return who calls. Raises CREDENTIALS_MISSING and CREDENTIALS_INVALID."""
        of_certificate = None
        if credentials.certificate:
            # Also beside a token: a connection whose certificate does not count any more carries
            # no calls.
            of_certificate = self._once(self._of_certificate, credentials.certificate)
        elif entrance.transport is Transport.MTLS:
            raise errors.credentials_missing()
        if sent := credentials.authorization:
            return self._once(self._of_authorization, sent.encode("utf-8", "replace"))
        if of_certificate:
            return of_certificate
        if entrance.transport is Transport.UNIX:
            return self._once(self._of_socket, entrance.address.encode())
        if self._anonymous:
            return self._anonymous
        raise errors.credentials_missing()

    async def follow_keys(self) -> None:
        """Fetch the keys of JSON Web Tokens now and then, until cancelled.

        While the URL cannot be read, the keys that were read last stay in force.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FETCH_EVERY_S):
                    await self._keys_wanted.wait()
            # Whoever makes up names of keys causes one fetch a minute; a reload fetches too.
            await asyncio.sleep(self._fetched_s + _FETCH_PAUSE_S - time.monotonic())
            self._keys_wanted.clear()
            await self.fetch_keys()

    async def fetch_keys(self) -> None:
        """Fetch the keys of JSON Web Tokens, if a URL has them; log it if that fails."""
        issuer = self.access.issuer
        if issuer is None or not issuer.url:
            self.keys_fetched = True
            return
        self._fetched_s = time.monotonic()
        keys = await fetch_keys(issuer.url)
        self.keys_fetched = bool(keys)
        if keys and self.access.issuer is issuer:
            self.replace(replace(self.access, issuer=replace(issuer, keys=keys)))

    def _once(self, check: Callable[[bytes], tuple[Identity, float]], sent: bytes) -> Identity:
        """Return whom ``check`` finds, and remember that until it expires."""
        if (cas := self._client_cas()) is not self._cas:
            self._cas = cas
            self._known.clear()
        key = check, hashlib.sha256(sent).digest()
        known = self._known.get(key)
        if known is None or time.time() >= known[1]:
            known = check(sent)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = known
        return known[0]

    def _of_certificate(self, pem: bytes) -> tuple[Identity, float]:
        name, until_s = certificate_name(pem, self._cas)
        return self.access.policy.identity(name), until_s

    def _of_socket(self, address: bytes) -> tuple[Identity, float]:
        return self.access.policy.identity(address.decode()), _FOREVER

    def _of_authorization(self, sent: bytes) -> tuple[Identity, float]:
        policy, tokens, issuer = self.access.policy, self.access.tokens, self.access.issuer
        shape = _BEARER.fullmatch(sent.decode())
        if not shape:
            why = "cannot read the metadata `authorization`: write `Bearer TOKEN`"
            raise errors.credentials_invalid("malformed", why)
        text = shape[1]
        if issuer and text.count(".") == 2 and not text.startswith(PREFIX):
            subject, claims, until_s = issuer.verify(text, self._keys_wanted.set)
            return policy.identity(f"jwt:{subject}", claims), until_s
        token = tokens.find(text) if tokens else None
        if token is None:
            raise refused("unknown", "the daemon does not know it; ask its operator for a new one")
        if token.expired(time.time()):
            raise refused("expired", "it has expired; ask for a new one")
        own = Identity(f"token:{token.name}", token.roles, token.namespace)
        return policy.identity(
            own.name, own=own
        ), _FOREVER if token.expires is None else token.expires


def _act(what: str) -> str:
    """Return what a caller wants, after "cannot"."""
    service, _, method = what[1:200].partition("/")
    if what in ARTIFACTS:
        return f"read {what}"
    return f"call {method} of {service}" if method else f"read {what[:200]}"
