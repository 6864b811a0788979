"""Each row of the error table through grpcurl, no row without a test; and the exit codes.

But for INTERNAL, which stands for a defect: tests/unit/rpc/test_defect.py plants one.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grpc
import pytest

from tests.e2e import wasm
from tests.e2e.bearers import add_token
from tests.e2e.callers import ENGINE, held_worker, modules
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.error_rows import DAEMONS, ROWS, Row
from tests.e2e.fixtures import serving
from tests.e2e.processes import eventually
from tests.e2e.programs import ENGINE_SPECS, ROOT, WASMKILN, Installed, run
from tests.e2e.refusals import EXPIRED, READER, SMALL
from tests.web_tokens import TestIssuer, jwt_table

_CODES = "|".join(code.name for code in grpc.StatusCode)
QUOTA = """
[[rule]]
identity = "token:small.token"
quota = "small"
[quota.small]
compiles_per_minute = 1
"""


ALL = [spec.replace("==", "-") for spec in ENGINE_SPECS]
strict = serving(*ALL, flags=DAEMONS["strict"])
crowded = serving(ENGINE, flags=DAEMONS["crowded"])


@pytest.fixture(scope="module")
def guarded(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    state = state_with(tmp_path_factory.mktemp("guarded") / "state", ENGINE)
    for name, role, expires in (
        *((READER, "read", ""), (EXPIRED, "read", "1s"), (SMALL, "compile", "")),
    ):
        (state / name).write_text(add_token(state, name, role, expires=expires))
        (state / name).chmod(0o600)
    keys = state / "keys.json"
    keys.write_bytes(TestIssuer().key_set())
    policy = state / "policy.toml"
    policy.write_text(jwt_table(keys) + QUOTA)
    with Daemon(state, [*DAEMONS["guarded"], "--policy-file", str(policy)]) as daemon:
        yield daemon
    assert daemon.process.returncode == 0


def command(daemon: Daemon, *words: object, token: str = "") -> list[str]:
    who = ["--token-file", str(daemon.state_dir / token)] if token else []
    return [WASMKILN, "--address", daemon.address, *who, *map(str, words)]


def ended(argv: list[str]) -> tuple[int, str]:
    """Run a command; return its exit code and its last line on standard error."""
    done = run(*argv)
    assert "Traceback" not in done.stderr
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


def test_exit_codes_that_scripts_decide_by(
    strict: Daemon, crowded: Daemon, guarded: Daemon, tmp_path: Path
) -> None:
    new, other = tmp_path / "new.wasm", tmp_path / "other.wasm"
    new.write_bytes(wasm.adder(1))
    other.write_bytes(wasm.adder(2))
    assert ended(command(strict, "compile", new)) == (0, "")
    for daemon, code, words, token, says in (
        (strict, 1, ["compile", "/etc/passwd"], "", "/etc/passwd: these bytes are not a WebAss"),
        (strict, 2, ["compile"], "", ""),
        (strict, 2, ["no-such-command"], "", ""),
        # Less than the quota's minute, and enough for a job that has to wait.
        (guarded, 0, ["--timeout", "45", "compile", new], SMALL, ""),
        (guarded, 5, ["--timeout", "45", "compile", other], SMALL, "quota"),
        (guarded, 6, ["compile", other], "", ""),
        (guarded, 6, ["compile", other], READER, "compile"),
    ):
        found = ended(command(daemon, *words, token=token))
        assert found[0] == code, (words, found)
        assert says in found[1]
    code, said = ended(
        [WASMKILN, "--address", "127.0.0.1:1", "--timeout", "2", "compile", str(new)]
    )
    assert code == 3
    assert "no daemon answers at 127.0.0.1:1" in said
    [module] = modules(1)
    new.write_bytes(module)
    with held_worker(crowded):
        assert ended(command(crowded, "--timeout", "0.5", "compile", new))[0] == 4
        eventually(lambda: crowded.metric("calls") == 1, "the call is still there")
        asks = subprocess.Popen(
            command(crowded, "compile", new), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        eventually(lambda: crowded.metric("calls") == 2, "it does not call")
        asks.send_signal(signal.SIGINT)
        _, told = asks.communicate(timeout=60)
    assert asks.returncode == 130, told
    assert b"Traceback" not in told


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.reason)
def test_row(row: Row, request: pytest.FixtureRequest) -> None:
    daemon: Daemon = request.getfixturevalue(row.daemon)
    refused = row.meet(daemon)
    info = refused.details["ErrorInfo"]
    assert (info["domain"], info["reason"]) == ("wasmkiln", row.reason), refused
    assert refused.code == _as_grpcurl_says(documented()[row.reason].code)
    assert row.says in refused.message
    assert refused.metadata.keys() == row.metadata.keys(), refused
    for name, pattern in row.metadata.items():
        assert re.fullmatch(pattern, refused.metadata[name]), (name, refused.metadata[name])
    violations = refused.details.get("BadRequest", {}).get("field_violations", [])
    assert [one["field"] for one in violations] == ([row.at_fault] if row.at_fault else [])
    delay_s = float(refused.details.get("RetryInfo", {}).get("retry_delay", "0s").rstrip("s"))
    assert (delay_s > 0) == documented()[row.reason].retry
    # For people who call, and not about files and lines.
    for trace in ("Traceback", 'File "', ".py", "Error:"):
        assert trace not in refused.text
    if row.reason != "SERVER_DRAINING" and row.daemon != "guarded":
        with daemon.client() as client:
            assert client.compile(wasm.constant(4711), skip_cache_lookup=True).bytes


@dataclass(frozen=True)
class Documented:
    """What docs/reference/errors.md says of a reason."""

    code: str
    retry: bool
    """Whether the daemon says how long to wait."""
    words: frozenset[str]
    """Names of its metadata, and values where they tell cases apart."""


@cache
def documented() -> dict[str, Documented]:
    """Return the rows of docs/reference/errors.md by their reasons."""
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    cells = r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \|(?: [^|]* \|) ([^|]*) \| ?([^|]*) ?\|$"
    return {
        reason: Documented(code, "RetryInfo" in to_do, frozenset(re.findall(r"`(\w+)`", metadata)))
        for reason, code, to_do, metadata in re.findall(cells, page, re.MULTILINE)
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
    for reason in {row.reason for row in ROWS}:
        words = documented()[reason].words
        rows = [row for row in ROWS if row.reason == reason]
        names = {name for row in rows for name in row.metadata}
        values = {value for row in rows for value in row.metadata.values()}
        assert names <= words, f"{reason}: met, and not documented"
        assert words <= names | values, f"{reason}: documented, and not met"


def _as_grpcurl_says(code: str) -> str:
    return "".join(word.title() for word in code.split("_"))
