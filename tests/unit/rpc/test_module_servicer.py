"""Which module was refused, as the log tells it; what it costs to know; what counts as a use."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import pytest
from wasmkiln.v1 import admin_service_pb2 as admin
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkilnd import errors
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import DrainState, Identity, Limits, Role, UnservedEngine
from wasmkilnd.rpc import messages
from wasmkilnd.rpc.admin_service import AdminServicer
from wasmkilnd.rpc.messages import CompileCall
from wasmkilnd.rpc.module_service import ModuleServicer
from wasmkilnd.rpc.traffic import PRIORITY_KEY, Call

from tests.doubles.context import Context
from tests.unit import services
from tests.unit.services import CORE, Rig

LARGE = CORE + bytes(1_000_000)
SHA256 = hashlib.sha256


class Kiln:
    """A servicer, and all that was hashed for its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(services, "LIMITS", Limits(2_000_000, 1000, 1, 1, 1, 1, 10**9))
        self.rig = Rig()
        self.rig.engines.failure = errors.module_invalid("usual-1", "bad", 8)
        self.hashed: list[tuple[int, bool]] = []
        self._servicer = ModuleServicer(self.rig.tenant_of, self.rig.stats, self.rig.capabilities)
        monkeypatch.setattr(hashlib, "sha256", self._sha256)

    def _sha256(self, data: bytes) -> Any:
        self.hashed.append((len(data), threading.current_thread() is threading.main_thread()))
        return SHA256(data)

    async def refused(self, request: pb.LoadRequest | pb.CompileRequest) -> tuple[Reason, str]:
        """Return why a call is refused, and which module its log line names."""
        under_way = Call(Context())
        call: Any = self._servicer.compile
        if isinstance(request, pb.LoadRequest):
            call = self._servicer.load
        with pytest.raises(WasmkilnError) as failure:
            await call(
                CompileCall(request.SerializeToString())
                if isinstance(request, pb.CompileRequest)
                else request,
                under_way,
            )
        return failure.value.reason, under_way.module


@pytest.fixture
def kiln(monkeypatch: pytest.MonkeyPatch) -> Kiln:
    return Kiln(monkeypatch)


@pytest.mark.parametrize(
    "request_",
    [pb.LoadRequest(module=LARGE), pb.CompileRequest(module=LARGE)],
    ids=["Load", "Compile"],
)
async def test_a_refused_module_is_named_and_was_hashed_once_and_in_a_thread(
    kiln: Kiln, request_: pb.LoadRequest | pb.CompileRequest
) -> None:
    digest = SHA256(LARGE).hexdigest()
    assert await kiln.refused(request_) == (Reason.MODULE_INVALID, digest)
    assert [hashed for hashed in kiln.hashed if hashed[0] == len(LARGE)] == [(len(LARGE), False)]


async def test_another_module_than_expected_is_named(kiln: Kiln) -> None:
    wrong = pb.LoadRequest(module=LARGE, expected_sha256="0" * 64)
    digest = SHA256(LARGE).hexdigest()
    assert await kiln.refused(wrong) == (Reason.DIGEST_MISMATCH, digest)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"%PDF-1.7" + LARGE, Reason.NOT_WASM), (LARGE * 3, Reason.MODULE_TOO_LARGE)],
)
async def test_what_admission_did_not_hash_is_not_hashed_for_the_log(
    kiln: Kiln, content: bytes, reason: Reason
) -> None:
    for request in (pb.LoadRequest(module=content), pb.CompileRequest(module=content)):
        assert await kiln.refused(request) == (reason, "")
    assert kiln.hashed == []


async def test_a_module_by_its_digest_is_named(kiln: Kiln) -> None:
    unknown = pb.CompileRequest(sha256="1" * 64)
    assert await kiln.refused(unknown) == (Reason.MODULE_NOT_LOADED, "1" * 64)


async def test_capabilities_are_told_in_one_answer_until_they_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, built = Rig(), list[messages.Capabilities]()
    told = rig.capabilities()
    build = messages.capabilities

    def counted(of: messages.Capabilities) -> pb.GetCapabilitiesResponse:
        built.append(of)
        return build(of)

    monkeypatch.setattr(messages, "capabilities", counted)
    servicer = ModuleServicer(rig.tenant_of, rig.stats, lambda: told)

    async def answer(name: str) -> pb.GetCapabilitiesResponse:
        call = Call(Context())
        call.identity = Identity(name, frozenset({Role.READ}), "tenant")
        raw = await servicer.get_capabilities(pb.GetCapabilitiesRequest(), call)
        return pb.GetCapabilitiesResponse.FromString(raw)

    for name in ("one", "other"):
        found = await answer(name)
        assert found.caller == pb.Caller(identity=name, roles=["read"], namespace="tenant")
        found.ClearField("caller")
        assert found == build(told)
    assert len(built) == 1
    told = told._replace(unserved=[UnservedEngine("wasmtime-1", "it is damaged")])
    assert [each.id for each in (await answer("one")).unserved_engines] == ["wasmtime-1"]
    assert len(built) == 2


@pytest.mark.parametrize("call", ["pin", "unpin"])
async def test_what_is_pinned_is_named_by_its_digest(call: str) -> None:
    servicer: Any = AdminServicer(Rig().tenant_of, lambda _: DrainState(0, 0, 0))
    request = (admin.PinRequest if call == "pin" else admin.UnpinRequest)(module_sha256="x")
    refused = await services.refused(getattr(servicer, call)(request, Call(Context())))
    assert (refused.reason, refused.field) == (Reason.INVALID_REQUEST, "module_sha256")


@pytest.mark.parametrize("background", [False, True])
async def test_background_calls_count_as_no_use(background: bool) -> None:
    rig = Rig()
    tenant = rig.tenant_of("")
    servicer = ModuleServicer(lambda _: tenant, rig.stats, rig.capabilities)
    request = pb.CompileRequest(module=CORE).SerializeToString()
    usual, behind = Context(), Context((PRIORITY_KEY, "background"))
    for context in (usual, behind if background else usual):
        await servicer.compile(CompileCall(request), Call(context))
    assert [*tenant.tally.take().values()] == [1.0 if background else 2.0]
