"""Values of v0.1.0 are read today, and v0.1.0 reads those of today.

``samples/v0.1.0.json`` was written by that version's code (commit 71b68f4), for the same inputs and
key. ``samples/current.json`` was written by this tree's, and v0.1.0's code was seen to read all
of it but marks, of which it knows nothing. So as long as the same bytes are written, v0.1.0 reads
them. Whoever changes a byte of it reads the new sample with a checkout of v0.1.0 first.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import Artifact as SavedArtifact
from wasmkilnd.cache.fleet.lease import State, read_lease
from wasmkilnd.cache.fleet.strike_store import RedisStrikes
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.cache.value.format import HEADER_OFFSET, head_end
from wasmkilnd.cache.value.marks import Mark, read_mark
from wasmkilnd.model import Artifact, Module, Strike
from wasmkilnd.wait_budget import WaitBudget

from tests.contract.values import same
from tests.doubles.notes import Notes
from tests.doubles.shelf import TTL_S, Shelf, read
from tests.formats import writing
from tests.formats.writing import KEY, LARGE, LARGE_MODULE, NAMES, SEALER, SMALL, SMALL_MODULE

SAMPLES = Path(__file__).parent / "samples"
VERSIONS = ["v0.1.0", "current"]
# How the library compresses differs from one version of it to the next.
COMPRESSED = (LARGE.module_sha256,)


def sample(version: str) -> tuple[dict[bytes, bytes], dict[str, bytes]]:
    return writing.read_samples(SAMPLES / f"{version}.json")


@pytest.fixture(params=VERSIONS)
def redis(request: pytest.FixtureRequest) -> dict[bytes, bytes]:
    return sample(request.param)[0]


@pytest.mark.parametrize("expected", [SMALL, LARGE], ids=["raw", "compressed pieces"])
def test_an_artifact_is_read(redis: dict[bytes, bytes], expected: Artifact) -> None:
    found, rejected = read(redis, expected.key, SEALER)
    assert rejected == []
    assert isinstance(found, Artifact)
    assert SEALER.verify(found, expected.key) is None
    # Today's attestations say more.
    assert same(dataclasses.replace(found, attestation=expected.attestation), expected)


@pytest.mark.parametrize("expected", [SMALL_MODULE, LARGE_MODULE], ids=["raw", "compressed pieces"])
def test_a_module_is_read(redis: dict[bytes, bytes], expected: Module) -> None:
    assert read(redis, expected.sha256, SEALER) == (expected, [])


def test_a_lease_is_read(redis: dict[bytes, bytes]) -> None:
    name = NAMES.lease(SMALL.key)
    lease = read_lease(redis[name], name, SEALER.check_stamp)
    assert lease
    assert (lease.beat, lease.lasts_ms, lease.state) == (1, 10_000, State.STORING)


def test_a_strike_is_read(redis: dict[bytes, bytes]) -> None:
    assert asyncio.run(_strikes(redis)) == [writing.STRIKE]


async def _strikes(values: Mapping[bytes, bytes]) -> list[Strike]:
    assert writing.STRIKE_TTL_S == TTL_S
    tier = RedisTier(Shelf(values), SEALER, Notes(), marks=writing.marks())
    strikes = RedisStrikes(tier.link, tier.names, SEALER, tier.marks)
    found = await strikes.get(writing.STRIKE.key, WaitBudget())
    await tier.close()
    return [found] if found else []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_saved_artifact_is_read_and_verified(version: str, tmp_path: Path) -> None:
    for name, content in sample(version)[1].items():
        (tmp_path / name).write_bytes(content)
    artifact = SavedArtifact.open(tmp_path / "artifact", trusted_keys=KEY.public.pem)
    statement = artifact.verify()
    assert artifact.header.fingerprint == SMALL.spec.fingerprint
    assert statement.claims.module_sha256 == SMALL.module_sha256
    assert (tmp_path / "artifact.dsse.json").read_bytes() == artifact.header.attestation


def test_the_mark_of_an_evict_is_read() -> None:
    redis, _ = sample("current")
    for whose, expected in ((SMALL.module_sha256, writing.MARK), ("", writing.MARK_OF_ALL)):
        name = NAMES.mark(whose)
        assert read_mark(name, redis[name], SEALER.check_stamp) == expected
    assert Mark() not in (writing.MARK, writing.MARK_OF_ALL)


def test_the_same_bytes_are_written() -> None:
    redis, files = sample("current")
    assert _exact(writing.stored()) == _exact(redis)
    assert writing.saved(SMALL) == files


@pytest.mark.parametrize(
    "name",
    [NAMES.artifact(LARGE.key), NAMES.module(LARGE_MODULE.sha256)],
    ids=["artifact", "module"],
)
def test_the_same_heads_of_compressed_values_are_written(name: bytes) -> None:
    now, before = writing.stored()[name], sample("current")[0][name]
    assert _header(now) == _header(before)


def test_the_same_names_are_written_to() -> None:
    before, now = sample("v0.1.0")[0], writing.stored()
    new = {NAMES.mark(SMALL.module_sha256), NAMES.mark("")}
    # Behind the last colon is a digest of compressed bytes.
    assert sorted(map(_stem, before)) == sorted(_stem(name) for name in now if name not in new)


def _exact(values: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {
        name: value
        for name, value in values.items()
        if not any(module.encode() in name for module in COMPRESSED)
    }


def _header(value: bytes) -> dict[str, Any]:
    """The content of a value's head, without sizes and digests of compressed pieces."""
    header: dict[str, Any] = json.loads(value[HEADER_OFFSET : head_end(value)])
    header["body"]["pieces"] = len(header["body"]["pieces"])
    return header


def _stem(name: bytes) -> bytes:
    return name.rpartition(b":")[0] if b"part:" in name else name
