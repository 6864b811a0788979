"""The table of bounds has a row for each field of each request that is served, and no other."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from wasmkilnd.rpc.wire import bounds
from wasmkilnd.rpc.wire.bounds import TABLE, plan_of

from tests.unit.rpc.served import fields, methods

TEXTS = {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE}
SERVED = {field.full_name: field for message in methods().values() for field in fields(message)}


@pytest.mark.parametrize("field", SERVED)
def test_each_field_of_each_request_has_a_row(field: str) -> None:
    assert field in TABLE, f"give {field} a row in rpc/wire/bounds.py"
    # A length is asked of texts, and of nothing else.
    assert bool(TABLE[field].length) == (SERVED[field].type in TEXTS)
    assert TABLE[field].times > 0


def test_no_row_is_left_of_a_field_that_has_gone() -> None:
    assert set(TABLE) <= set(SERVED)


@pytest.mark.parametrize("method", methods())
def test_each_method_has_a_plan(method: str) -> None:
    plan = plan_of(method)
    assert {row.path for row in plan.values()} == {field.name for field in methods()[method].fields}


def of_one_field(**field: object) -> Descriptor:
    file = descriptor_pb2.FileDescriptorProto(name="new.proto", package="new", syntax="proto3")
    message = file.message_type.add(name="Request")
    message.field.add(name="new", number=1, **field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindMessageTypeByName("new.Request")


def test_a_request_with_a_field_without_a_row_is_not_served() -> None:
    message = of_one_field(type=FieldDescriptor.TYPE_STRING, label=1)
    with pytest.raises(LookupError, match=r"new.Request.new has no bound: add a row"):
        bounds._plan(message)


def test_a_field_that_may_be_packed_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers would have to be counted, and no request has such a field yet."""
    monkeypatch.setattr(bounds, "TABLE", {"new.Request.new": bounds.Bound()})
    message = of_one_field(type=FieldDescriptor.TYPE_INT32, label=3)
    with pytest.raises(LookupError, match="may be packed"):
        bounds._plan(message)
