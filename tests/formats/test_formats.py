"""What this tree stores it reads, and what earlier versions stored is a miss or is read.

``samples/format-3.json`` was written by this tree's code. Whoever changes a byte of a value raises
``CACHE_FORMAT``, and adds a sample of the new format. ``v0.1.0.json`` and ``v0.6.0.json`` hold
values of format 2, as these versions wrote them for the same inputs and key: misses, and never
errors. ``v0.6.0-uses.json`` is a record of uses, whose bytes are the same today, so that uses
carry over both ways (as pins do: ``tests/contract/test_pinning.py``).
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from wasmkiln import Artifact as SavedArtifact
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.cache.value import TRAILER_BYTES, head_bytes
from wasmkilnd.model import Artifact, CompileSpec, EngineIdentity, Module, Strike, nothing_pinned
from wasmkilnd.redis.records import Strikes
from wasmkilnd.usage import Usage, UsedSpec
from wasmkilnd.waits.budgets import Allowance, WaitBudget

from tests.contract.values import same
from tests.doubles.notes import Notes
from tests.doubles.shelf import decoded, name_of
from tests.formats import writing
from tests.formats.writing import (
    KEY,
    LARGE,
    LARGE_MODULE,
    NOW_S,
    PREFIX,
    SEALER,
    SMALL,
    SMALL_MODULE,
    Redis,
)

SAMPLES = Path(__file__).parent / "samples"
VALUES: list[Artifact | Module] = [SMALL, LARGE, SMALL_MODULE, LARGE_MODULE]
IDS = ["small artifact", "large artifact", "small module", "large module"]
OLD = ["v0.1.0", "v0.6.0"]


def sample(version: str) -> tuple[dict[bytes, bytes], dict[str, bytes]]:
    return writing.read_samples(SAMPLES / f"{version}.json")


def store_of(redis: Redis, notes: Notes) -> RedisStore:
    return RedisStore(
        redis,  # type: ignore[arg-type]
        PREFIX,
        SEALER,
        notes,
        ttl_s=1000,
        artifact_bytes=lambda: 1 << 40,
        module_bytes=lambda: 1 << 40,
        is_pinned=nothing_pinned,
        reports_usage=False,
    )


async def found(redis: Redis, what: Artifact | Module, notes: Notes) -> Artifact | Module | None:
    read: Artifact | Module | None = await store_of(redis, notes).get(what.key, Allowance())
    return read


@pytest.mark.parametrize("expected", VALUES, ids=IDS)
async def test_a_value_is_read(expected: Artifact | Module) -> None:
    notes = Notes()
    read = await found(Redis(sample("format-3")[0]), expected, notes)
    assert notes.rejected == []
    if isinstance(expected, Module):
        assert read == expected
        return
    assert isinstance(read, Artifact)
    assert same(decoded(read), expected)


def test_a_strike_is_read() -> None:
    assert _strikes(sample("format-3")[0]) == [writing.STRIKE]


def _strikes(values: Mapping[bytes, bytes]) -> list[Strike]:
    strikes = Strikes(Redis(values), PREFIX, SEALER)  # type: ignore[arg-type]
    with mock.patch("time.time", return_value=NOW_S):
        strike = asyncio.run(strikes.get(writing.STRIKE.key, WaitBudget()))
    return [strike] if strike else []


@pytest.mark.parametrize("what", VALUES, ids=IDS)
@pytest.mark.parametrize("version", OLD)
async def test_a_value_of_format_2_is_a_miss_and_under_a_name_of_today_deleted(
    version: str, what: Artifact | Module
) -> None:
    redis, notes = Redis(sample(version)[0]), Notes()
    assert await found(redis, what, notes) is None
    assert notes.rejected == []
    assert redis.values == sample(version)[0]
    redis.values = {name_of(what): redis.values[_name_in_format_2(what)]}
    assert await found(redis, what, notes) is None
    assert notes.rejected == ["format"]
    assert redis.values == {}


@pytest.mark.parametrize("version", OLD)
def test_a_strike_of_format_2_is_none(version: str) -> None:
    values = sample(version)[0]
    assert _strikes(values) == []
    [old] = (name for name in values if name.startswith(b"wasm:strike:"))
    today = old.replace(b"wasm:strike:", b"wasm:3:strike:")
    assert _strikes({today: values[old]}) == []


@pytest.mark.parametrize("version", [*OLD, "format-3"])
def test_a_saved_artifact_is_read_and_verified(version: str, tmp_path: Path) -> None:
    for name, content in sample(version)[1].items():
        (tmp_path / name).write_bytes(content)
    artifact = SavedArtifact.open(tmp_path / "artifact", trusted_keys=KEY.public.pem)
    statement = artifact.verify()
    assert artifact.header.fingerprint == SMALL.spec.fingerprint
    assert statement.claims.module_sha256 == SMALL.module_sha256
    assert (tmp_path / "artifact.dsse.json").read_bytes() == artifact.header.attestation


def test_an_artifact_has_the_address_that_it_had_in_0_6_0() -> None:
    assert _name_in_format_2(SMALL) in sample("v0.6.0")[0]
    assert sample("format-3")[1] == sample("v0.6.0")[1]


def test_the_same_bytes_are_written() -> None:
    redis, files = sample("format-3")
    made = writing.stored()
    assert sorted(made) == sorted(redis)
    for name in redis:
        # How the library compresses differs from one version of it to the next.
        packed = LARGE.module_sha256.encode() in name
        assert _header(made[name]) == _header(redis[name]) if packed else made[name] == redis[name]
    assert writing.saved(SMALL) == files


async def test_uses_of_0_6_0_are_read_and_written_alike() -> None:
    said = json.loads((SAMPLES / "v0.6.0-uses.json").read_text())
    record = {name.encode(): base64.b64decode(each) for name, each in said["redis"].items()}
    counts = {
        (module, UsedSpec(engine, target, cpu, tuple(settings.items()))): count
        for module, engine, target, cpu, settings, count in said["uses"]
    }
    redis = Redis()
    with (
        mock.patch("secrets.token_hex", return_value="0123456789abcdef"),
        mock.patch("time.time", return_value=NOW_S),
    ):
        before, now = (
            Usage(SEALER, server)  # type: ignore[arg-type]
            for server in (Redis(record), redis)
        )
        assert (await before.of_fleet()).counts == counts
        for number, ((module, used), count) in enumerate(counts.items()):
            name, version = used.engine_id.split("-")
            engine = EngineIdentity(name, version, "", "")
            spec = CompileSpec(engine, *used[1:3], {}, dict(used.settings), f"{number}")
            now.tally[module, spec] = count
        await now.save()
    # Under which of some names is left to chance.
    assert [*redis.values.values()] == [*record.values()]


def _header(value: bytes) -> dict[str, Any]:
    """The content of a value's head, without sizes and digests of compressed frames."""
    header: dict[str, Any] = json.loads(value[-head_bytes(value) : -TRAILER_BYTES])
    header["body"]["frames"] = len(header["body"]["frames"])
    return header


def _name_in_format_2(what: Artifact | Module) -> bytes:
    if isinstance(what, Module):
        return f"wasm:module:{{{what.sha256}}}".encode()
    return f"wasm:compiled:{{{what.module_sha256}}}:{what.spec.fingerprint}".encode()
