"""The output of `pin` as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wasmkiln.cli.grid import Grid
from wasmkiln.cli.text import size, timestamp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from wasmkiln.v1.admin_service_pb2 import Pin


def pins(shown: Sequence[Pin]) -> RenderableType:
    """Show pins: a line for each tier that has something of the module."""
    if not shown:
        return "no module is pinned"
    table = Grid("module", "pinned at", "tier", ">artifacts", "module itself", ">bytes")
    for one in shown:
        since = timestamp(one.created_at)
        tiers = [tier for tier in one.tiers if tier.artifacts or tier.module]
        for index, tier in enumerate(tiers):
            table.row(
                *("", "") if index else (one.module_sha256, since),
                tier.tier,
                str(tier.artifacts),
                "yes" if tier.module else "no",
                size(tier.bytes),
            )
        if not tiers:
            table.row(one.module_sha256, since, "none", "0", "no", "-")
    return table.shown()
