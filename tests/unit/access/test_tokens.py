"""Tokens: made once, kept as a digest, found again, revoked."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wasmkilnd.access.tokens import Tokens, TokenStore, as_file, new_token, read_tokens
from wasmkilnd.files.operator_files import CannotUse
from wasmkilnd.model import Role

READ = frozenset({Role.READ})


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "access" / "tokens.json")


def test_a_token_is_found_again_and_only_its_digest_is_kept(store: TokenStore) -> None:
    """In a file that is for its owner alone."""
    made, kept = store.add("ci", READ, "team", 60)
    found = read_tokens(store.file)
    assert found is not None
    assert found.find(made) == kept
    assert made.split("_")[2] not in store.file.read_text()
    assert kept.sha256 not in repr(kept)
    assert (kept.name, kept.namespace, kept.roles) == ("ci", "team", READ)
    assert kept.expires is not None
    assert not kept.expired(kept.expires - 1)
    assert kept.expired(kept.expires)
    assert stat.S_IMODE(store.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.file.parent.stat().st_mode) == 0o700
    store.file.chmod(0o644)
    with pytest.raises(CannotUse, match="other users may read it"):
        read_tokens(store.file)


def test_no_other_text_is_the_token() -> None:
    made, kept = new_token("ci", READ, "", 0, None)
    other, _ = new_token("ci", READ, "", 0, None)
    tokens = Tokens(tokens=[kept])

    for wrong in (made[:-1], made + "0", made.upper(), made + "\n", other, "", "wk_", "wk__"):
        assert tokens.find(wrong) is None
    assert tokens.find(f"wk_{kept.id}_{other.split('_')[2]}") is None


def test_revoking_leaves_the_file_so_that_access_stays_on(store: TokenStore) -> None:
    kept = [store.add("ci", READ, "", None)[1] for _ in range(2)]
    other = store.add("other", READ, "", None)[1]
    assert [each.id for each in store.revoke(kept[0].id)] == [kept[0].id]
    assert [each.id for each in store.revoke("ci")] == [kept[1].id]
    assert store.tokens() == [other]
    store.revoke("other")
    found = read_tokens(store.file)
    assert found is not None
    assert not found.all
    with pytest.raises(CannotUse, match="no token has this name or id"):
        store.revoke("ci")


def test_processes_that_add_at_once_lose_nothing(store: TokenStore) -> None:
    names = [f"t{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: TokenStore(store.file).add(name, READ, "", None), names))
    assert sorted(each.name for each in store.tokens()) == sorted(names)
    assert [path.name for path in store.file.parent.glob("*.tmp")] == []


NO_NAMES = [(name, "", "name") for name in ("", "a b", "a" * 64, "a\n")]
NO_NAMES += [("a", namespace, "namespace") for namespace in ("Team", "a/b", "a\n")]


@pytest.mark.parametrize(("name", "namespace", "why"), NO_NAMES)
def test_names_are_plain(store: TokenStore, name: str, namespace: str, why: str) -> None:
    with pytest.raises(CannotUse, match=f"cannot make a token .*{why}: "):
        store.add(name, READ, namespace, None)


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
        with pytest.raises(CannotUse, match="cannot use tokens file") as refused:
            read_tokens(file)
        assert kept.sha256 not in str(refused.value)
        assert refused.value.__suppress_context__
    file.write_text("{")
    with pytest.raises(CannotUse, match="cannot use tokens file"):
        read_tokens(file)
