"""What commands that change keys and tokens write into the audit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from wasmkilnd.cli import command
from wasmkilnd.signing.keys import PrivateKey


def run(*words: str) -> Result:
    return CliRunner().invoke(command, words, catch_exceptions=False)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "audit.jsonl"
    monkeypatch.setenv("WASMKILN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("WASMKILN_AUDIT_FILE", str(path))
    return path


def told(path: Path) -> Sequence[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tokens_are_told_without_their_secrets(path: Path) -> None:
    secret = run("token", "add", "ci", "--role", "compile").stdout.strip()
    run("token", "revoke", "ci")
    added, revoked = told(path)
    assert (added["event"], added["what"], added["token"]) == ("change", "token_added", "ci")
    assert added["identity"].startswith("uid:")
    assert added["roles"] == "compile"
    assert revoked["what"] == "token_revoked"
    assert added["id"] == revoked["id"]
    assert secret.rpartition("_")[2] not in path.read_text()


def test_keys_are_told_by_their_ids(path: Path) -> None:
    other = PrivateKey.generate()
    run("keys", "generate")
    run("keys", "rotate")
    run("keys", "generate", "--next")
    run("keys", "activate")
    run("keys", "trust", other.public.hex)
    run("keys", "distrust", other.public.id)
    run("keys", "revoke", other.public.id)
    first, second, third, activated, *others = told(path)
    assert first["what"] == second["what"] == third["what"] == "key_made"
    assert len({first["key_id"], second["key_id"], third["key_id"]}) == 3
    assert (activated["what"], activated["key_id"]) == ("key_activated", third["key_id"])
    assert [(line["what"], line["key_id"]) for line in others] == [
        ("key_trusted", other.public.id),
        ("key_distrusted", other.public.id),
        ("key_revoked", other.public.id),
    ]
    assert other.base64 not in path.read_text()


def test_a_change_that_cannot_be_told_is_made_with_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WASMKILN_AUDIT_FILE", str(path / "missing" / "audit.jsonl"))
    done = run("token", "add", "ci", "--role", "read")
    assert done.exit_code == 0
    assert done.stdout.startswith("wk_")
    assert "warning: cannot write the audit to" in done.stderr
    assert "No such file or directory" in done.stderr
