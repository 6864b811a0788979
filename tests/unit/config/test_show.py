"""What `wasmkilnd config` prints, and the reference page."""

from __future__ import annotations

import json
from pathlib import Path

from wasmkilnd.settings import Settings, env_name, flag_name, has_flag
from wasmkilnd.settings_loader import FlagValue, as_json, load, reference, render

FLAGS: dict[str, FlagValue] = {
    "listen": ("127.0.0.1:0", "unix:/run/kiln.sock"),
    "redis_url": "redis://bob:hunter2@h:1/0",
    "memory_bytes": "1000001",
    "compile_timeout_s": "1.5",
    "state_dir": '/weird "dir"\\\n\x7f# é',
    "allow_remote": True,
}


def test_it_prints_toml_that_means_the_same(tmp_path: Path) -> None:
    loaded = load({**FLAGS, "redis_url": "redis://h:1/0"}, {"HOME": "/h"})
    file = tmp_path / "kiln.toml"
    file.write_text(render(loaded))
    again = load({}, {}, file)
    assert again.settings == loaded.settings


def test_each_line_has_key_value_and_origin() -> None:
    lines = render(load(FLAGS, {"HOME": "/h", "WASMKILN_CACHE_TTL_S": "7d"})).splitlines()
    assert len(lines) == len(Settings.model_fields)
    assert 'cache_ttl_s = "7d"  # env WASMKILN_CACHE_TTL_S' in lines
    assert "memory_bytes = 1000001  # flag --memory-bytes" in lines
    assert 'max_module_bytes = "5MiB"  # default' in lines
    assert 'redis_url = "redis://***:***@h:1/0"  # flag --redis-url' in lines


def test_json_has_plain_units_and_no_secret() -> None:
    loaded = load(FLAGS, {"HOME": "/h", "WASMKILN_SIGNING_KEY": "hunter2"})
    text = as_json(loaded)
    assert "hunter2" not in text + render(loaded)
    assert loaded.settings.signing_key.get_secret_value() == "hunter2"
    shown = json.loads(text)
    assert list(shown) == list(Settings.model_fields)
    assert shown["memory_bytes"] == {
        "value": 1000001,
        "origin": "flag --memory-bytes",
        "in_force": 1000001,
    }
    assert shown["workers"]["value"] == 0
    assert shown["workers"]["in_force"] == loaded.settings.effective_workers
    assert shown["listen"]["value"] == ["127.0.0.1:0", "unix:/run/kiln.sock"]


def test_the_reference_names_every_setting_three_ways_and_no_machine() -> None:
    page = reference()
    for field, info in Settings.model_fields.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{field}` |")]
        assert f"`{env_name(field)}`" in row
        assert (f"`{flag_name(field)}`" in row) is has_flag(field)
        assert info.description
        assert info.description in row
        assert row.count("|") == 7
    assert str(Path.home()) not in page
