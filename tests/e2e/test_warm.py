"""`wasmkiln warm` with a real daemon, real engines, and images of a real registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from wasmkiln.cli.app import app

from tests.e2e import wasm
from tests.e2e.daemon import TWO_ENGINES, Daemon, fresh_state
from tests.e2e.programs import Installed
from tests.e2e.registries import Registry, docker_registry
from tests.oci import Image

BOTH = [word for engine in TWO_ENGINES for word in ("--engine", engine)]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def kiln(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    state = fresh_state(tmp_path_factory.mktemp("kiln") / "state", engines=TWO_ENGINES)
    with Daemon(state) as running:
        yield running


def warm(kiln: Daemon, home: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run the command; return its exit code, document and standard error."""
    done = CliRunner(env={"HOME": str(home), "WASMKILN_ADDRESS": kiln.address}).invoke(
        app, ("warm", "--json", *arguments)
    )
    return done.exit_code, json.loads(done.stdout or "{}"), done.stderr


def compiles(kiln: Daemon) -> int:
    """How many compiles the daemon has done."""
    with kiln.client() as client:
        return sum(each.count for each in client.stats().compiles)


def test_images_as_wash_and_spin_publish_them_and_nothing_again(
    kiln: Daemon, registry: Registry, tmp_path: Path
) -> None:
    modules = [wasm.adder(tag) for tag in range(101, 107)]
    both = Image.index(Image.wash(modules[4]), Image.wash(modules[5]))
    references = [
        registry.push("acme-http:1.0", Image.wash(modules[0])),
        registry.push("acme-shop:v2", Image.spin({"cart": modules[1], "pay": modules[2]})),
        registry.push("acme-shop:v1", Image.spin({"cart": modules[3]}, old=True)),
        registry.push("acme-both:latest", both),
    ]
    pulled = [registry.pull(each, tmp_path / str(n)) for n, each in enumerate(references)]
    folders = [str(each) for each in pulled]
    code, answer, errors = warm(kiln, tmp_path, *folders, *BOTH)
    assert code == 0, errors
    assert (answer["modules"], answer["compiled"], answer["uploaded"]) == (6, 12, 6)
    asked = {(each["module_sha256"], each["engine"]["id"]) for each in answer["artifacts"]}
    assert asked == {(wasm.digest(m), engine) for m in modules for engine in TWO_ENGINES}

    before = compiles(kiln)
    code, answer, errors = warm(kiln, tmp_path, *folders, *BOTH)
    assert code == 0, errors
    assert (answer["warm_before"], answer["compiled"], answer["uploaded"]) == (12, 0, 0)
    assert compiles(kiln) == before


def test_a_component_by_its_digest_for_several_settings(
    kiln: Daemon, registry: Registry, tmp_path: Path
) -> None:
    image = Image.wash(wasm.empty_component(7))
    reference, _, _ = registry.push("acme-component:1", image).rpartition(":")
    pinned = f"{reference}@sha256:{wasm.digest(image.content)}"
    folder = registry.pull(pinned, tmp_path / "component")
    options = ("--engine", "wasmtime-50.0.1", "--cpu", "baseline", "--cpu", "x86-64-v2")
    settings = ("--set", "cranelift_opt_level=speed", "--set", "cranelift_opt_level=none")
    code, answer, errors = warm(kiln, tmp_path, str(folder), *options, *settings)
    assert code == 0, errors
    assert (answer["modules"], answer["compiled"], answer["uploaded"]) == (1, 4, 1)
    assert {(a["cpu"], a["settings"]["cranelift_opt_level"]) for a in answer["artifacts"]} == {
        (cpu, level) for cpu in ("baseline", "x86-64-v2") for level in ("speed", "none")
    }


def test_what_the_command_verifies_can_be_compiled_again(kiln: Daemon, tmp_path: Path) -> None:
    file, out = tmp_path / "m.wasm", tmp_path / "m.cwasm"
    file.write_bytes(wasm.adder(150))
    run = CliRunner(env={"WASMKILN_ADDRESS": kiln.address}).invoke
    key = ("--key", str(kiln.state_dir / "keys" / "trusted"))
    for engine in TWO_ENGINES:
        chosen = ("--engine", engine, "--cpu", "baseline")
        done = run(app, ("compile", str(file), "-o", str(out), *chosen))
        assert done.exit_code == 0, done.output
        before = compiles(kiln)
        for words in ((str(out), *key), chosen):
            done = run(app, ("verify", *words, "--recompile", str(file), "--json"))
            assert done.exit_code == 0, done.output
            assert json.loads(done.stdout)["recompiled_sha256"] == wasm.digest(out.read_bytes())
        assert compiles(kiln) == before + 2
