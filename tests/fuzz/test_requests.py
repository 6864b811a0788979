"""Whatever a caller sends as a request, what is built of it is within the bounds, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln.v1.types_pb2 import ArtifactKey
from wasmkilnd.compile import Request, Terms
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.rpc.messages import (
    CompileCall,
    keys,
    not_a_message,
    reader,
    to_status,
    wanted,
)

from tests.fuzz.messages import requests
from tests.unit.rpc.served import methods

METHODS = {method: message for method, message in methods().items() if message.fields}
COMPILE = "/wasmkiln.v1.ModuleService/Compile"
FIND_MISSING = "/wasmkiln.v1.ModuleService/FindMissing"


def built(raw: bytes, method: str) -> Message:
    return GetMessageClass(methods()[method]).FromString(raw)


def check_within_bounds(wishes: Request) -> None:
    for name in (wishes.engine, wishes.target, wishes.cpu):
        assert len(name.encode()) <= 128
    assert len(wishes.settings) <= 64


def check_refusal(refusal: WasmkilnError) -> None:
    assert refusal.reason is Reason.INVALID_REQUEST
    assert len(to_status(refusal).SerializeToString()) < 1000


def check_keys(raw: bytes) -> None:
    """Whatever protobuf takes is taken, but groups, which no protobuf of ours writes."""
    try:
        found = [raw[value:end] for _, value, end in keys(raw)]
    except WasmkilnError as refusal:
        check_refusal(refusal)
        return
    for key in found:
        try:
            if isinstance(asked := wanted(key, Terms()), Request):
                check_within_bounds(asked)
        except WasmkilnError as refusal:
            check_refusal(refusal)
    try:
        message: Any = built(raw, FIND_MISSING)
    except DecodeError:
        return  # It has fields that are none, which the daemon steps over.
    assert [ArtifactKey.FromString(key) for key in found] == list(message.keys)


def check(raw: bytes, method: str) -> None:
    try:
        reader(method, GetMessageClass(methods()[method]).FromString)(raw)
    except WasmkilnError as refusal:
        check_refusal(refusal)
        if refusal.message == not_a_message().message and len(raw) <= 64 * 1024:
            with pytest.raises(DecodeError):
                built(raw, method)
    if method == FIND_MISSING:
        check_keys(raw)
    if method == COMPILE:
        try:
            check_within_bounds(reader(method, CompileCall)(raw).asked)
        except WasmkilnError as refusal:
            check_refusal(refusal)


@given(requests(METHODS))
def test_what_is_built_of_any_request_is_within_the_bounds(sent: tuple[bytes, str]) -> None:
    check(*sent)


@given(st.binary(max_size=300), st.sampled_from(sorted(methods())))
def test_any_bytes(raw: bytes, method: str) -> None:
    check(raw, method)
