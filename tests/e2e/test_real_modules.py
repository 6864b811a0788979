"""Real modules of many toolchains: compiled by the daemon, loaded and run in another process."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkiln import Client, EngineLacksFeature

from tests.corpus.fetch import CorpusUnavailable, fetch
from tests.corpus.modules import BY_NAME, RealModule
from tests.corpus.runs import RECIPES
from tests.e2e.in_engine import run_module
from tests.e2e.programs import Installed
from tests.sizes import FULL

MODULES = [BY_NAME[name] for name in RECIPES]
# The largest takes 8 s of CPU on a fast processor.
TIMEOUT_S = 600.0
ENGINES = {"wasmer": "wasmer-1.1.0", "wasmtime": "wasmtime-50.0.1"}


def path_of(module: RealModule) -> Path:
    """Return the module's file; without its registry there is nothing to test."""
    try:
        return fetch(module)
    except CorpusUnavailable as unavailable:
        pytest.skip(f"{module.name} cannot be fetched: {unavailable}")


@pytest.mark.timeout(3 * TIMEOUT_S)
@pytest.mark.parametrize("name", ["wasmer", "wasmtime"])
@pytest.mark.parametrize("module", MODULES, ids=str)
def test_artifact_does_what_the_module_does(
    client: Client, engines: Installed, tmp_path: Path, module: RealModule, name: str
) -> None:
    path = path_of(module)
    engine_id = ENGINES[name]
    artifact = client.compile(path, engine=engine_id, timeout_s=TIMEOUT_S)
    assert artifact.header.module_sha256 == module.sha256
    assert artifact.header.engine.id == engine_id
    saved = artifact.save(tmp_path / "artifact", header=False)
    by_artifact = run_module(engines, engine_id, module.name, "--artifact", str(saved))
    # The recipe checks what it computes. What the engine computes without us is the same again.
    if FULL:
        assert by_artifact == run_module(engines, engine_id, module.name, "--wasm", str(path))


def test_what_an_engine_cannot_do_is_told_with_who_can(client: Client) -> None:
    """It has SIMD operators newer than wasmer's cranelift."""
    with pytest.raises(EngineLacksFeature) as refusal:
        client.compile(path_of(BY_NAME["itk-downsample-bin-shrink"]), engine=ENGINES["wasmer"])
    assert "wasmtime-50.0.1" in refusal.value.metadata["accepted_by"]
