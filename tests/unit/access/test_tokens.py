"""Tokens: made once, kept as a digest, found again, revoked."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wasmkilnd.access.tokens import Tokens, TokenStore, as_file, new_token, read_tokens
from wasmkilnd.access.unusable import AccessUnusable
from wasmkilnd.model import Role

READ = frozenset({Role.READ})


def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "access" / "tokens.json")


def test_a_token_is_found_again_and_only_its_digest_is_kept(tmp_path: Path) -> None:
    made, kept = store(tmp_path).add("ci", READ, "team", 60)

    found = read_tokens(store(tmp_path).file)

    assert found is not None
    assert found.find(made) == kept
    assert made.split("_")[2] not in store(tmp_path).file.read_text()
    assert kept.sha256 not in repr(kept)
    assert (kept.name, kept.namespace, kept.roles) == ("ci", "team", READ)
    assert kept.expires is not None
    assert not kept.expired(kept.expires - 1)
    assert kept.expired(kept.expires)


def test_no_other_text_is_the_token() -> None:
    made, kept = new_token("ci", READ, "", 0, None)
    other, _ = new_token("ci", READ, "", 0, None)
    tokens = Tokens(tokens=[kept])

    for wrong in (made[:-1], made + "0", made.upper(), made + "\n", other, "", "wk_", "wk__"):
        assert tokens.find(wrong) is None
    assert tokens.find(f"wk_{kept.id}_{other.split('_')[2]}") is None


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    store(tmp_path).add("ci", READ, "", None)
    file = store(tmp_path).file

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.chmod(0o644)
    with pytest.raises(AccessUnusable, match="other users may read it"):
        read_tokens(file)


def test_revoking_leaves_the_file_so_that_access_stays_on(tmp_path: Path) -> None:
    kept = [store(tmp_path).add("ci", READ, "", None)[1] for _ in range(2)]
    other = store(tmp_path).add("other", READ, "", None)[1]

    assert [each.id for each in store(tmp_path).revoke(kept[0].id)] == [kept[0].id]
    assert [each.id for each in store(tmp_path).revoke("ci")] == [kept[1].id]
    assert store(tmp_path).tokens() == [other]
    store(tmp_path).revoke("other")

    found = read_tokens(store(tmp_path).file)
    assert found is not None
    assert not found.all
    with pytest.raises(AccessUnusable, match="no token has this name or id"):
        store(tmp_path).revoke("ci")


def test_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    def add(number: int) -> None:
        store(tmp_path).add(f"t{number}", READ, "", None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))

    assert {each.name for each in store(tmp_path).tokens()} == {f"t{n}" for n in range(24)}
    assert [path.name for path in store(tmp_path).file.parent.glob("*.tmp")] == []


@pytest.mark.parametrize(
    ("name", "namespace", "why"),
    [
        ("", "", "name: "),
        ("a b", "", "name: "),
        ("a" * 64, "", "name: "),
        ("a\n", "", "name: "),
        ("a", "Team", "namespace: "),
        ("a", "a/b", "namespace: "),
        ("a", "a\n", "namespace: "),
    ],
)
def test_names_are_plain(tmp_path: Path, name: str, namespace: str, why: str) -> None:
    with pytest.raises(AccessUnusable, match=f"cannot make a token .*{why}"):
        store(tmp_path).add(name, READ, namespace, None)


def test_a_broken_file_is_refused_without_its_content(tmp_path: Path) -> None:
    _, kept = new_token("ci", READ, "", 0, None)
    good = json.loads(as_file([kept]))
    file = tmp_path / "tokens.json"
    for change in (
        {"version": 2},
        {"tokens": [{**good["tokens"][0], "roles": ["owner"]}]},
        {"tokens": [{**good["tokens"][0], "name": "a\nb"}]},
        {"tokens": [{**good["tokens"][0], "namespace": "../x"}]},
        {"tokens": 7},
        {"more": 1},
    ):
        file.write_text(json.dumps({**good, **change}))
        file.chmod(0o600)
        with pytest.raises(AccessUnusable, match="cannot use tokens file") as refused:
            read_tokens(file)
        assert kept.sha256 not in str(refused.value)
        assert refused.value.__suppress_context__
    file.write_text("{")
    with pytest.raises(AccessUnusable, match="cannot use tokens file"):
        read_tokens(file)
