"""Where a client finds the host store, and the fingerprints that it computes there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln import host_store
from wasmkiln.host_store import Engines, Refused
from wasmkiln.shared import HASHED_FORMAT
from wasmkilnd.engines.registry import _resolve
from wasmkilnd.model import (
    EngineCapabilities,
    EngineIdentity,
    Kind,
    SettingInfo,
    TargetInfo,
)
from wasmkilnd.settings import default_state_dir

from tests.host_store_writer import ROW


class TestPlace:
    def test_it_is_where_daemons_have_it(self, tmp_path: Path) -> None:
        for environ in (
            {"XDG_STATE_HOME": str(tmp_path), "HOME": "/h"},
            {"XDG_STATE_HOME": "relative", "HOME": "/h"},
            {"HOME": "/h"},
        ):
            expected = [default_state_dir(environ) / "host_store", host_store.SYSTEM]
            assert host_store.candidates(None, environ) == expected

    def test_argument_environment_and_none(self, tmp_path: Path) -> None:
        environ = {host_store.ENV: "/env"}
        assert host_store.candidates(tmp_path, environ) == [tmp_path]
        assert host_store.candidates(None, environ) == [Path("/env")]
        assert host_store.candidates("none", environ) == []


TARGETS = [
    TargetInfo(triple="x86_64-unknown-linux-gnu", cpus=("baseline", "native"), host=True),
    TargetInfo(triple="aarch64-unknown-linux-gnu", cpus=("baseline",), host=False),
]
SETTINGS = {"consume_fuel": ("false", "true"), "cranelift_opt_level": ("speed", "none")}


def capabilities(version: str) -> EngineCapabilities:
    return EngineCapabilities(
        identity=EngineIdentity("wasmtime", version, version, "cranelift"),
        interpreter="/usr/bin/python3",
        host_triple=TARGETS[0].triple,
        host_cpu_features=("sse4.2", "avx2"),
        targets=TARGETS,
        settings=[SettingInfo(name, values[0], values, "") for name, values in SETTINGS.items()],
        wasm_features=(),
        kinds=frozenset(Kind),
    )


def row_of(known: EngineCapabilities) -> dict[str, Any]:
    """Return what the daemon writes about an engine into engines.json."""
    identity = known.identity
    return {
        "id": identity.id,
        "name": identity.name,
        "version": identity.version,
        "core_version": identity.core_version,
        "compiler": identity.compiler,
        "default": True,
        "kinds": [kind.value for kind in known.kinds],
        "targets": [
            {"triple": each.triple, "host": each.host, "cpus": list(each.cpus)}
            for each in known.targets
        ],
        "native_cpu_features": list(known.host_cpu_features),
        "settings": {each.name: each.default for each in known.settings},
        "unhashed_defaults": [],
        "fingerprint": "",
    }


@given(
    target=st.sampled_from(["", *(each.triple for each in TARGETS)]),
    cpu=st.sampled_from(["", "baseline", "native", "x86-64-v9"]),
    chosen=st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(values) for name, values in SETTINGS.items()}
    ),
)
def test_fingerprints_are_the_daemon_s(target: str, cpu: str, chosen: dict[str, str]) -> None:
    known = capabilities("50.0.1")
    engines = Engines(HASHED_FORMAT, (row_of(known),))
    try:
        expected = _resolve(known, target, cpu, tuple(chosen.items())).fingerprint
    except Exception:
        with pytest.raises(Refused):
            engines.fingerprint(engines.rows[0], target, cpu, chosen)
    else:
        assert engines.fingerprint(engines.rows[0], target, cpu, chosen) == expected


def test_a_default_that_is_not_hashed() -> None:
    plain = {**ROW, "fingerprint": ""}
    newer = {
        **plain,
        "settings": {**ROW["settings"], "strategy": "cranelift"},
        "unhashed_defaults": ["strategy"],
    }
    engines = Engines(2, (newer, plain))
    same = engines.fingerprint(plain, "", "", {})
    assert engines.fingerprint(newer, "", "", {}) == same
    assert engines.fingerprint(newer, "", "", {"strategy": "cranelift"}) == same
    assert engines.fingerprint(newer, "", "", {"strategy": "winch"}) != same


def test_engines_are_chosen_as_the_daemon_does() -> None:
    old = {**ROW, "id": "wasmtime-49.0.0", "version": "49.0.0", "default": False}
    wasmer = {**ROW, "id": "wasmer-1.1.0", "name": "wasmer", "kinds": ["core"]}
    engines = Engines(2, (wasmer, {**ROW, "default": False}, old))
    assert engines.choose("", "core")["id"] == "wasmer-1.1.0"
    assert engines.choose("", "component")["id"] == "wasmtime-50.0.1"
    assert engines.choose("wasmtime", "")["id"] == "wasmtime-50.0.1"
    assert engines.choose("wasmtime-49.0.0", "")["id"] == "wasmtime-49.0.0"
    fits = lambda _, version: version.startswith("49.")  # noqa: E731
    assert engines.choose("wasmtime", "", fits)["id"] == "wasmtime-49.0.0"
    for engine, kind in (("v8", "core"), ("", "")):
        with pytest.raises(Refused):
            engines.choose(engine, kind)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[]", b"{}", b'{"version":2}', b'{"version":1,"engines":[]}', b"\xff"),
        *(b"[" * 100_000, b'{"version":1,"cache_format":2,"engines":[5]}'),
    ],
)
def test_other_documents_are_no_engines(text: bytes) -> None:
    with pytest.raises(Refused):
        Engines.parse(text)
