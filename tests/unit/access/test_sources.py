"""Each part of what says who may do what is read, whatever is wrong with the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkilnd.access import guard
from wasmkilnd.access.guard import files_of, read_access
from wasmkilnd.access.policy import Policy
from wasmkilnd.access.tokens import TokenStore
from wasmkilnd.model import Role
from wasmkilnd.settings import Settings

from tests.web_tokens import TestIssuer, jwt_table

BROKEN = f"a = {'9' * 5000}"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that name a policy without rules, a token, and the key `old`."""
    keys = write(tmp_path / "keys.json", TestIssuer(key_id="old").key_set().decode())
    policy = write(tmp_path / "policy.toml", jwt_table(keys))
    one = Settings(state_dir=tmp_path / "state", policy_file=str(policy))
    TokenStore(one.effective_tokens_file).add("old", [Role.READ], "", None)
    return one


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("broken", ["policy", "tokens", "keys"])
def test_a_part_that_cannot_be_used_stays_and_the_others_are_read(
    settings: Settings, broken: str
) -> None:
    before, _ = read_access(settings)
    TokenStore(settings.effective_tokens_file).revoke("old")
    TokenStore(settings.effective_tokens_file).add("new", [Role.READ], "", None)
    keys = Path(settings.policy_file).with_name("keys.json")
    rule = '[[rule]]\nidentity = "token:new"\nroles = ["read"]'
    files = {
        "policy": (Path(settings.policy_file), jwt_table(keys) + rule),
        "tokens": (settings.effective_tokens_file, settings.effective_tokens_file.read_text()),
        "keys": (keys, TestIssuer(key_id="new").key_set().decode()),
    }
    for name, (file, text) in files.items():
        write(file, BROKEN if name == broken else text)

    now, causes = read_access(settings, before)
    assert len(causes) == 1
    assert str(files[broken][0]) in causes[0]
    assert now.tokens
    assert now.issuer
    assert now.on
    assert {
        "policy": bool(now.policy.rules),
        "tokens": [token.name for token in now.tokens.all] == ["new"],
        "keys": [*now.issuer.keys] == ["new"],
    } == {name: name != broken for name in files}


def test_each_file_is_watched(settings: Settings) -> None:
    access, _ = read_access(settings)
    policy = Path(settings.policy_file)
    watched = {settings.effective_tokens_file, policy, policy.with_name("keys.json")}
    assert set(files_of(settings, access)) == watched


def test_what_nobody_foresaw_is_a_refusal_and_tells_no_secret(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = read_access(settings)

    def fail(_: Path) -> Policy:
        raise RuntimeError("a secret")

    monkeypatch.setattr(guard, "read_policy", fail)
    now, causes = read_access(settings, before)
    assert now.policy == before.policy
    [cause] = causes
    assert cause.startswith("cannot read the policy: a defect of the daemon (RuntimeError in ")
    assert "secret" not in cause
