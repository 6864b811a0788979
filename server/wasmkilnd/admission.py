"""The first checks of a caller's module: cheap, and before any engine sees it.

The compile calls of engines accept WebAssembly *text* too, at a cost of seconds and gigabytes
for a few megabytes: so only bytes with the preamble of a binary get that far.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from wasmkilnd import errors
from wasmkilnd.account import Bill
from wasmkilnd.fair_share import FairShare
from wasmkilnd.model import SHA256_HEX, Kind, Limits, Module
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.requests import Terms

HASH_INLINE_BYTES = 256 * 1024
"""Below this size, hashing takes less time than handing the bytes to a thread and back."""

_MAGIC = b"\0asm"
# Two bytes of version, two of layer.
_KINDS = {b"\x01\0\0\0": Kind.CORE_MODULE, b"\x0d\0\x01\0": Kind.COMPONENT}
_COMPILED_MAGICS = (b"\x7fELF", b"\0wasmer-universal", b"wasmer")


@dataclass(frozen=True, slots=True)
class Begun:
    """Work on a module that has begun."""

    bill: Bill
    """What it costs the account of the call that began it."""
    _release: Callable[[], None]

    def end(self) -> None:
        """Stop counting the module, and close the bill. Call it once."""
        self._release()
        self.bill.close()


class Admission:
    """Admits modules, and limits the bytes of those being worked on. For one event loop."""

    def __init__(self, limits: Reloadable[Limits]) -> None:
        self._limits = limits
        # The bytes of all modules being worked on, whatever that work waits for: another
        # daemon's lease, a worker, or another caller's job.
        self._modules = FairShare(lambda: 2 * limits.current.queue_bytes)

    async def admit(self, wasm: bytes) -> Module:
        """Do what the function ``admit`` does; hash large modules in a thread."""
        limit_bytes = self._limits.current.module_bytes
        if len(wasm) <= HASH_INLINE_BYTES or len(wasm) > limit_bytes:
            return admit(wasm, limit_bytes)
        return await asyncio.to_thread(admit, wasm, limit_bytes)

    def begin(
        self, engine_id: str, module: Module, terms: Terms, *, compiles: bool, arrived: bool
    ) -> Begun:
        """Count a module that work begins on, and have the call's account pay for the work.

        ``arrived`` tells whether the module came with the call, and so was let in already. Raises
        COMPILE_QUEUE_FULL or QUOTA_EXCEEDED. A caller alone may hold as many bytes as the
        queue of an engine.
        """
        waiter, size_bytes = terms.waiter, len(module.wasm)
        if self._modules.room(waiter.caller) <= 0:
            raise errors.modules_held(engine_id, self._modules.total)
        bill = terms.account.start(size_bytes, compiles=compiles, arrived=arrived)
        self._modules.add(waiter.caller, size_bytes)
        return Begun(bill, lambda: self._modules.add(waiter.caller, -size_bytes))


def admit(wasm: bytes, limit_bytes: int) -> Module:
    """Check size and preamble of ``wasm``. Raises NOT_WASM and MODULE_TOO_LARGE."""
    kind = kind_of(wasm)
    if len(wasm) > limit_bytes:
        raise errors.module_too_large(len(wasm), limit_bytes)
    return Module(hashlib.sha256(wasm).hexdigest(), kind, wasm)


def kind_of(wasm: bytes) -> Kind:
    """Tell a core module from a component by the preamble. Raises NOT_WASM."""
    if not wasm:
        raise errors.not_wasm("the module is empty: send the bytes of a .wasm file")
    if wasm[:4] != _MAGIC:
        raise errors.not_wasm(_what_it_is_instead(wasm))
    if kind := _KINDS.get(wasm[4:8]):
        return kind
    if len(wasm) < 8:
        raise errors.not_wasm("the module ends inside its preamble: it was cut off")
    raise errors.not_wasm(
        f"the preamble says version 0x{wasm[4:8][::-1].hex()}: neither a core module of version 1"
        " nor a component of version 0x0d: build it with current tools"
    )


def check_sha256(digest: str, field: str) -> str:
    """Return ``digest`` if it is 64 lowercase hexadecimal digits. Raises INVALID_REQUEST."""
    if not SHA256_HEX.fullmatch(digest):
        raise errors.invalid_request(
            f"{field} must be a SHA-256 as 64 lowercase hexadecimal digits", field
        )
    return digest


def _what_it_is_instead(head: bytes) -> str:
    if head.startswith(_COMPILED_MAGICS):
        return "these bytes are already compiled code: send the module that it was compiled from"
    if head[:64].lstrip().startswith((b"(", b";;")):
        return "these bytes are WebAssembly text: convert them to a binary first, with wat2wasm"
    return "these bytes are not a WebAssembly binary: they do not start with \\0asm"
