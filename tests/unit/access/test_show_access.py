"""What `wasmkilnd config` tells about access."""

from __future__ import annotations

import tomllib
from pathlib import Path

from click.testing import CliRunner
from wasmkilnd.access.policy import Pattern, Policy, Rule
from wasmkilnd.access.show import shown
from wasmkilnd.access.sources import Sources
from wasmkilnd.cli import command
from wasmkilnd.model import NamespaceLimits, Role


def test_a_line_for_each_rule() -> None:
    rules = (
        Rule(
            (Pattern("jwt:*"),),
            frozenset({Role.READ}),
            "team",
            "small",
            {"groups": "a\nb"},
        ),
        Rule((Pattern("anonymous"),)),
    )
    text = shown(Sources(Policy(rules, {"team": NamespaceLimits()}), None, on=True))
    assert text.splitlines()[1:] == [
        "#   1. jwt:* with groups='a\\nb': read; namespace team; quota small",
        "#   2. anonymous: nothing",
        "# namespaces: team",
    ]


def test_many_rules_are_cut() -> None:
    text = shown(Sources(Policy([Rule((Pattern("jwt:*"),))] * 200), None, on=True))
    assert text.splitlines()[-1] == "#   and 100 more"


def test_the_command_prints_toml_with_it(tmp_path: Path) -> None:
    run = CliRunner().invoke
    state = ["--state-dir", str(tmp_path / "state")]
    free = [*state, "--listen", "127.0.0.1:0", "--admin-listen", "none"]
    assert "everybody may do everything" in run(command, ["config", *free]).output
    made = run(command, ["token", "add", "ci", "--role", "compile", *state])
    assert made.exit_code == 0, made.output
    text = run(command, ["config", *free]).output
    assert tomllib.loads(text)["state_dir"] == str(tmp_path / "state")
    assert "# access: every caller needs an identity" in text
    assert "# tokens: 1, with their own roles besides" in text
