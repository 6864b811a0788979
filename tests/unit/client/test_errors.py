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
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from wasmkiln import Client, ConnectionFailed, errors
from wasmkiln.errors import BY_REASON
from wasmkiln.rpc import error_from_rpc

if TYPE_CHECKING:
    from tests.unit.client.fake_daemon import FakeDaemon, Refusal

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


def test_the_protos_name_reasons() -> None:
    assert len(documented_reasons()) >= 15  # the pattern above still finds them


@pytest.mark.parametrize("reason", sorted(documented_reasons()))
def test_every_documented_reason_has_a_class_with_its_code(reason: str) -> None:
    kind = BY_REASON[reason]
    assert kind.CODE.name in documented_reasons()[reason]
    assert getattr(wasmkiln, kind.__name__) is kind


@pytest.mark.parametrize("reason", sorted(BY_REASON))
def test_each_reason_arrives_as_its_class(
    daemon: FakeDaemon, refusal: type[Refusal], reason: str
) -> None:
    kind = BY_REASON[reason]
    daemon.refuse(
        refusal(
            kind.CODE,
            reason,
            "the engine said no",
            {"engine": "wasmer-1.1.0"},
            violations=(("module", "is bad"),),
        )
    )
    with (
        wasmkiln.Client(daemon.address, max_attempts=1) as client,
        pytest.raises(kind) as caught,
    ):
        client.stats()
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason) == (kind.CODE, reason)
    message = "the engine said no"
    if kind is errors.CredentialsMissing:  # only the client knows how to give it some
        message = error.message
        assert message.startswith("the engine said no (in wasmkiln: token_file or ")
    assert str(error) == error.message == message
    assert error.metadata == {"engine": "wasmer-1.1.0"}
    assert error.field_violations == (errors.FieldViolation("module", "is bad"),)
    assert error.retry_after_s is None


def test_a_reason_from_a_newer_daemon_is_kept(daemon: FakeDaemon, refusal: type[Refusal]) -> None:
    daemon.refuse(refusal(grpc.StatusCode.ABORTED, "FROM_THE_FUTURE"))
    with wasmkiln.Client(daemon.address) as client, pytest.raises(errors.WasmkilnError) as caught:
        client.stats()
    assert type(caught.value) is errors.WasmkilnError
    assert caught.value.reason == "FROM_THE_FUTURE"


def test_another_system_s_reason_is_not_ours(daemon: FakeDaemon, refusal: type[Refusal]) -> None:
    daemon.refuse(refusal(grpc.StatusCode.ABORTED, "MODULE_INVALID", domain="googleapis.com"))
    with wasmkiln.Client(daemon.address) as client, pytest.raises(errors.WasmkilnError) as caught:
        client.stats()
    assert not isinstance(caught.value, errors.ModuleInvalid)
    assert caught.value.reason == ""


def test_damaged_details_leave_code_and_text() -> None:
    error = translated(
        grpc.StatusCode.INTERNAL, "boom", (("grpc-status-details-bin", b"\xff\xff\xff"),)
    )
    assert (error.code, error.message, error.reason) == (grpc.StatusCode.INTERNAL, "boom", "")


def test_unavailable_without_details_is_no_connection() -> None:
    error = translated(grpc.StatusCode.UNAVAILABLE, "Connection refused")
    assert isinstance(error, errors.ConnectionFailed)
    assert error.metadata == {"address": "here:1", "detail": "Connection refused"}


def test_a_call_that_is_not_served_names_the_operators_address() -> None:
    error = translated(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    assert error.code is grpc.StatusCode.UNIMPLEMENTED
    assert "does not serve this call" in error.message
    assert "operator_listen" in error.message


def test_who_has_no_credentials_reads_how_to_give_some() -> None:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason="CREDENTIALS_MISSING", domain="wasmkiln"))
    status = status_pb2.Status(details=[packed]).SerializeToString()
    trailers = (("grpc-status-details-bin", status),)
    error = translated(grpc.StatusCode.UNAUTHENTICATED, "send a token", trailers)
    assert error.message == (
        "send a token (in wasmkiln: token_file or WASMKILN_TOKEN_FILE; cert_file and key_file)"
    )


def test_deadline_without_details_is_the_caller_s_own() -> None:
    error = translated(grpc.StatusCode.DEADLINE_EXCEEDED)
    assert isinstance(error, errors.DeadlineExceeded)
    assert "here:1 within 7 s" in error.message


@pytest.mark.parametrize(
    ("text", "metadata"),
    [
        (
            "SERVER: Received message larger than max (5000005 vs. 4194304)",
            {"size_bytes": "5000005", "limit_bytes": "4194304"},
        ),
        (
            "grpc: received message larger than max (7 vs. 5)",
            {"size_bytes": "7", "limit_bytes": "5"},
        ),
        ("received message larger than max", {}),
    ],
)
def test_grpc_s_own_size_limit_is_a_module_too_large(text: str, metadata: dict[str, str]) -> None:
    error = translated(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
    assert isinstance(error, errors.ModuleTooLarge)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.metadata == metadata


def test_an_answer_that_is_too_large_is_not_the_module() -> None:
    error = translated(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "Stream removed (CLIENT: Received message larger than max (5 vs. 4))",
    )
    assert not isinstance(error, errors.ModuleTooLarge)


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
        assert f"no daemon answers at {address} ({cause})" in failure.value.message
