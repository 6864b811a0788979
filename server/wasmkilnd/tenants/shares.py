"""How many bytes of memory and of the host store each namespace has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wasmkilnd.model import DEFAULT_NAMESPACE, NamespaceLimits

MAX_NAMESPACES = 256
"""How many may be open at once: each has threads, files and tables of its own."""


@dataclass(frozen=True, slots=True)
class Share:
    """The part of one namespace."""

    memory_bytes: int
    host_store_bytes: int
    namespaces: int = 1
    """How many divide what the shared tier may hold of pinned modules."""


def shares(
    memory_bytes: int, host_store_bytes: int, namespaces: Mapping[str, NamespaceLimits]
) -> dict[str, Share]:
    """Divide memory and host store among ``namespaces`` and the default one; see ``why_not``.

    Those that name a number get it, and the others equal parts of what is left.
    """
    named = {DEFAULT_NAMESPACE: NamespaceLimits(), **namespaces}
    memory = _divided(memory_bytes, {name: each.memory_bytes for name, each in named.items()})
    store = _divided(
        host_store_bytes, {name: each.host_store_bytes for name, each in named.items()}
    )
    return {name: Share(memory[name], store[name], len(named)) for name in named}


def why_not(
    memory_bytes: int, host_store_bytes: int, namespaces: Mapping[str, NamespaceLimits]
) -> str:
    """Return why the daemon cannot serve ``namespaces``, of policy and tokens; empty if it can.

    A host store that is off has nothing to divide, and is not looked at.
    """
    if len(namespaces) > MAX_NAMESPACES:
        return (
            f"there are {len(namespaces)} namespaces, and one daemon serves {MAX_NAMESPACES} at"
            " most: let tenants share some, or run another daemon"
        )
    for setting, there, named in (
        ("memory_bytes", memory_bytes, [each.memory_bytes for each in namespaces.values()]),
        ("host_store_bytes", host_store_bytes, [n.host_store_bytes for n in namespaces.values()]),
    ):
        asked = sum(filter(None, named))
        if there and asked >= there:
            return (
                f"the namespaces have {asked} {setting} together, and the daemon has {there} for"
                f" all, the default namespace included: raise the setting {setting}, or give them"
                " less"
            )
    return ""


def _divided(total: int, wanted: Mapping[str, int | None]) -> dict[str, int]:
    if not total:
        return dict.fromkeys(wanted, 0)
    equal = [name for name, size in wanted.items() if size is None]
    left = max(0, total - sum(size or 0 for size in wanted.values()))
    # A tier without any room keeps nothing. At one byte it is still there, and says so.
    part = max(1, left // max(1, len(equal)))
    return {name: part if size is None else min(size, total) for name, size in wanted.items()}
