"""The RPCs that the client calls: their paths, and how their answers are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf.wrappers_pb2 import Int32Value

from wasmkiln import _answers
from wasmkiln.v1 import admin_service_pb2 as admin
from wasmkiln.v1 import module_service_pb2 as modules

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

# The longest list of the contract has 10,000 elements; a newer daemon may have more.
_MAX_ELEMENTS = 100_000
# FindMissing answers its keys with their settings; still_missing compares each.
_MAX_ELEMENTS_OF_KEYS = 1_000_000


@dataclass(frozen=True)
class Method:
    """An RPC: its path, the class of its answer, and how many list elements that may have."""

    path: str
    answer: type[Message]
    max_elements: int = _MAX_ELEMENTS

    @property
    def read(self) -> Callable[[bytes], object]:
        """Parse an answer; what comes of it is for `usable` only."""
        return partial(_answers.read, self.answer)

    def usable(self, answer: object) -> Any:
        """Return the answer. Raise UnexpectedAnswer when it is none that can be used."""
        return _answers.usable(answer, self.max_elements)


LOAD = Method("/wasmkiln.v1.ModuleService/Load", modules.LoadResponse)
COMPILE = Method("/wasmkiln.v1.ModuleService/Compile", modules.CompileResponse)
STATS = Method("/wasmkiln.v1.ModuleService/Stats", modules.StatsResponse)
CAPABILITIES = Method("/wasmkiln.v1.ModuleService/GetCapabilities", modules.GetCapabilitiesResponse)
FIND_MISSING = Method(
    "/wasmkiln.v1.ModuleService/FindMissing", modules.FindMissingResponse, _MAX_ELEMENTS_OF_KEYS
)
EVICT = Method("/wasmkiln.v1.AdminService/Evict", admin.EvictResponse)
LIST_QUARANTINE = Method("/wasmkiln.v1.AdminService/ListQuarantine", admin.ListQuarantineResponse)
RELEASE_QUARANTINE = Method(
    "/wasmkiln.v1.AdminService/ReleaseQuarantine", admin.ReleaseQuarantineResponse
)
DRAIN = Method("/wasmkiln.v1.AdminService/Drain", admin.DrainResponse)
# On the wire, HealthCheckRequest{string service = 1} and HealthCheckResponse{enum status = 1}
# are wrappers of a text and a number, so that the client needs no package for them.
HEALTH = Method("/grpc.health.v1.Health/Check", Int32Value)
_HEALTH_STATUS = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


def health_status(value: int) -> str:
    """Return the name of a health status; "STATUS_7" for one that this client doesn't know."""
    return _HEALTH_STATUS[value] if 0 <= value < len(_HEALTH_STATUS) else f"STATUS_{value}"
