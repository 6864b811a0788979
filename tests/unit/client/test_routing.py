"""The metadata by which a proxy chooses a daemon, and the batches of find_missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from wasmkiln import ArtifactKey, Client

from tests.unit.client.fake_daemon import FakeDaemon

DIGEST = "ab" * 32


def test_a_call_about_a_module_names_it(daemon: FakeDaemon, client: Any) -> None:
    wasm = b"\0asm\x01\0\0\0"
    digest = client.load(wasm).sha256
    client.compile(wasm)
    for call in (client.pin, client.unpin):
        call(DIGEST)
    client.evict(module_sha256=DIGEST)
    assert daemon.routes == [digest, digest, DIGEST, DIGEST, DIGEST]
    daemon.routes.clear()
    client.stats()
    client.evict(everything=True)
    client.find_missing([DIGEST])
    assert daemon.routes == ["", "", ""]


def test_an_address_of_several_daemons_is_told_what_to_use_instead() -> None:
    with pytest.raises(ValueError, match="name a proxy that routes by the metadata"):
        Client("ring:10.0.0.7:1,10.0.0.8:2")


def test_a_batch_has_no_more_bytes_than_the_daemon_takes(
    daemon: FakeDaemon, make_client: Callable[..., Any]
) -> None:
    client = make_client(daemon.address, timeout_s=60)
    settings = {f"setting_{number}": "x" * 200 for number in range(10)}
    keys = [
        ArtifactKey(module_sha256=f"{number:064x}", settings=settings if number % 2 else {})
        for number in range(3_000)
    ]
    assert client.find_missing(keys) == keys
    batches = daemon.requests("FindMissing")
    assert [key for batch in batches for key in batch.keys] == keys
    assert max(batch.ByteSize() for batch in batches) <= 2 * 1024 * 1024
    assert len(batches) < 6
