"""Translates pins to messages of the contract."""

from __future__ import annotations

from wasmkiln.v1 import admin_service_pb2 as pb

from wasmkilnd.model import Pin


def pin_message(pin: Pin) -> pb.Pin:
    """Return a pin as callers get it."""
    message = pb.Pin(
        module_sha256=pin.module_sha256,
        tiers=[
            pb.PinnedInTier(
                tier=tier,
                artifacts=held.artifacts,
                module=held.modules > 0,
                bytes=held.bytes,
            )
            for tier, held in pin.tiers.items()
        ],
    )
    message.created_at.FromMilliseconds(pin.pinned_ms)
    return message
