"""What an engine says of itself in each artifact, as far as the daemon goes by it."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import wasmtime
from wasmkiln.shared import UNHASHED_DEFAULTS
from wasmkilnd.engines.child import section, wasmtime_engine

from tests.e2e import wasm


def shown(**settings: bool | str) -> section.Section:
    config = wasmtime.Config()
    config.target = "x86_64-unknown-linux-gnu"
    for name, value in settings.items():
        setattr(config, name, value)
    code = bytes(wasmtime.Module(wasmtime.Engine(config), wasm.adder(1)).serialize())
    return section.parse(section.in_artifact(code))


def test_an_artifact_says_for_which_collector_it_is() -> None:
    ours = wasmtime_engine.describe()["candidate_settings"]["collector"][1]
    assert list(ours) == [UNHASHED_DEFAULTS["collector"], "none"]
    assert shown().rest["collector"] == shown(consume_fuel=True).rest["collector"] == 0
    assert shown(gc_support=False).rest["collector"] == section.NO_COLLECTOR


def test_whatever_the_bytes_are_they_are_read_or_refused() -> None:
    code = bytes(wasmtime.Module(wasmtime.Engine(), wasm.adder(1)).serialize())
    whole, chance = section.in_artifact(code), random.Random(1)
    for number in range(3000):
        at = chance.randrange(len(whole))
        other = whole[:at] if number % 2 else whole[:at] + chance.randbytes(3) + whole[at + 3 :]
        damaged = bytearray(code)
        for _ in range(8):
            damaged[chance.choice((chance.randrange(64), chance.randrange(len(code))))] ^= 255
        for read, what in ((section.parse, other), (section.in_artifact, bytes(damaged))):
            with suppress(section.Unreadable):
                read(what)
    # Errors quote versions, triples and names.
    triple = b"\x18x86_64-unknown-linux-gnu"
    for made_up in (b"\x1b[31m\nERROR forged".ljust(24), b"x" * 23 + b" ", b""):
        other = whole.replace(triple, bytes([len(made_up)]) + made_up)
        assert other != whole
        with pytest.raises(section.Unreadable):
            section.parse(other)
    with pytest.raises(section.Unreadable, match="no section"):
        section.parse(bytes(section.MOST_BYTES + 1))
