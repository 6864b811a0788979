"""From what arrives on the wire to what a caller catches."""

from __future__ import annotations

import pickle
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import wasmkiln
from wasmkiln import Client, ConnectionFailed, errors
from wasmkiln.errors import BY_REASON
from wasmkiln.rpc import error_from_rpc

from tests.unit.client.fake_daemon import Refusal

if TYPE_CHECKING:
    from tests.unit.client.fake_daemon import FakeDaemon

PROTOS = Path(__file__).parents[3] / "protos" / "wasmkiln" / "v1"


class Failure:
    """What grpc raises, as far as the client looks at it."""

    def __init__(self, code: grpc.StatusCode, text: str, trailers: Any = None) -> None:
        self.code = lambda: code
        self.details = lambda: text
        self.trailing_metadata = lambda: trailers


def translated(code: grpc.StatusCode, text: str = "", trailers: Any = None) -> errors.WasmkilnError:
    return error_from_rpc(Failure(code, text, trailers), address="here:1", timeout_s=7)


def documented_reasons() -> dict[str, set[str]]:
    """Every CODE REASON pair of the protos' comments."""
    codes = "|".join(code.name for code in grpc.StatusCode)
    found: dict[str, set[str]] = {}
    for proto in PROTOS.glob("*.proto"):
        for line in proto.read_text().splitlines():
            match = re.match(rf"\s*//\s+({codes})\s+([A-Z_]+(?:, [A-Z_]+)*)\s", line)
            if match:
                for reason in match[2].split(", "):
                    found.setdefault(reason, set()).add(match[1])
    return found


def test_the_protos_and_the_classes_name_the_same_reasons() -> None:
    documented = documented_reasons()
    assert len(documented) >= 15  # the pattern above still finds them
    for reason, codes in documented.items():
        kind = BY_REASON[reason]
        assert kind.CODE.name in codes
        assert getattr(wasmkiln, kind.__name__) is kind


@pytest.mark.parametrize(("reason", "kind"), BY_REASON.items())
def test_each_reason_arrives_as_its_class(
    daemon: FakeDaemon, reason: str, kind: type[errors.WasmkilnError]
) -> None:
    metadata, bad = {"engine": "wasmer-1.1.0"}, (("module", "is bad"),)
    daemon.refuse(Refusal(kind.CODE, reason, "the engine said no", metadata, violations=bad))
    with Client(daemon.address, max_attempts=1) as client, pytest.raises(kind) as caught:
        client.stats()
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason) == (kind.CODE, reason)
    message = "the engine said no"
    if kind is errors.CredentialsMissing:  # only the client knows how to give it some
        message += " (in wasmkiln: token_file or WASMKILN_TOKEN_FILE; cert_file and key_file)"
    assert str(error) == error.message == message
    assert error.metadata == metadata
    assert error.field_violations == (errors.FieldViolation("module", "is bad"),)
    assert error.retry_after_s is None


def test_reasons_of_a_newer_daemon_and_of_another_system(daemon: FakeDaemon) -> None:
    for refusal, reason in (
        (Refusal(grpc.StatusCode.ABORTED, "FROM_THE_FUTURE"), "FROM_THE_FUTURE"),
        (Refusal(grpc.StatusCode.ABORTED, "MODULE_INVALID", domain="googleapis.com"), ""),
    ):
        daemon.refuse(refusal)
        with Client(daemon.address) as client, pytest.raises(errors.WasmkilnError) as caught:
            client.stats()
        assert type(caught.value) is errors.WasmkilnError
        assert caught.value.reason == reason


LARGE = "eceived message larger than max"


@pytest.mark.parametrize(
    ("code", "text", "kind", "says", "metadata"),
    [
        (
            *("UNAVAILABLE", "Connection refused", errors.ConnectionFailed, "at here:1"),
            {"address": "here:1", "detail": "Connection refused"},
        ),
        ("UNIMPLEMENTED", "Method not found!", errors.WasmkilnError, "operator_listen", None),
        ("DEADLINE_EXCEEDED", "", errors.DeadlineExceeded, "here:1 within 7 s", None),
        (
            *("RESOURCE_EXHAUSTED", f"SERVER: R{LARGE} (5000005 vs. 4194304)"),
            *(errors.ModuleTooLarge, "", {"size_bytes": "5000005", "limit_bytes": "4194304"}),
        ),
        (
            *("RESOURCE_EXHAUSTED", f"grpc: r{LARGE} (7 vs. 5)", errors.ModuleTooLarge, ""),
            {"size_bytes": "7", "limit_bytes": "5"},
        ),
        ("RESOURCE_EXHAUSTED", f"r{LARGE}", errors.ModuleTooLarge, "", {}),
        ("RESOURCE_EXHAUSTED", f"(CLIENT: R{LARGE} (5 vs. 4))", errors.WasmkilnError, "", {}),
    ],
)
def test_what_grpc_itself_reports(
    code: str, text: str, kind: type[Exception], says: str, metadata: dict[str, str] | None
) -> None:
    error = translated(grpc.StatusCode[code], text)
    assert type(error) is kind
    assert error.code is grpc.StatusCode[code]
    assert says in error.message
    assert metadata in (None, error.metadata)


def test_damaged_details_leave_code_and_text() -> None:
    trailers = (("grpc-status-details-bin", b"\xff\xff\xff"),)
    error = translated(grpc.StatusCode.INTERNAL, "boom", trailers)
    assert (error.code, error.message, error.reason) == (grpc.StatusCode.INTERNAL, "boom", "")
    assert repr(error).startswith("WasmkilnError('boom', ")


def test_a_module_above_grpc_s_limit_of_a_real_server(daemon: FakeDaemon) -> None:
    with wasmkiln.Client(daemon.address) as client, pytest.raises(errors.ModuleTooLarge) as caught:
        client.load(b"\0asm\x01\0\0\0" + bytes(4 * 2**20))
    assert caught.value.metadata["limit_bytes"] == str(4 * 2**20)


def test_an_error_survives_pickling() -> None:
    error = errors.CompileQueueFull("full", metadata={"a": "b"}, retry_after_s=2.5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is errors.CompileQueueFull
    assert (copy.message, copy.metadata, copy.retry_after_s) == ("full", {"a": "b"}, 2.5)


def test_nobody_answers_is_told_with_its_cause(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused = f"127.0.0.1:{silent.getsockname()[1]}"
    for address, cause in (
        (refused, "connection refused"),
        (f"unix:{tmp_path}/none.sock", "no such socket"),
    ):
        with Client(address, max_attempts=1) as client, pytest.raises(ConnectionFailed) as failure:
            client.health()
        assert f"no daemon answers at {address} ({cause}): " in failure.value.message
        assert "`wasmkilnd serve`, or set WASMKILN_ADDRESS" in failure.value.message
