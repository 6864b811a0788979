"""What `wasmkilnd config` tells about access."""

from __future__ import annotations

import tomllib
from pathlib import Path

from click.testing import CliRunner
from wasmkilnd.access.guard import Access
from wasmkilnd.access.policy import NamespaceLimits, Policy, Rule
from wasmkilnd.cli import command
from wasmkilnd.model import Role


def test_a_line_for_each_rule() -> None:
    rules = (
        Rule(
            identity=("jwt:*",),
            roles=(Role.READ,),
            namespace="team",
            quota="small",
            claims={"groups": "a\nb"},
        ),
        Rule(identity=("anonymous",)),
    )
    text = str(Access(Policy(rules, {"team": NamespaceLimits()}), on=True))
    assert text.splitlines()[1:] == [
        '#   1. {"identity":["jwt:*"],"claims":{"groups":"a\\nb"},"roles":["read"],'
        '"namespace":"team","quota":"small"}',
        '#   2. {"identity":["anonymous"]}',
        "# namespaces: team",
    ]


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
