"""Which module was refused, as the log tells it; what it costs to know; what counts as a use."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from typing import Any

import pytest
from wasmkiln.v1 import admin_service_pb2 as admin
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkilnd import errors
from wasmkilnd.errors import Reason
from wasmkilnd.model import DrainState, Limits
from wasmkilnd.rpc.admin_service import AdminServicer
from wasmkilnd.rpc.messages import CompileCall
from wasmkilnd.rpc.module_service import ModuleServicer
from wasmkilnd.rpc.traffic import PRIORITY_KEY, Call

from tests.doubles.context import Context
from tests.unit import services
from tests.unit.services import CORE, Rig

LARGE = CORE + bytes(1_000_000)
SHA256 = hashlib.sha256


async def test_a_module_is_hashed_once_in_a_thread_and_only_if_it_can_be_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(services, "LIMITS", Limits(2_000_000, 1000, 1, 1, 1, 1, 10**9))
    rig, hashed = Rig(), list[tuple[int, bool]]()
    rig.engines.failure = errors.module_invalid("usual-1", "bad", 8)
    servicer = ModuleServicer(rig.tenant_of, rig.stats, rig.capabilities, rig.uploads)

    def sha256(data: bytes) -> Any:
        hashed.append((len(data), threading.current_thread() is threading.main_thread()))
        return SHA256(data)

    monkeypatch.setattr(hashlib, "sha256", sha256)
    for content, reason in (
        (LARGE, Reason.MODULE_INVALID),
        (b"%PDF-1.7" + LARGE, Reason.NOT_WASM),
        (LARGE * 3, Reason.MODULE_TOO_LARGE),
    ):
        named = SHA256(LARGE).hexdigest() if content is LARGE else ""
        raw = pb.CompileRequest(module=content).SerializeToString()
        one, other = Call(Context()), Call(Context())
        for asked, call in (
            (servicer.compile(CompileCall(raw), one), one),
            (servicer.load(pb.LoadRequest(module=content), other), other),
        ):
            assert (await services.refused(asked)).reason is reason
            assert call.module == named
    assert [each for each in hashed if each[0] >= len(LARGE)] == [(len(LARGE), False)] * 2


@pytest.mark.parametrize("call", ["pin", "unpin"])
async def test_what_is_pinned_is_named_by_its_digest(call: str) -> None:
    drain = partial(DrainState, 0, 0)
    servicer: Any = AdminServicer(Rig().tenant_of, lambda _: iter(()), drain, bool)
    request = (admin.PinRequest if call == "pin" else admin.UnpinRequest)(module_sha256="x")
    refused = await services.refused(getattr(servicer, call)(request, Call(Context())))
    assert (refused.reason, refused.field) == (Reason.INVALID_REQUEST, "module_sha256")


@pytest.mark.parametrize("background", [False, True])
async def test_background_calls_count_as_no_use(background: bool) -> None:
    rig = Rig()
    tenant = rig.tenant_of("")
    servicer = ModuleServicer(lambda _: tenant, rig.stats, rig.capabilities, rig.uploads)
    request = pb.CompileRequest(module=CORE).SerializeToString()
    usual, behind = Context(), Context((PRIORITY_KEY, "background"))
    for context in (usual, behind if background else usual):
        await servicer.compile(CompileCall(request), Call(context))
    assert [*tenant.tally.values()] == [1 if background else 2]
