"""The quick way to mask a line ends in what the thorough one makes of it."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from wasmkilnd.telemetry.logs.masking import Masker, _Room

_TEXTS = st.text(max_size=400) | st.sampled_from(
    ["redis://user:secret@host/0", "https://host/?token=abc", "x" * 341, "x" * 342, "\x00" * 340]
)
_VALUES = (
    _TEXTS
    | st.integers()
    | st.sampled_from([2**128, -(2**128), 2**200])
    | st.floats()
    | st.booleans()
    | st.none()
    | st.binary(max_size=8)
    | st.lists(_TEXTS, max_size=2)
)
_KEYS = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["password", "api_key", "module", "k" * 128, "k" * 129]
)
_CALL = {
    "timestamp": "2026-11-25T23:53:44.286747Z",
    "level": "info",
    "event": "call",
    "method": "/wasmkiln.v1.ModuleService/Compile",
    "request_id": "0" * 128,
    "code": "OK",
    "duration_ms": 0.123,
    "module": "a" * 64,
    "engine": "wasmtime-50.0.1",
    "origin": "memory",
    "compile_ms": 12.5,
    "bytes": 20_000,
}


@given(st.dictionaries(_KEYS, _VALUES, max_size=70))
@example(dict(_CALL))
@example({f"{number}": "x" * 20 for number in range(64)})
@example({f"{number}": "x" for number in range(65)})
@example({"a": "x" * 341, "b": "x" * 341, "c": "x" * 341, "d": "x" * 338})
def test_both_ways_end_in_the_same_line(values: dict[str, object]) -> None:
    masker = Masker()
    shown, thorough = masker.line(values), masker._mapping(values, 0, _Room())
    assert shown == thorough
    assert list(shown) == list(thorough)


def test_the_line_of_a_call_takes_the_quick_way() -> None:
    assert Masker()._plain(_CALL) == _CALL
    assert Masker()._plain({**_CALL, "url": "redis://:secret@host"}) is None
