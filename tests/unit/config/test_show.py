"""What `wasmkilnd config` prints, the reference page, the flags, and what a reload finds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_origin

import click
import pytest
from click.testing import CliRunner
from wasmkilnd.settings import Settings, env_name, flag_name, has_flag, is_live
from wasmkilnd.settings_loader import FlagValue, as_json, changes, load, options, reference, render

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


# The command line flags


SECRETS = {"signing_key", "redis_password"}


@click.command()
@click.argument("word")
@options
def command(word: str, flags: dict[str, Any], config: Path | None) -> None:
    """Show what it got."""
    click.echo(json.dumps([word, flags, str(config)]))


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(command, ["word", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_has_a_flag_but_secrets_which_others_could_read(field: str) -> None:
    flag, kind = flag_name(field), Settings.model_fields[field].annotation
    if field in SECRETS:
        assert not has_flag(field)
        result = CliRunner().invoke(command, ["word", flag, "x"])
        assert (result.exit_code, "No such option" in result.output) == (2, True)
    elif kind is bool:
        assert run(flag)[1] == {field: True}
        assert run(flag.replace("--", "--no-"))[1] == {field: False}
    elif get_origin(kind) is tuple:
        assert run(flag, "a", flag, "b,c")[1] == {field: ["a", "b,c"]}
    else:
        assert run(flag, "any text", "--config", "/x") == ["word", {field: "any text"}, "/x"]
        assert run(flag, "")[1] == {field: ""}


def test_the_help_has_every_setting_with_its_variable() -> None:
    text = " ".join(CliRunner().invoke(command, ["--help"], terminal_width=400).output.split())
    for field in filter(has_flag, Settings.model_fields):
        assert flag_name(field) in text
        assert f"[env: {env_name(field)}; default: " in text
    assert text.index("--config") < text.index("--listen") < text.index("--log-level")


# What differs between two configurations, told without secrets


HOME = {"HOME": "/home/kiln"}


def settings(**environ: str) -> Settings:
    return load({}, {**HOME, **environ}).settings


def test_only_what_differs_and_as_a_person_writes_it() -> None:
    old = settings(WASMKILN_MEMORY_BYTES="64MiB", WASMKILN_WORKERS="2")
    new = settings(WASMKILN_MEMORY_BYTES="1GiB", WASMKILN_WORKERS="3")
    assert changes(old, old) == {}
    assert changes(old, new) == {"memory_bytes": ("64MiB", "1GiB"), "workers": (2, 3)}


def test_secrets_are_compared_and_never_shown() -> None:
    old = settings(
        WASMKILN_REDIS_URL="redis://me:hunter2@host", WASMKILN_SIGNING_KEY="c2VjcmV0MQ=="
    )
    new = settings(
        WASMKILN_REDIS_URL="redis://me:hunter3@host", WASMKILN_SIGNING_KEY="c2VjcmV0Mg=="
    )
    found = changes(old, new)
    assert [*found] == ["signing_key", "redis_url"]
    told = repr(found)
    for secret in ("hunter", "c2VjcmV0"):
        assert secret not in told


def test_the_documentation_names_all_that_needs_a_restart() -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "install.md").read_text()
    told = page.partition("- **Needs a restart**")[2].partition("The old value")[0]
    assert set(re.findall(r"`(\w+)`", told)) == {
        field for field in Settings.model_fields if not is_live(field)
    }
