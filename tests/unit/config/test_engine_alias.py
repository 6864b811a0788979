"""The setting engine_alias: which version of an engine its name stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkilnd.settings_loader import ConfigError, load


def aliases(text: str) -> dict[str, str]:
    return load({}, {"WASMKILN_ENGINE_ALIAS": text, "HOME": "/root"}).settings.engine_aliases


def test_texts_and_tables_say_the_same(tmp_path: Path) -> None:
    wanted = {"wasmer": "wasmer-1.1.0", "wasmtime": "wasmtime-49.0.0"}
    assert aliases(" wasmtime = wasmtime-49.0.0,wasmer=wasmer-1.1.0") == wanted
    file = tmp_path / "a.toml"
    file.write_text('[engine_alias]\nwasmtime = "wasmtime-49.0.0"\nwasmer = "wasmer-1.1.0"\n')
    assert load({}, {"HOME": "/root"}, file).settings.engine_aliases == wanted
    flags = {"engine_alias": ["wasmtime=wasmtime-49.0.0", "wasmer=wasmer-1.1.0"]}
    assert load(flags, {"HOME": "/root"}).settings.engine_aliases == wanted
    assert aliases("") == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("wasmtime", "is not an alias: write an engine's name"),
        ("wasmtime=wasmer-1.1.0", "is not an alias"),
        ("wasmtime=wasmtime", "is not an alias"),
        ("wasmtime=wasmtime-50.0.1,wasmtime=wasmtime-49.0.0", "name, once"),
    ],
)
def test_what_is_no_alias(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        aliases(text)
