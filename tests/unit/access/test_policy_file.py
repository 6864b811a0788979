"""A policy file: what it says, and what is wrong with it in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkilnd.access.policy import read_policy
from wasmkilnd.files.operator_files import CannotUse
from wasmkilnd.model import Role

from tests.web_tokens import AUDIENCE, ISSUER, jwt_table

ALL = """
[[rule]]
identity = ["spiffe://example.org/builder/*", "dns:*.CI.example.org", "token:ci", "anonymous"]
roles = ["compile", "metrics"]
namespace = "team-a"
quota = "small"

[[rule]]
claims = { groups = "wasm", level = 3, staff = true }
namespace = "team-b"

[quota.small]
calls_per_minute = 20
compiles_per_minute = 0.5
stored_bytes_per_hour = "512MiB"

[quota.none]
"""


def policy(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return path


def test_everything_that_a_file_can_say(tmp_path: Path) -> None:
    found = read_policy(policy(tmp_path, ALL))

    builder = found.identity("spiffe://example.org/builder/1")
    assert builder.roles == {Role.COMPILE, Role.READ, Role.METRICS}
    assert (builder.namespace, builder.quota) == ("team-a", "small")
    assert found.identity("dns:a.ci.example.org").namespace == "team-a"
    assert found.names("anonymous")
    claims = {"groups": ["x", "wasm"], "level": 3, "staff": True}
    assert found.identity("jwt:me", claims).namespace == "team-b"
    assert found.identity("jwt:me", {**claims, "level": 4}).namespace == ""
    assert found.identity("token:other").roles == frozenset()
    assert found.namespaces == {"team-a", "team-b"}
    assert found.quotas == {
        "small": {
            "calls_per_minute": 20,
            "compiles_per_minute": 0.5,
            "stored_bytes_per_hour": 512 * 2**20,
        },
        "none": {},
    }


def test_an_empty_file_gives_nobody_anything(tmp_path: Path) -> None:
    found = read_policy(policy(tmp_path, ""))
    assert found.identity("unix:/x").roles == frozenset()
    assert not found.names("anonymous")


def test_it_says_whose_web_tokens_count_and_whether_health_is_open(tmp_path: Path) -> None:
    found = read_policy(policy(tmp_path, f"open_health = true\n{jwt_table('https://h/k?a=b')}"))
    assert found.open_health
    assert found.jwt
    assert (found.jwt.issuer, found.jwt.audience) == (ISSUER, (AUDIENCE,))
    assert (found.jwt.keys, found.jwt.file) == ("https://h/k?a=b", None)
    found = read_policy(policy(tmp_path, jwt_table(tmp_path / "keys.json")))
    assert not found.open_health
    assert found.jwt
    assert found.jwt.file == tmp_path / "keys.json"


TOKEN = '[[rule]]\nidentity = "token:a"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x", "not valid TOML"),
        ("[[rules]]", "rules: the daemon knows no such key"),
        (f"{TOKEN}[[rule]]\nidentity = '*'", "rule 2 identity 1: '\\*' is no identity"),
        (f"{TOKEN}[[rule]]\nroles = []", "rule 2: it is about nobody"),
        (f"{TOKEN}roles = ['reed']", "rule 1 roles 1: it should be 'read', 'compile'"),
        (f"{TOKEN}namespace = 'A'", "rule 1 namespace: it should match pattern"),
        (f"{TOKEN}namespace = '../a'", "rule 1 namespace: it should match pattern"),
        (f"{TOKEN}quota = 'q'\n[quota.r]", "rule 1: there is no \\[quota.q\\]; there is r"),
        (f"{TOKEN}max_module_bytes = '2GiB'", "rule 1 max_module_bytes: it should be less than"),
        (f"{TOKEN}max_module_bytes = 'x'", "rule 1 max_module_bytes: 'x' is not a size"),
        (f"{TOKEN}role = ['read']", "rule 1 role: the daemon knows no such key"),
        (f"{TOKEN}claims = {{ a = 1 }}", "rule 1: claims are those of jwt: identities"),
        (
            "[quota.q]\ncalls_per_minute = 0",
            "quota q calls_per_minute: it should be greater than or equal to 0.001",
        ),
        ("[quota.q]\nstored_bytes_per_hour = 0", "quota q stored_bytes_per_hour: it should be gr"),
        ("[quota.q]\ncalls_per_minute = true", "quota q calls_per_minute: it should be a valid n"),
        ("[quota.q]\ncompiles_per_minute = inf", "quota q compiles_per_minute: "),
        (
            "[quota.q]\nstored_bytes_per_hour = 'x'",
            "quota q stored_bytes_per_hour: 'x' is not a size",
        ),
        ("[quota.q]\nx = 1", "quota q x: the daemon knows no such key"),
        *(
            (
                f"[quota.q]\n{gone} = 1",
                f"quota q {gone}: there is no such quota any more: {advice}",
            )
            for gone, advice in (
                ("calls", "write calls_per_minute instead"),
                ("bytes_in_flight", "leave it out"),
                ("queue_share", "leave it out"),
                ("cpu_seconds_per_hour", "write compiles_per_minute instead"),
                ("bytes_kept", "write stored_bytes_per_hour instead"),
            )
        ),
        ('[jwt]\nissuer = "i"\nkeys = "/k"', "jwt audience: "),
        ('[jwt]\nissuer = "i"\naudience = []\nkeys = "/k"', "jwt audience: "),
        (jwt_table("http://h/k"), "jwt keys: write the path of a file, or an https:// URL"),
        (jwt_table("https://u:hunter2@h/k"), "jwt keys: write the path of a file"),
        (jwt_table("~nobodyhere/k"), "jwt keys: '~nobodyhere/k' names the home of an unknown user"),
        ("open_health = 1", "open_health: it should be a valid boolean"),
        ("[namespace.a]", "namespace: there is no such table any more: leave it out: "),
        ("a=" + "[" * 5000 + "]" * 5000, "not valid TOML"),
        (f"a={'9' * 5000}", "not valid TOML: a number does not fit into 64 bits"),
        (
            f"[quota.q]\ncalls_per_minute=0x{'f' * 5000}",
            "not valid TOML: a number does not fit into 64",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    path = policy(tmp_path, text)
    with pytest.raises(CannotUse, match=f"cannot use policy {path}: {problem}") as refused:
        read_policy(path)
    assert len(str(refused.value).splitlines()) == 1


def test_each_problem_has_a_line_and_there_are_few(tmp_path: Path) -> None:
    path = policy(tmp_path, f"{TOKEN}roles = ['x']\n" * 100)
    with pytest.raises(CannotUse) as refused:
        read_policy(path)
    assert len(str(refused.value).splitlines()) == 20


def test_a_file_that_others_can_change_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = policy(tmp_path, "")
    path.chmod(0o666)
    with pytest.raises(CannotUse, match="other users may write to it"):
        read_policy(path)
    with pytest.raises(CannotUse, match="there is no such file"):
        read_policy(tmp_path / "none.toml")
    with pytest.raises(CannotUse, match="Is a directory"):
        read_policy(tmp_path)
