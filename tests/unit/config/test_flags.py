"""The command line flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from wasmkilnd.settings import Settings, env_name, flag_name, has_flag
from wasmkilnd.settings_loader import options

SWITCHES = {"allow_remote", "install_engines"}
SECRETS = {"signing_key", "redis_password"}
LISTS = {
    "listen",
    "trusted_keys",
    "token_listen",
    "operator_listen",
    "engine_alias",
}
SPECIAL = {*SWITCHES, *SECRETS, *LISTS}


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


@pytest.mark.parametrize("field", sorted(set(Settings.model_fields) - SPECIAL))
def test_every_setting_has_a_flag_that_takes_any_text(field: str) -> None:
    assert run(flag_name(field), "any text")[1] == {field: "any text"}


@pytest.mark.parametrize("field", sorted(SWITCHES))
def test_a_switch_takes_no_text(field: str) -> None:
    assert run(flag_name(field))[1] == {field: True}
    assert run(flag_name(field).replace("--", "--no-"))[1] == {field: False}


def test_listen_and_trusted_keys_are_repeatable() -> None:
    given = run("--listen", "a:1", "--listen", "b:2,c:3", "--config", "/x")
    assert given == ["word", {"listen": ["a:1", "b:2,c:3"]}, "/x"]
    assert run("--trusted-keys", "a", "--trusted-keys", "b")[1] == {"trusted_keys": ["a", "b"]}


@pytest.mark.parametrize("field", sorted(SECRETS))
def test_a_secret_has_no_flag_that_others_could_read(field: str) -> None:
    assert not has_flag(field)
    result = CliRunner().invoke(command, ["word", flag_name(field), "x"])
    assert result.exit_code == 2
    assert "No such option" in result.output


def test_the_help_has_every_setting_with_its_variable() -> None:
    text = " ".join(CliRunner().invoke(command, ["--help"], terminal_width=400).output.split())
    for field in filter(has_flag, Settings.model_fields):
        assert flag_name(field) in text
        assert f"[env: {env_name(field)}; default: " in text
    assert text.index("--config") < text.index("--listen") < text.index("--log-level")
