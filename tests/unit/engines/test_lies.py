"""A job may claim any time for its work; times go into the header and the attestation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from wasmkiln import CompilerCrashed
from wasmkilnd.engines.child.frames import HEADER, Type

from tests.e2e import wasm
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.hostile_engine import environment, module


@pytest.fixture(scope="module")
def hostile_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that serves wasmtime 50, and the hostile engine as wasmtime 0.0.1."""
    state = state_with(tmp_path_factory.mktemp("hostile") / "state", "wasmtime-50.0.1")
    environment(state / "engines")
    with Daemon(state, ["--redis-url", "none", "--workers", "1"]) as daemon:
        yield daemon


@pytest.mark.parametrize("seconds", ["1e300", "1e400", "9" * 400, "NaN", "-1", "31"])
def test_a_job_cannot_say_that_it_took_longer_than_it_did(
    hostile_daemon: Daemon, seconds: str
) -> None:
    said = f'{{"outcome": "ok", "seconds": {seconds}}}'.encode()
    frames = HEADER.pack(Type.ARTIFACT, 4) + b"code" + HEADER.pack(Type.RESULT, len(said)) + said
    with hostile_daemon.client(max_attempts=1) as client:
        with pytest.raises(CompilerCrashed, match="malformed result"):
            client.compile(module("say", frames.hex()), engine="wasmtime-0.0.1")
        assert client.compile(wasm.adder(62), engine="wasmtime-50.0.1").header.size_bytes
