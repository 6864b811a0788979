"""Whatever is stored in Redis, no daemon believes a strike but the fleet's own, nor breaks.

What a trusted key did sign, by a daemon of another version or in the hands of a thief, can be told
to callers and operators, or is nothing.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd import errors
from wasmkilnd.model import STAMP_BYTES, CacheKey, Strike
from wasmkilnd.redis.records import Strikes
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.messages import to_status
from wasmkilnd.waits.budgets import WaitBudget

from tests.contract.sealing import OURS, sealer
from tests.fuzz.bytes_from_outside import changed, corpus, json_values, kept

KEY = CacheKey("a" * 64, "f" * 64, "wasmtime-1.0")
STRIKE = Strike(KEY, "wasmtime-1.0", "COMPILE_TIMEOUT", "it took too long", 3, 600.0)
SEALER = sealer(OURS)
TTL_S = 1000
# Not the time of this run: a strike ends, and these tests may last longer.
WRITTEN_S = 1_800_000_000.0


class Shelf:
    """A link to a server that holds one value."""

    def __init__(self, value: bytes = b"") -> None:
        self.name, self.value = b"", value

    async def run(self, *commands: Any, timeout_s: float | None = None) -> list[Any]:
        return [self._reply(*command) for command in commands]

    def _reply(self, command: str, *arguments: Any) -> Any:
        match command:
            case "SET":
                self.name, self.value, *_ = arguments
                return b"OK"
            case "GETRANGE":
                return self.value[: arguments[2] + 1]
            case _:
                raise ValueError(command)


@mock.patch("time.time", return_value=WRITTEN_S)
def written(_: object) -> tuple[bytes, bytes]:
    """Return the name and the record of a strike, as a daemon writes it."""
    shelf = Shelf()
    strikes = Strikes(shelf, "wasm:", SEALER)  # type: ignore[arg-type]
    asyncio.run(strikes.put(STRIKE, TTL_S, WaitBudget()))
    return shelf.name, shelf.value


NAME, RECORD = written()
RECORDS = json.loads(RECORD[STAMP_BYTES:])
AGES = st.floats(-1e12, 1e12)


def read(record: bytes, age_s: float) -> Strike | None:
    strikes = Strikes(Shelf(record), "wasm:", SEALER)  # type: ignore[arg-type]
    with mock.patch("time.time", return_value=WRITTEN_S + age_s):
        strike = asyncio.run(strikes.get(KEY, WaitBudget()))
    if strike:
        assert strike.key == KEY
        assert 0 <= strike.left_s < 1e12
        refusal = errors.module_quarantined(
            strike.engine_id, strike.reason, strike.message, strike.left_s
        )
        assert len(to_status(refusal).SerializeToString()) < 8000
        assert messages.quarantined_module(strike).SerializeToString()
    return strike


def stamped(text: bytes) -> bytes:
    return SEALER.stamp(b"wasmkiln strike 3\0" + NAME + b"\0" + text) + text


@given(changed([RECORD]) | st.binary(max_size=400), AGES)
def test_no_strike_is_believed_but_the_fleets_own(record: bytes, age_s: float) -> None:
    counts = record == RECORD and age_s <= TTL_S
    assert (read(record, age_s) is not None) == counts


@st.composite
def altered(draw: st.DrawFn) -> bytes:
    """A record of which some fields were changed or removed, or that has one more."""
    fields = dict(RECORDS)
    for name in draw(st.lists(st.sampled_from([*RECORDS, "more"]), min_size=1, max_size=3)):
        fields[name] = draw(json_values)
        if draw(st.booleans()):
            del fields[name]
    return json.dumps(fields).encode()


@kept(*corpus("strikes"), then=(500,))
@given(altered() | json_values.map(lambda value: json.dumps(value).encode()), AGES)
def test_a_strike_that_a_trusted_key_stamped_can_be_told_or_is_nothing(
    text: bytes, age_s: float
) -> None:
    read(stamped(text), age_s)
