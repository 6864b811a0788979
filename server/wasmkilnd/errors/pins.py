"""What pins refuse."""

from __future__ import annotations

from wasmkilnd.errors.core import Reason, WasmkilnError


def module_pinned(sha256: str) -> WasmkilnError:
    """A pinned module cannot be evicted."""
    return WasmkilnError(
        Reason.MODULE_PINNED,
        f"cannot evict module {sha256}: it is pinned; unpin it first",
        field="module_sha256",
        sha256=sha256,
    )


def nothing_to_pin(sha256: str) -> WasmkilnError:
    """No tier has anything of the module."""
    return WasmkilnError(
        Reason.MODULE_NOT_LOADED,
        f"cannot pin module {sha256}: no tier has it, or an artifact of it; compile it first",
        field="module_sha256",
        sha256=sha256,
    )


def pins_full(tier: str, size_bytes: int, limit_bytes: int) -> WasmkilnError:
    """All pins would take more than half of a tier."""
    return WasmkilnError(
        Reason.PINS_FULL,
        f"cannot pin: all pins would take {size_bytes:,} bytes of the tier {tier}, which has"
        f" {limit_bytes:,}, and they may take half: unpin others, or give the tier more room",
        tier=tier,
        bytes=size_bytes,
        limit_bytes=limit_bytes,
    )


def too_many_pins(limit: int) -> WasmkilnError:
    """No further module may be pinned."""
    return WasmkilnError(
        Reason.PINS_FULL,
        f"cannot pin: {limit:,} modules are pinned, and no more can be: unpin others",
    )
