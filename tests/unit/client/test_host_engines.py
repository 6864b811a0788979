"""Where a client finds the host store, and the fingerprints that it computes there."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkiln import host_store
from wasmkiln.host_store import Engines, Refused
from wasmkiln.shared import HASHED_FORMAT, fingerprint
from wasmkiln.v1.types_pb2 import Engine
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


def test_the_fingerprint_of_a_request() -> None:
    row = {**ROW, "fingerprint": "f" * 64}
    engines = Engines(HASHED_FORMAT, (row,))
    assert engines.fingerprint(row, "", "", {}) == "f" * 64, "the one that the daemon wrote"
    engine = Engine(**{name: row[name] for name in ("name", "version", "core_version", "compiler")})
    host, settings = row["targets"][0]["triple"], row["settings"]
    for target, cpu, features, chosen in (
        (host, "", [], {}),
        ("", "x86-64-v3", [], {}),
        ("", "native", ["avx2"], {}),
        ("", "", [], {"consume_fuel": "true"}),
    ):
        expected = fingerprint(engine, host, cpu or "baseline", features, {**settings, **chosen})
        assert engines.fingerprint(row, target, cpu, chosen) == expected
    for wrong in (("riscv", "", {}), ("", "x86-64-v9", {}), ("", "", {"fuel": "true"})):
        with pytest.raises(Refused):
            engines.fingerprint(row, *wrong)
    with pytest.raises(Refused, match=r"engines\.json lacks"):
        engines.fingerprint({**row, "settings": None}, host, "", {})


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
