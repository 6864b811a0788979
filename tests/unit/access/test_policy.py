"""Which rule an identity meets, and what it gets."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from wasmkilnd.access.guard import Access
from wasmkilnd.access.policy import Policy, Rule, default_policy
from wasmkilnd.cli import command
from wasmkilnd.model import ALL_ROLES, Identity, Role


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("token:ci", "token:ci", True),
        ("token:ci", "token:ci2", False),
        ("token:*", "token:", True),
        ("spiffe://a.org/builder/*", "spiffe://a.org/builder/7/x", True),
        ("spiffe://a.org/builder/*", "spiffe://a.org/builder", False),
        ("dns:*.ci.a.org", "dns:x.ci.a.org", True),
        ("dns:*.ci.a.org", "dns:ci.a.org", False),
        ("jwt:a*b*c", "jwt:abc", True),
        ("jwt:a*b*c", "jwt:ac", False),
        ("jwt:a*a", "jwt:a", False),
        ("jwt:a*bc*c", "jwt:abc", False),
        ("jwt:a**c", "jwt:ac", True),
        ("jwt:a.c", "jwt:abc", False),
        ("jwt:*", "jwt:a\nb", True),
    ],
)
def test_a_star_stands_for_any_text(pattern: str, name: str, found: bool) -> None:
    assert Rule(identity=(pattern,)).matches(name, {}) is found


def test_the_first_rule_that_matches_counts_alone() -> None:
    policy = Policy(
        (
            Rule(identity=("token:a",), roles=(Role.METRICS,), namespace="team", quota="small"),
            Rule(identity=("token:*",), roles=tuple(ALL_ROLES), namespace="other", quota="large"),
        ),
    )

    found = policy.identity("token:a")

    assert found.roles == {Role.METRICS}
    assert (found.namespace, found.quota) == ("team", "small")
    assert policy.identity("token:b").namespace == "other"
    assert policy.identity("jwt:a").roles == frozenset()


def test_a_token_keeps_its_own_roles_and_its_namespace_unless_a_rule_names_one() -> None:
    policy = Policy(
        (
            Rule(identity=("token:a",), roles=(Role.METRICS,), namespace="team"),
            Rule(identity=("token:b",), roles=(Role.METRICS,)),
        )
    )
    own = Identity("", frozenset({Role.COMPILE}), "mine")

    a = policy.identity("token:a", own=own)
    b = policy.identity("token:b", own=own)
    c = policy.identity("token:c", own=own)

    assert a.roles == b.roles == {Role.METRICS, Role.COMPILE, Role.READ}
    assert (a.namespace, b.namespace, c.namespace) == ("team", "mine", "mine")
    assert c.roles == {Role.COMPILE, Role.READ}


@pytest.mark.parametrize(
    ("said", "matches"),
    [
        ({"groups": "wasm"}, True),
        ({"groups": ["x", "wasm"]}, True),
        ({"groups": "x wasm"}, False),
        ({"groups": ["wasm2"]}, False),
        ({"groups": {"wasm": True}}, False),
        ({"groups": None}, False),
        ({}, False),
    ],
)
def test_a_claim_equals_or_contains_the_value(said: dict[str, object], matches: bool) -> None:
    rule = Rule(identity=("jwt:*",), claims={"groups": "wasm"})
    assert rule.matches("jwt:a", said) is matches


def test_scope_is_a_list_of_words_and_a_number_is_no_switch() -> None:
    assert Rule(identity=("jwt:*",), claims={"scope": "a"}).matches("jwt:x", {"scope": "b a"})
    assert not Rule(identity=("jwt:*",), claims={"n": 1}).matches("jwt:x", {"n": True})


def test_without_a_file_certificates_compile_and_sockets_do_all() -> None:
    policy = default_policy()

    assert policy.identity("spiffe://a/b").roles == {Role.COMPILE, Role.READ}
    assert policy.identity("dns:a").roles == {Role.COMPILE, Role.READ}
    assert policy.identity("unix:/x").roles == ALL_ROLES
    assert policy.identity("jwt:a").roles == policy.identity("anonymous").roles == frozenset()


def test_config_says_how_many_rules_and_tokens_there_are() -> None:
    rules = (Rule(identity=("jwt:*",), roles=(Role.READ,)), Rule(identity=("anonymous",)))
    text = str(Access(Policy(rules), on=True))
    assert text == "# access: every caller needs an identity: 2 rules, 0 tokens"


def test_config_is_toml_and_says_who_is_let_in(tmp_path: Path) -> None:
    run = CliRunner().invoke
    state = ["--state-dir", str(tmp_path / "state")]
    free = ["config", *state, "--listen", "127.0.0.1:0", "--admin-listen", "none"]
    assert "everybody may do everything" in run(command, free).output
    assert run(command, ["token", "add", "ci", "--role", "compile", *state]).exit_code == 0
    text = run(command, free).output
    assert tomllib.loads(text)["state_dir"] == str(tmp_path / "state")
    assert "# access: every caller needs an identity: 2 rules, 1 tokens" in text
