"""Whatever a caller sends as a request, the parsed message is within the bounds, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import unknown_fields
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.rpc.wire.bounds import MAX_UNKNOWN_FIELDS, TABLE, plan_of
from wasmkilnd.rpc.wire.requests import Scanned, not_a_message, scan
from wasmkilnd.rpc.wire.status import to_status

from tests.fuzz.messages import HONEST, messages
from tests.unit.rpc.served import methods

METHODS = {method: message for method, message in methods().items() if message.fields}
_MERGED = 8


def scanned(raw: bytes, method: str) -> Scanned:
    scanning = scan(raw, plan_of(method))
    try:
        while True:
            next(scanning)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def built(raw: bytes, method: str) -> Message:
    return GetMessageClass(methods()[method]).FromString(raw)


def check_within_bounds(message: Any, merged: int = 1) -> None:
    """Check the message that protobuf built against the table of bounds."""
    assert len(unknown_fields.UnknownFieldSet(message)) <= MAX_UNKNOWN_FIELDS
    for field, value in message.ListFields():
        bound = TABLE[field.full_name]
        if field.is_repeated:
            assert len(value) <= bound.times * merged
        if field.message_type and field.message_type.GetOptions().map_entry:
            [key, mapped] = (TABLE[part.full_name] for part in field.message_type.fields)
            for name, text in value.items():
                assert len(name.encode()) <= key.length
                assert len(text.encode()) <= mapped.length
        elif field.message_type:
            for one in value if field.is_repeated else [value]:
                check_within_bounds(one, 1 if field.is_repeated else _MERGED)
        elif isinstance(value, (str, bytes)):
            encoded = value if isinstance(value, bytes) else value.encode()
            assert len(encoded) <= bound.length


def check_refusal(refusal: WasmkilnError, raw: bytes, method: str) -> None:
    assert refusal.reason is Reason.INVALID_REQUEST
    assert len(to_status(refusal).SerializeToString()) < 1000
    if refusal.message == not_a_message().message:
        with pytest.raises(DecodeError):
            built(raw, method)


def check(raw: bytes, method: str) -> None:
    try:
        found = scanned(raw, method)
    except WasmkilnError as refusal:
        check_refusal(refusal, raw, method)
        return
    try:
        message: Any = built(raw, method)
    except DecodeError:
        return  # It has texts that are none, which the scan steps over.
    check_within_bounds(message)
    if method.endswith("/FindMissing"):
        key = type(message.keys.add())
        del message.keys[-1]
        parts = [key.FromString(raw[start:end]) for start, end in found.parts]
        assert parts == list(message.keys)


hostile = st.sampled_from(sorted(METHODS)).flatmap(
    lambda method: st.tuples(messages(METHODS[method]), st.just(method))
)


@given(hostile)
def test_what_is_built_of_any_request_is_within_the_bounds(sent: tuple[bytes, str]) -> None:
    check(*sent)


@given(
    st.sampled_from(sorted(METHODS)).flatmap(
        lambda method: st.tuples(messages(METHODS[method], HONEST), st.just(method))
    )
)
def test_what_is_within_the_bounds_is_taken(sent: tuple[bytes, str]) -> None:
    raw, method = sent
    assert scanned(raw, method).cost_bytes >= 0
    built(raw, method)


@given(st.binary(max_size=300), st.sampled_from(sorted(methods())))
def test_any_bytes(raw: bytes, method: str) -> None:
    check(raw, method)
