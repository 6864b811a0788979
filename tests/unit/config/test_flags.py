"""The command line flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_origin

import click
import pytest
from click.testing import CliRunner
from wasmkilnd.settings import Settings, env_name, flag_name, has_flag
from wasmkilnd.settings_loader import options

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
