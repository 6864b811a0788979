"""Serve the namespaces that the policy names: at the start, and when it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wasmkilnd.lifecycle.reload import CannotReload, OpenAccess, Prepare
from wasmkilnd.model import NamespaceLimits
from wasmkilnd.settings import Settings
from wasmkilnd.tenants import Tenants, why_not


def refusal(settings: Settings, namespaces: Mapping[str, NamespaceLimits]) -> str:
    """Return why a daemon with ``settings`` cannot serve ``namespaces``; empty if it can."""
    why = why_not(settings.memory_bytes, settings.effective_host_store_bytes, namespaces)
    return f"cannot serve the namespaces of policy and tokens: {why}" if why else ""


def prepare_namespaces(tenants: Tenants, access: OpenAccess) -> Prepare:
    """Return what prepares ``tenants``; have it called after ``access.prepare``."""

    def prepare(settings: Settings) -> Callable[[], None]:
        if why := refusal(settings, access.next_policy.namespaces):
            raise CannotReload(why)
        # The policy in force by then: another part may have refused the one that was read.
        return lambda: tenants.serve(access.policy.namespaces, settings)

    return prepare
