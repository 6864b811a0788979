"""`wasmkilnd cache scrub --recompile` on what only the daemon's own code can forge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from wasmkiln import Artifact
from wasmkilnd import model, wire
from wasmkilnd.model import CacheKey
from wasmkilnd.signing.keys import KeyStore, PrivateKey

from tests.contract.sealing import sealer
from tests.doubles.shelf import read, stored
from tests.e2e import wasm
from tests.e2e.programs import installed_engines
from tests.e2e.stored_values import value_of
from tests.e2e.test_cache import COMPILED
from tests.e2e.test_cache_tools import Site, Warm, direct, filled, made_in


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Warm:
    installed_engines()
    return made_in(tmp_path_factory.mktemp("warm"))


@pytest.fixture
def site(warm: Warm, tmp_path: Path) -> Iterator[Site]:
    with filled(tmp_path, warm) as site:
        yield site


def signing_key(site: Site) -> PrivateKey:
    return KeyStore(site.state / "keys").ensure()


def value_name(artifact: Artifact) -> str:
    header = artifact.header
    return f"wasm:compiled:{{{header.module_sha256}}}:{header.fingerprint}"


def stored_artifact(site: Site, warm: Warm, which: str) -> model.Artifact:
    """Return what a daemon reads of one of the values."""
    header = warm.made[which].header
    key = CacheKey(header.module_sha256, header.fingerprint)
    with direct(site) as client:
        values = {name: value_of(client, name) for name in client.scan_iter("wasm:[cmp]*")}
    found, _ = read(values, key, sealer(signing_key(site)))
    assert isinstance(found, model.Artifact)
    return found


def test_recompiling_finds_code_that_a_trusted_key_signed_and_no_engine_made(
    site: Site, warm: Warm
) -> None:
    sample = site.scrub(0, "--recompile", "--sample", "3")[1]["recompiled"]
    assert sample == {"same": 3, "other": 0, "unchecked": {}}
    thief, code = sealer(signing_key(site)), warm.made["other"].bytes
    evil = replace(
        stored_artifact(site, warm, "wasmtime"),
        sha256=warm.made["other"].header.artifact_sha256,
        size_bytes=len(code),
        frames=wire.to_frames(code),
    )
    # And one that names a level at which nobody would look for it.
    honest = stored_artifact(site, warm, "wasmer")
    hidden = replace(honest, spec=replace(honest.spec, cpu="baseline"))
    names = {value_name(warm.made[which]) for which in ("wasmtime", "wasmer")}
    with direct(site) as client:
        for lie in (evil, hidden):
            for name, value in stored(thief.seal(lie), thief).items():
                client.set(name, value, ex=1000)
    assert site.scrub(0)[1]["artifacts"] == 4  # To a daemon, they are as good as any.
    findings, summary = site.scrub(3, "--recompile")
    assert {finding["name"] for finding in findings} == names
    assert all(finding["cause"] == "other_code" for finding in findings)
    assert all(site.keys.public.id in finding["why"] for finding in findings)
    assert (summary["artifacts"], summary["bad"]) == (2, {"other_code": 2})
    assert summary["recompiled"] == {"same": 2, "other": 2, "unchecked": {}}
    with site.daemon() as daemon, daemon.client() as caller:
        again = caller.compile(wasm.adder(1), engine="wasmtime")
        assert (again.header.origin, again.bytes) == (COMPILED, warm.made["wasmtime"].bytes)


def test_what_cannot_be_compiled_again_here_is_counted_with_the_reason(
    site: Site, warm: Warm, tmp_path: Path
) -> None:
    with direct(site) as client:
        client.delete(f"wasm:module:{{{warm.made['other'].header.module_sha256}}}")
    fewer = tmp_path / "fewer"
    (fewer / "engines").mkdir(parents=True)
    for engine in installed_engines():
        if engine.name == "wasmtime":
            (fewer / "engines" / engine.path.name).symlink_to(engine.path)
    (fewer / "keys").symlink_to(site.state / "keys")
    recompiled = Site(fewer, site.url).scrub(0, "--recompile")[1]["recompiled"]
    assert recompiled["same"] == 2
    assert recompiled["unchecked"] == {
        "wasmer-1.1.0 is not installed here": 1,
        "its module is not in the cache": 1,
    }
