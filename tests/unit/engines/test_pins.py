"""The lists of digests are complete: of every package of an engine, and of uv."""

from __future__ import annotations

import pytest
from wasmkilnd.engines.install.fetch_python import UV_PINS
from wasmkilnd.engines.install.store import KINDS
from wasmkilnd.engines.install.wheels import pins_in, pins_of

from tests.e2e.programs import ENGINE_SPECS, ROOT


@pytest.mark.parametrize("spec", ENGINE_SPECS)
def test_every_package_of_a_tested_version_is_pinned(spec: str) -> None:
    name, _, version = spec.partition("==")
    kind = KINDS[name]
    pins = pins_of(name, version)
    assert set(pins) == {f"{package}=={version}" for package in (*kind.packages, *kind.optional)}
    assert all(pins.values())


def test_every_default_version_is_a_tested_one() -> None:
    assert {f"{name}=={kind.default_version}" for name, kind in KINDS.items()} <= set(ENGINE_SPECS)


def test_uv_is_pinned_as_the_tools_of_the_repository_are() -> None:
    [(package, digests)] = pins_in(UV_PINS).items()
    locked = (ROOT / "requirements" / "tools.txt").read_text()
    assert f"{package} \\" in locked
    assert all(f"--hash=sha256:{digest}" in locked for digest in digests)
