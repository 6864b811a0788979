"""One caller shows engines that nobody has; others do not notice, and nothing grows."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import wasmtime
from wasmkiln import loading
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import module_service_pb2_grpc, types_pb2

from tests.e2e import wasm
from tests.e2e.bearers import add_token, bearer, reason_of
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.processes import eventually

ENGINE = "wasmtime-50.0.1"
MODULE = wasm.adder(3800)
DIGEST = wasm.digest(MODULE)
# No module is compiled: what is made up is engines.
NOTHING = "0" * 64
MIB = 2**20
MADE_UP = 10_000
# Of one caller. Others of the test, and engines with the defaults, add a few.
MOST_OF_ONE = 64
MOST = 256
OTHERS = 8


def shown(**settings: object) -> bytes:
    config = wasmtime.Config()
    for name, value in settings.items():
        setattr(config, name, value)
    return loading.shown_by(wasmtime.Engine(config))


REAL = shown()
PAGES = wasm.leb128(2**32)  # As the section has the reservation of memories, twice.


def another_cpu(number: int) -> bytes:
    """An engine that loads code of the daemon, on a CPU with a feature of that name."""
    return REAL.replace(b"has_apx", f"x{number:06}".encode())


def another_size(number: int) -> bytes:
    """An engine that loads code of the daemon, with memories of that size."""
    return REAL.replace(PAGES, wasm.leb128(2**32 + number * 65536))


def another_number(number: int) -> bytes:
    """An engine with a tunable that no setting changes."""
    return REAL.replace(wasm.leb128(2000), wasm.leb128(2001 + number))


def any_bytes(number: int) -> bytes:
    chance = random.Random(number)
    section = bytearray(REAL)
    for _ in range(chance.randrange(1, 8)):
        section[chance.randrange(len(section))] = chance.randrange(256)
    return bytes(section)


def any_key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


KINDS: tuple[Callable[[int], bytes], ...] = (
    another_cpu,
    another_size,
    another_number,
    any_bytes,
    any_key,
)


class Person:
    """A caller with a token."""

    def __init__(self, daemon: Daemon, token: str) -> None:
        self._channel = grpc.insecure_channel(daemon.address)
        self._stub = module_service_pb2_grpc.ModuleServiceStub(self._channel)
        self._metadata = bearer(token)

    def asks(self, compatibility: bytes, **source: Any) -> str:
        """Call Compile for the module; return the reason of its error, "" if it succeeds."""
        asked = pb.CompileRequest(
            **(source or {"sha256": DIGEST}), compatibility=compatibility, omit_artifact=True
        )
        try:
            for _ in self._stub.Compile(asked, metadata=self._metadata, timeout=120):
                pass
        except grpc.RpcError as refused:
            return reason_of(refused)
        return ""

    def finds(self, *shown: bytes) -> str:
        """Call FindMissing with the module's digest and these; return the error's reason."""
        keys = [types_pb2.ArtifactKey(module_sha256=DIGEST, compatibility=one) for one in shown]
        try:
            asked = pb.FindMissingRequest(keys=keys)
            self._stub.FindMissing(asked, metadata=self._metadata, timeout=120)
        except grpc.RpcError as refused:
            return reason_of(refused)
        return ""

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def state(engines: object, tmp_path: Path) -> Path:
    return fresh_state(tmp_path / "state", engines=[ENGINE])


@pytest.fixture
def people(state: Path) -> Iterator[tuple[Daemon, Person, Person]]:
    """A daemon, who makes engines up, and somebody with an engine."""
    tokens = [add_token(state, name, "compile", "read") for name in ("greedy", "other")]
    with Daemon(state) as daemon:
        greedy, other = (Person(daemon, token) for token in tokens)
        yield daemon, greedy, other
        greedy.close()
        other.close()
    assert "Traceback" not in daemon.log


def known(state: Path) -> list[str]:
    """Return the keys that clients are told."""
    return [*json.loads((state / "host_store" / "engines.json").read_text())["fits"]]


def sizes(state: Path) -> list[int]:
    files = state / "host_store" / "engines.json", state / "engine-names.json"
    return [file.stat().st_size for file in files]


def test_made_up_engines_leave_no_trace(state: Path, people: tuple[Daemon, Person, Person]) -> None:
    daemon, greedy, other = people
    own = shown(consume_fuel=True)
    key = hashlib.sha256(own).digest()
    assert other.asks(own, module=MODULE) == ""
    for number in range(300):  # What the first calls take, others do not take again.
        greedy.asks(KINDS[number % 5](MADE_UP + number), sha256=NOTHING)
    began_b, ended, answers = daemon.memory("VmRSS"), threading.Event(), Counter[str]()

    def goes_on() -> None:
        while not ended.is_set():
            answers[other.asks(key)] += 1

    neighbour = threading.Thread(target=goes_on)
    neighbour.start()
    try:
        said = Counter[str]()
        for number in range(MADE_UP):
            kind = KINDS[number % len(KINDS)]
            said[
                f"{kind.__name__}: {greedy.asks(kind(number), sha256=NOTHING).partition(' ')[0]}"
            ] += 1
    finally:
        ended.set()
        neighbour.join()
    assert set(answers) == {""}
    assert said["another_number: COMPATIBILITY_UNSUPPORTED"] == MADE_UP // 5
    assert said["any_key: COMPATIBILITY_UNKNOWN"] == MADE_UP // 5
    assert not any("INTERNAL" in each or each == "UNKNOWN" for each in said)
    eventually(lambda: len(known(state)) >= MOST_OF_ONE, "what was learned is not told")
    assert key.hex() in known(state)
    assert len(known(state)) <= MOST_OF_ONE + OTHERS
    assert max(sizes(state)) < 64 * 1024
    assert daemon.memory("VmHWM") - began_b < 16 * MIB
    assert other.asks(key) == ""


def test_find_missing_shows_no_more_engines_for_one_caller(
    state: Path, people: tuple[Daemon, Person, Person]
) -> None:
    _, greedy, other = people
    own = shown(consume_fuel=True)
    key = hashlib.sha256(own).digest()
    assert other.finds(own) == ""
    for kind in (another_cpu, another_size):
        assert greedy.finds(*map(kind, range(1500))) == ""
        assert other.finds(key) == ""
    for number in range(2 * MOST_OF_ONE):
        greedy.asks(another_cpu(number), sha256=NOTHING)
    assert other.finds(key) == ""
    eventually(lambda: len(known(state)) >= MOST_OF_ONE, "what was learned is not told")
    assert key.hex() in known(state)
    assert len(known(state)) <= MOST_OF_ONE + OTHERS


def test_what_many_callers_make_up_is_bounded(state: Path) -> None:
    """Keys of others go then, the oldest first: they send their sections again."""
    tokens = [add_token(state, f"greedy-{number}", "compile") for number in range(6)]
    with Daemon(state) as daemon:
        for first, token in enumerate(tokens):
            person = Person(daemon, token)
            try:
                for number in range(MOST_OF_ONE):
                    section = another_cpu(first * MOST_OF_ONE + number)
                    assert person.asks(section, sha256=NOTHING) == "MODULE_NOT_LOADED"
            finally:
                person.close()
        eventually(lambda: len(known(state)) == MOST, "what was learned is not told")
        assert max(sizes(state)) < 128 * 1024
        with daemon.client(token=tokens[0], host_store_dir="none") as client:
            header = client.compile(MODULE, into=REAL).header
            assert not header.changed_settings
    with Daemon(state):
        assert len(known(state)) <= MOST + OTHERS
