"""Whatever a caller sends as a module, the daemon accepts it correctly or refuses it clearly."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.compile import admit
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import Kind
from wasmkilnd.rpc.messages import to_status

from tests.fuzz.bytes_from_outside import anything, corpus, kept

LIMIT = 200
PREAMBLES = {
    b"\0asm\x01\0\0\0": Kind.CORE_MODULE,
    b"\0asm\x0d\0\x01\0": Kind.COMPONENT,
}


@kept(*corpus("preambles"))
@given(
    anything("preambles")
    | st.builds(bytes.__add__, st.sampled_from(sorted(PREAMBLES)), st.binary(max_size=LIMIT))
)
def test_any_bytes_are_admitted_or_refused(wasm: bytes) -> None:
    try:
        module = admit(wasm, LIMIT)
    except WasmkilnError as refusal:
        assert refusal.reason in {Reason.NOT_WASM, Reason.MODULE_TOO_LARGE}
        assert (refusal.reason is Reason.NOT_WASM) == (wasm[:8] not in PREAMBLES)
        assert to_status(refusal).SerializeToString()
        return
    assert module.kind is PREAMBLES[wasm[:8]]
    assert module.wasm == wasm
    assert len(wasm) <= LIMIT
    assert module.sha256 == hashlib.sha256(wasm).hexdigest()
