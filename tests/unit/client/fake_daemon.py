"""A daemon of a few lines, on a real port, that answers what a test tells it to."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from wasmkiln.v1 import admin_service_pb2 as admin
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1 import types_pb2 as types

from tests.authority import Pair


@dataclass(frozen=True)
class Refusal:
    """An error to answer the next call with; without a reason it has no details at all."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = "no"
    metadata: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None
    violations: tuple[tuple[str, str], ...] = ()
    domain: str = "wasmkiln"
    also: Callable[[], Any] = lambda: None

    def abort(self, context: Any) -> None:
        self.also()
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        if self.reason:
            info = {"domain": self.domain, "reason": self.reason, "metadata": self.metadata}
            status.details.add().Pack(error_details_pb2.ErrorInfo(**info))
        if self.retry_after_s is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            status.details.add().Pack(retry)
        if self.violations:
            bad = error_details_pb2.BadRequest()
            for name, text in self.violations:
                bad.field_violations.add(field=name, description=text)
            status.details.add().Pack(bad)
        if status.details:
            details = status.SerializeToString()
            context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(self.code, self.message)


# What the daemon answers whatever the request.
ANSWERS: dict[str, Message] = {
    "Stats": modules.StatsResponse(
        version="9.9.9",
        uptime=Duration(seconds=90),
        hit_ratio=0.75,
        redis_up=True,
        redis_mode="embedded",
        tiers=[modules.TierStats(tier="memory", entries=2, bytes=2**40, hits=3)],
        compiles=[modules.CompileStats(outcome="ok", count=7, engine="wasmtime-50.0.1")],
        workers=[modules.WorkerStats(engine="wasmtime-50.0.1", workers=2, busy=1)],
        namespace="team-a",
        engine_names={"wasmtime": "wasmtime-49.0.0"},
        quotas=[
            modules.QuotaUsage(
                identity="token:ci",
                quota="stored_bytes_per_hour",
                used=2**20,
                limit=2**29,
                refused=3,
            )
        ],
        engine_warm_ups=[
            modules.EngineWarmUp(
                engine="wasmtime-50.0.1", from_engine="wasmtime-49.0.0", total=9, done=4
            )
        ],
    ),
    "GetCapabilities": modules.GetCapabilitiesResponse(
        version="9.9.9",
        engines=[
            modules.EngineCapabilities(
                engine=types.Engine(id="wasmer-1.1.0", name="wasmer", version="1.1.0"),
                default=True,
                kinds=[types.KIND_CORE_MODULE],
                isolation=modules.Isolation(
                    layers=[
                        modules.IsolationLayer(
                            name="seccomp",
                            state=modules.IsolationLayer.STATE_MISSING,
                            detail="the kernel has none",
                        )
                    ],
                    attempts=[
                        modules.BreakOutAttempt(name="connect", refused=True),
                        modules.BreakOutAttempt(name="fork", refused=False),
                    ],
                ),
                targets=[
                    modules.Target(triple="x86_64-unknown-linux-gnu", cpus=["x86-64-v3"], host=True)
                ],
                settings=[
                    modules.Setting(
                        name="opt_level",
                        default_value="speed",
                        allowed_values=["none", "speed"],
                    )
                ],
            )
        ],
        unserved_engines=[modules.UnservedEngine(id="wasmtime-1.0.0", cause="it is\nbroken")],
    ),
    "ListJobs": admin.ListJobsResponse(
        jobs=[
            admin.Job(
                id="5ff1",
                namespace="team-a",
                callers=["token:ci", "token:web"],
                module_sha256="ab" * 32,
                engine="wasmer-1.1.0",
                work="compile",
                waited=Duration(nanos=500_000),
                ran=Duration(seconds=21),
                memory_bytes=2**30,
            ),
            admin.Job(id="5ff2", work="validate", waited=Duration(seconds=3)),
        ]
    ),
    "ListPins": admin.ListPinsResponse(pins=[admin.Pin(module_sha256="ab" * 32)]),
}


class FakeDaemon(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Keeps modules by digest and "compiles" one to `artifact`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        # Of each call; empty for one that says nothing.
        self.priorities: list[str] = []
        self.routes: list[str] = []
        self.tokens: list[str] = []
        self.certificates: list[bytes] = []
        # Over TLS: its own certificate, which may change.
        self.pair: Pair | None = None
        self.refusals: deque[Refusal] = deque()
        self.modules: dict[str, bytes] = {}
        self.warm: set[tuple[str, str]] = set()
        self.artifact = b"native code " * 1000
        self.chunk_bytes = 5000
        self.header_changes: dict[str, Any] = {}
        # What a call that accepts fast code gets, if it is not empty.
        self.fast_artifact = b""
        # What a call that accepts a file gets instead of bytes.
        self.host_file: types.HostFile | None = None
        # Takes the honest messages, gives those that are sent.
        self.tamper: Callable[[list[Any]], list[Any]] = lambda messages: messages
        # Ends the next streams after two messages.
        self.cuts: deque[Refusal] = deque()
        # Ends the next uploads once a call has brought so many bytes.
        self.upload_cuts: deque[tuple[int, Refusal]] = deque()
        # What has arrived of modules, whose uploads have not ended; None for a daemon without.
        self.uploads: dict[str, bytearray] | None = {}
        # Bytes of modules, and of artifacts, on the wire.
        self.arrived_bytes = self.sent_bytes = 0
        # Whether a call may ask for the rest of an artifact.
        self.resumes = True
        self.refuse_module: dict[bytes, Refusal] = {}
        self.unreachable_tiers: list[str] = []
        self.hang = threading.Event()
        self.hang.set()
        self.entered = threading.Event()
        self.cancelled = threading.Event()
        self.health = health.HealthServicer()
        self.address = ""

    def refuse(self, *refusals: Refusal) -> None:
        """Answer the next calls with these refusals, in turn."""
        self.refusals.extend(refusals)

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    def header(
        self, sha256: str, request: modules.CompileRequest, artifact: bytes
    ) -> types.ArtifactHeader:
        name, _, version = (request.engine or "wasmtime").partition("-")
        version = version or {"wasmer": "1.1.0", "wasmtime": "50.0.1"}[name]
        header = types.ArtifactHeader(
            module_sha256=sha256,
            artifact_sha256=hashlib.sha256(artifact).hexdigest(),
            size_bytes=len(artifact),
            engine=types.Engine(id=f"{name}-{version}", name=name, version=version),
            target=request.target or "x86_64-unknown-linux-gnu",
            cpu=request.cpu or "baseline",
            settings={"consume_fuel": "false", **request.settings},
            changed_settings=request.settings,
            origin=types.ORIGIN_COMPILED,
            kind=types.KIND_CORE_MODULE,
        )
        header.compile_time.FromMilliseconds(420)
        for name, value in self.header_changes.items():
            setattr(header, name, value)
        return header

    def _begin(self, method: str, request: Any, context: Any) -> None:
        self.calls.append((method, request))
        metadata = dict(context.invocation_metadata())
        self.priorities.append(metadata.get("wasmkiln-priority", ""))
        self.routes.append(metadata.get("wasmkiln-module", ""))
        self.tokens.append(metadata.get("authorization", ""))
        self.certificates += context.auth_context().get("x509_pem_cert", [])
        self.entered.set()
        context.add_callback(self.cancelled.set)
        self.hang.wait(10)
        if self.refusals:
            self.refusals.popleft().abort(context)

    def service(self, details: Any) -> Any:
        """Handle every method as a stream, which on the wire a single answer is as well."""
        method = details.method.rpartition("/")[2]
        place = admin if "AdminService" in details.method else modules
        kind = getattr(place, f"{method}Request", None)
        if kind is None:  # of the health service
            return None

        if method in ("Upload", "QueryUpload") and self.uploads is None:
            return None
        if method == "Upload":
            return grpc.stream_unary_rpc_method_handler(
                self._upload, kind.FromString, lambda answer: answer.SerializeToString()
            )

        def run(request: Any, context: Any) -> Iterator[Message]:
            self._begin(method, request, context)
            if method == "Compile":
                yield from self._compile(request, context)
            elif method in ANSWERS:
                yield ANSWERS[method]
            else:
                yield getattr(self, f"_{method.lower()}")(request, context)

        return grpc.unary_stream_rpc_method_handler(
            run, kind.FromString, lambda answer: answer.SerializeToString()
        )

    def _load(self, request: modules.LoadRequest, context: Any) -> modules.LoadResponse:
        if request.module in self.refuse_module:
            self.refuse_module[request.module].abort(context)
        sha256 = hashlib.sha256(request.module).hexdigest()
        known = sha256 in self.modules
        self.modules[sha256] = request.module
        return modules.LoadResponse(
            sha256=sha256,
            size_bytes=len(request.module),
            already_loaded=known,
            kind=types.KIND_CORE_MODULE,
            engine=request.engine or "wasmer-1.1.0",
        )

    def _queryupload(self, request: Any, _context: Any) -> modules.QueryUploadResponse:
        held = (self.uploads or {}).get(request.sha256, b"")
        return modules.QueryUploadResponse(held_bytes=len(held))

    def _upload(self, requests: Iterator[modules.UploadRequest], context: Any) -> Message:
        first = next(requests)
        self._begin("Upload", first, context)
        if self.uploads is None:
            raise AssertionError("nobody asks")
        held = self.uploads.setdefault(first.sha256, bytearray())
        most, cut = self.upload_cuts.popleft() if self.upload_cuts else (2**63, None)
        came_bytes = 0
        for piece in requests:
            self.arrived_bytes += len(piece.data)
            came_bytes += len(piece.data)
            assert len(piece.data) <= 2**20
            assert piece.offset <= len(held), "a hole"
            held[piece.offset :] = piece.data
            if came_bytes >= most and cut:
                cut.abort(context)
        if len(held) < first.size_bytes:
            metadata = {"held_bytes": f"{len(held)}"}
            code = grpc.StatusCode.ABORTED
            Refusal(code, "UPLOAD_INTERRUPTED", metadata=metadata).abort(context)
        module = bytes(self.uploads.pop(first.sha256))
        if hashlib.sha256(module).hexdigest() != first.sha256:
            Refusal(grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_MISMATCH").abort(context)
        load = modules.LoadRequest(module=module, engine=first.engine)
        return modules.UploadResponse(loaded=self._load(load, context))

    def _compile(self, request: modules.CompileRequest, context: Any) -> Iterator[Message]:
        if request.WhichOneof("source") == "module":
            sha256 = hashlib.sha256(request.module).hexdigest()
            self.modules[sha256] = request.module
        else:
            sha256 = request.sha256
        module = self.modules.get(sha256)
        if module is None:
            Refusal(grpc.StatusCode.NOT_FOUND, "MODULE_NOT_LOADED", f"no {sha256}").abort(context)
        elif module in self.refuse_module:
            self.refuse_module[module].abort(context)
        is_fast = request.accept_fast and self.fast_artifact != b""
        artifact = self.fast_artifact if is_fast else self.artifact
        header = self.header(sha256, request, artifact)
        if is_fast:
            header.is_fast = True
            header.settings["strategy"] = header.changed_settings["strategy"] = "winch"
        assert bool(request.offset_bytes) == bool(request.artifact_sha256)
        begin = request.offset_bytes if self.resumes else 0
        if begin and request.artifact_sha256 == header.artifact_sha256:
            header.offset_bytes = begin
        messages = [modules.CompileResponse(header=header)]
        if self.host_file is not None and request.accept_host_file:
            messages[0].header.host_file.CopyFrom(self.host_file)
        elif not request.omit_artifact:
            messages += [
                modules.CompileResponse(chunk=artifact[at : at + self.chunk_bytes])
                for at in range(header.offset_bytes, len(artifact), self.chunk_bytes)
            ]
        sent = self.tamper(messages)
        cut = None
        if self.cuts:
            cut, sent = self.cuts.popleft(), sent[:2]
        for message in sent:
            self.sent_bytes += len(message.chunk)
            yield message
        if cut:
            cut.abort(context)

    def _findmissing(self, request: Any, _context: Any) -> modules.FindMissingResponse:
        return modules.FindMissingResponse(
            missing=[k for k in request.keys if (k.module_sha256, k.engine) not in self.warm]
        )

    def _evict(self, _request: Any, _context: Any) -> admin.EvictResponse:
        return admin.EvictResponse(
            artifacts=2, modules=1, bytes=2048, unreachable_tiers=self.unreachable_tiers
        )

    def _pin(self, request: Any, _context: Any) -> admin.PinResponse:
        tiers = [admin.PinnedInTier(tier="memory", artifacts=2, module=True, bytes=2048)]
        pin = admin.Pin(module_sha256=request.module_sha256, tiers=tiers)
        return admin.PinResponse(pin=pin, redis_unreachable=bool(self.unreachable_tiers))

    def _releasequarantine(self, _request: Any, _context: Any) -> admin.ReleaseQuarantineResponse:
        return admin.ReleaseQuarantineResponse(released=1)

    def _unpin(self, _request: Any, _context: Any) -> admin.UnpinResponse:
        return admin.UnpinResponse(removed=True, redis_unreachable=bool(self.unreachable_tiers))

    def _endjob(self, request: Any, _context: Any) -> admin.EndJobResponse:
        jobs = ANSWERS["ListJobs"].jobs  # type: ignore[attr-defined]
        return admin.EndJobResponse(job=next((j for j in jobs if j.id == request.id), None))

    def _undodrain(self, _request: Any, _context: Any) -> admin.UndoDrainResponse:
        return admin.UndoDrainResponse(undone=bool(self.requests("Drain")))

    def _drain(self, request: Any, _context: Any) -> admin.DrainResponse:
        return admin.DrainResponse(calls=3, flights=1, grace=request.grace)


@contextmanager
def fake_daemon(pair: Pair | None = None, client_ca: Path | None = None) -> Iterator[FakeDaemon]:
    """Run one on its `address`: over TLS with `pair`, asking for certificates by `client_ca`."""
    fake = FakeDaemon()
    fake.pair = pair
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=(fake,))
    health_pb2_grpc.add_HealthServicer_to_server(fake.health, server)
    if pair is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:

        def current() -> Any:
            assert fake.pair
            chain = fake.pair.key_file.read_bytes(), fake.pair.cert_file.read_bytes()
            roots = client_ca.read_bytes() if client_ca else None
            return grpc.ssl_server_certificate_configuration([chain], roots)

        asks = client_ca is not None
        credentials = grpc.dynamic_ssl_server_credentials(current(), current, asks)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    fake.address = f"127.0.0.1:{port}"
    server.start()
    yield fake
    fake.hang.set()
    server.stop(None).wait()
