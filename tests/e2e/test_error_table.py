"""Each row of the error table through grpcurl, and that no row is without a test.

But for INTERNAL, which stands for a defect: tests/unit/rpc/test_defect.py plants one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest

from tests.e2e import wasm
from tests.e2e.bearers import add_token
from tests.e2e.callers import ENGINE
from tests.e2e.daemon import Daemon, fresh_state, state_with
from tests.e2e.error_rows import CROWDED, GUARDED, ROWS, STRICT, Row
from tests.e2e.programs import ROOT, Installed
from tests.e2e.refusals import EXPIRED, READER
from tests.web_tokens import TestIssuer, jwt_table

_CODES = "|".join(code.name for code in grpc.StatusCode)


@pytest.fixture(scope="module")
def strict(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    state = fresh_state(tmp_path_factory.mktemp("strict") / "state")
    with Daemon(state, STRICT) as daemon:
        yield daemon
    assert daemon.process.returncode == 0


@pytest.fixture(scope="module")
def crowded(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    state = state_with(tmp_path_factory.mktemp("crowded") / "state", ENGINE)
    with Daemon(state, CROWDED) as daemon:
        yield daemon
    assert daemon.process.returncode == 0


@pytest.fixture(scope="module")
def guarded(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    state = state_with(tmp_path_factory.mktemp("guarded") / "state", ENGINE)
    for name, expires in ((READER, ""), (EXPIRED, "1s")):
        (state / name).write_text(add_token(state, name, "read", expires=expires))
    keys = state / "keys.json"
    keys.write_bytes(TestIssuer().key_set())
    policy = state / "policy.toml"
    policy.write_text(jwt_table(keys))
    with Daemon(state, [*GUARDED, "--policy-file", str(policy)]) as daemon:
        yield daemon
    assert daemon.process.returncode == 0


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row, request: pytest.FixtureRequest) -> None:
    daemon: Daemon = request.getfixturevalue(
        "guarded" if row.guarded else "crowded" if row.crowded else "strict"
    )
    refused = row.meet(daemon)
    info = refused.details["ErrorInfo"]
    assert (info["domain"], info["reason"]) == ("wasmkiln", row.reason), refused
    assert refused.code == _as_grpcurl_says(documented()[row.reason].code)
    assert row.says in refused.message
    assert refused.metadata.keys() == row.metadata.keys()
    for name, pattern in row.metadata.items():
        assert re.fullmatch(pattern, refused.metadata[name]), (name, refused.metadata[name])
    violations = refused.details.get("BadRequest", {}).get("field_violations", [])
    assert [one["field"] for one in violations] == ([row.at_fault] if row.at_fault else [])
    delay_s = float(refused.details.get("RetryInfo", {}).get("retry_delay", "0s").rstrip("s"))
    assert (delay_s > 0) == row.retry
    # For people who call, and not about files and lines.
    for trace in ("Traceback", 'File "', ".py", "Error:"):
        assert trace not in refused.text
    if row.reason != "SERVER_DRAINING" and not row.guarded:
        with daemon.client() as client:
            assert client.compile(wasm.constant(4711), skip_cache_lookup=True).bytes


@dataclass(frozen=True)
class Documented:
    """What docs/reference/errors.md says of a reason."""

    code: str
    words: frozenset[str]
    """Names of its metadata, and values where they tell cases apart."""


def documented() -> dict[str, Documented]:
    """Return the rows of docs/reference/errors.md by their reasons."""
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    cells = r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \|(?: [^|]* \|){2} ?([^|]*) ?\|$"
    return {
        reason: Documented(code, frozenset(re.findall(r"`(\w+)`", metadata)))
        for reason, code, metadata in re.findall(cells, page, re.MULTILINE)
    }


def promised() -> dict[str, str]:
    """Return the code of each reason, as the protos name them at the RPCs."""
    protos = sorted((ROOT / "protos" / "wasmkiln").rglob("*.proto"))
    text = "\n".join(proto.read_text() for proto in protos)
    named = set(re.findall(rf"^ *// +({_CODES}) +([A-Z_]+)\b", text, re.MULTILINE))
    codes = {reason: code for code, reason in named}
    assert len(codes) == len(named), "a reason has two codes"
    return codes


def test_every_reason_is_documented_and_met() -> None:
    assert {reason: row.code for reason, row in documented().items()} == promised()
    assert {row.reason for row in ROWS} == promised().keys() - {"INTERNAL"}


@pytest.mark.parametrize("reason", sorted({row.reason for row in ROWS}))
def test_what_is_documented_is_what_is_met(reason: str) -> None:
    words = documented()[reason].words
    rows = [row for row in ROWS if row.reason == reason]
    names = {name for row in rows for name in row.metadata}
    values = {value for row in rows for value in row.metadata.values()}
    assert names <= words, "met, and not documented"
    assert words <= names | values, "documented, and not met"


def _as_grpcurl_says(code: str) -> str:
    return "".join(word.title() for word in code.split("_"))
