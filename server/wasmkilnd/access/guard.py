"""The guard of a daemon: from credentials to an identity, and whether it may."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wasmkilnd import errors
from wasmkilnd.access.identities import Identities
from wasmkilnd.access.needs import PATHS, RPCS, Need
from wasmkilnd.access.policy import Policy
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import ANYBODY, Credentials, Entrance, Identity

_NEEDS: Mapping[str, Need] = {**RPCS, **PATHS}
_ANONYMOUS_OF_HEALTH = Identity("anonymous", frozenset())


class AccessGuard:
    """Admits by the table of needs and the identities in force. For one event loop."""

    def __init__(self, identities: Identities | None, *, open_health: bool = False) -> None:
        """Without ``identities``, let everybody do everything."""
        self._identities = identities
        self._open_health = open_health

    def replace(self, identities: Identities | None, *, open_health: bool) -> None:
        """Admit by these from now on: what counted before lets no later call in.

        A guard that has asked for identities asks for them until the daemon ends: a file that
        vanishes opens nothing.
        """
        if identities is None and self._identities is not None:
            identities = Identities(Policy())
        self._identities = identities
        self._open_health = open_health

    @property
    def asks(self) -> bool:
        """Whether callers need an identity."""
        return self._identities is not None

    def admit(
        self, what: str, entrance: Entrance, credentials: Callable[[], Credentials]
    ) -> Identity:
        """Return who calls; see the port."""
        if self._identities is None:
            return ANYBODY
        need = _NEEDS.get(what)
        if need is not None and need.health and self._open_health:
            return _ANONYMOUS_OF_HEALTH
        identity = self._identities.of(entrance, credentials())
        if need is None:
            raise _of(identity, errors.not_in_the_table(_act(what)))
        if need.role is not None and need.role not in identity.roles:
            raise _of(identity, errors.role_missing(need.role.value, _act(what)))
        if need.whole_daemon and identity.namespace:
            role = need.role.value if need.role else ""
            raise _of(identity, errors.default_namespace_only(role, _act(what)))
        return identity


def _of(identity: Identity, refusal: WasmkilnError) -> WasmkilnError:
    refusal.identity = identity.name
    return refusal


def _act(what: str) -> str:
    """Return what a caller wants, after "cannot"."""
    service, _, method = what[1:200].partition("/")
    return f"call {method} of {service}" if method else f"read {what[:200]}"
