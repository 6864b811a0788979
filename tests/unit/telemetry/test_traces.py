"""Spans of a call and of its steps, and what happens when nobody takes them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from structlog.testing import capture_logs
from wasmkilnd import errors
from wasmkilnd.errors import CannotUse
from wasmkilnd.telemetry import tracing
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.telemetry.tracing import Collector, Tracing, open_tracing

COMPILE = "/wasmkiln.v1.ModuleService/Compile"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)


class Kept:
    """Traces, and the spans that they sent."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.traces = Tracing(self._exporter, "1.2.3")
        self.metrics = Metrics("1.2.3")

    def call(
        self, work: Callable[[], Coroutine[Any, Any, object]], metadata: Sequence[Any] = ()
    ) -> list[ReadableSpan]:
        """Do ``work`` in a call; return the spans, that of the call last."""

        async def answer() -> None:
            trace = self.traces.begin(COMPILE, metadata)
            self.trace_id = trace.trace_id if trace else ""
            await work()
            if trace:
                trace.end("OK", "", {"origin": "memory", "engine": "", "bytes": 7})

        asyncio.run(answer())
        self.traces._provider.force_flush()
        return list(self._exporter.get_finished_spans())


@pytest.fixture
def kept() -> Iterator[Kept]:
    one = Kept()
    yield one
    one.traces.close()


async def nothing() -> None:
    """Do nothing."""


def test_a_call_goes_on_with_the_trace_of_its_caller(kept: Kept) -> None:
    [span] = kept.call(nothing, (*SAMPLED, ("tracestate", "vendor=1")))
    assert f"{span.context.trace_id:032x}" == TRACE == kept.trace_id
    assert span.parent
    assert f"{span.parent.span_id:016x}" == PARENT
    assert dict(span.context.trace_state) == {"vendor": "1"}
    assert span.name == "wasmkiln.v1.ModuleService/Compile"
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "wasmkiln.v1.ModuleService",
        "rpc.method": "Compile",
        "rpc.grpc.status_code": 0,
        "wasmkiln.origin": "memory",
        "wasmkiln.bytes": 7,
    }


def test_a_long_tracestate_is_left_out(kept: Kept) -> None:
    [span] = kept.call(nothing, (*SAMPLED, ("tracestate", "vendor=" + "1" * 600)))
    assert f"{span.context.trace_id:032x}" == TRACE
    assert not span.context.trace_state


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("traceparent", "00-none-01"),),
        (("traceparent", f"00-{'0' * 32}-{PARENT}-01"),),
        (("traceparent", "x" * 8000), ("tracestate", "y" * 8000)),
    ],
)
def test_a_call_without_a_usable_traceparent_begins_a_trace(
    kept: Kept, metadata: Sequence[tuple[str, str | bytes]]
) -> None:
    [span] = kept.call(nothing, metadata)
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" == kept.trace_id != TRACE


def test_what_the_caller_does_not_record_is_not_sent_but_in_the_log(kept: Kept) -> None:
    async def work() -> None:
        assert tracing.of_line() == {"trace_id": TRACE}

    assert kept.call(work, (("traceparent", f"00-{TRACE}-{PARENT}-00"),)) == []
    assert kept.trace_id == TRACE


def test_what_the_sampler_leaves_out_is_not_sent_and_not_in_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    kept = Kept()
    assert (kept.call(nothing), kept.trace_id) == ([], "")
    assert len(kept.call(nothing, SAMPLED)) == 1
    kept.traces.close()


def test_a_step_that_fails_says_why(kept: Kept) -> None:
    async def work() -> None:
        with pytest.raises(errors.WasmkilnError), tracing.step("compile"):
            raise errors.compiler_crashed("e", "ended by SIGSEGV", "")
        with pytest.raises(asyncio.CancelledError), tracing.step("queue"):
            raise asyncio.CancelledError

    compiling, queue, _ = kept.call(work)
    assert compiling.status.status_code is StatusCode.ERROR
    assert compiling.status.description == "compiler_crashed"
    assert queue.status.status_code is StatusCode.UNSET
    assert dict(queue.attributes or {}) == {"wasmkiln.outcome": "cancelled"}


def test_what_a_task_does_after_its_call_is_in_no_trace(kept: Kept) -> None:
    asked, done = asyncio.Event(), []

    async def for_others() -> None:
        await asked.wait()
        kept.metrics.tier_lookup("redis", "artifact", "hit", 0.0)
        assert tracing.of_line() == {}
        done.append(True)

    async def call_and_later() -> None:
        async def answer() -> asyncio.Task[None]:
            trace = kept.traces.begin(COMPILE, ())
            task = asyncio.create_task(for_others())
            assert trace
            trace.end("OK", "", {})
            return task

        task = await asyncio.create_task(answer())
        asked.set()
        await task

    asyncio.run(call_and_later())
    kept.traces._provider.force_flush()
    assert done
    assert [span.name for span in kept._exporter.get_finished_spans()] == [COMPILE[1:]]


class Hanging(SpanExporter):
    """Never comes back."""

    def __init__(self) -> None:
        self.entered = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        threading.Event().wait()
        return SpanExportResult.SUCCESS


def test_a_collector_that_hangs_does_not_keep_the_daemon_from_ending() -> None:
    hanging = Hanging()
    traces = Tracing(hanging, "1")
    context = contextvars.copy_context()  # begin() is for the task of a call.
    trace = context.run(traces.begin, COMPILE, ())
    assert trace
    trace.end("OK", "", {})
    traces.close()  # It returns, or this test never ends.
    assert hanging.entered.is_set()


class Answering:
    """A server that notes what it is asked, and answers each with the same."""

    def __init__(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked.append((self.path, self.headers["Authorization"] or ""))
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize("where", ["/other", "http://127.0.0.1:1/v1/traces"])
def test_a_collector_cannot_send_the_daemon_elsewhere(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with Answering(307, {"Location": where}) as server, capture_logs() as logs:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        assert Collector().export([]) is SpanExportResult.FAILURE
    assert server.asked == [("/v1/traces", "")]
    assert "a redirect (307)" in logs[0]["cause"]


def test_an_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of these bytes none comes.
    with Answering(200, {"Content-Length": "1000000000"}) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        assert Collector().export([]) is SpanExportResult.SUCCESS


def test_spans_go_through_the_proxy_and_with_no_name_of_netrc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login other password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer own")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.invalid:4318")
    with Answering(200) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert Collector().export([]) is SpanExportResult.SUCCESS
    assert proxy.asked == [("http://collector.invalid:4318/v1/traces", "Bearer own")]


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "http/protobuf, .* 4318, not grpc"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "hunter2"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        (
            {"OTEL_EXPORTER_OTLP_HEADERS": "hunter2", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"},
            ".*'soon'",
        ),
        # What the library would pass over.
        ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere/ca.pem"}, ".*/nowhere/ca.pem"),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8192"}, ""),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"}, ""),
    ],
)
def test_a_variable_that_is_wrong_is_refused_without_what_the_headers_say(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: Mapping[str, str],
    says: str,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:1")
    caplog.set_level(logging.CRITICAL)  # As a daemon's with a log of errors alone.
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    wrong = rf"cannot send traces: one of the variables OTEL_\*: .*{says}"
    with pytest.raises(CannotUse, match=wrong) as refused:
        open_tracing("1")
    assert "hunter2" not in f"{refused.value} {caplog.text}"


def test_a_daemon_that_lacks_the_library_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from wasmkilnd.telemetry.tracing import open_tracing\n"
        "try:\n"
        "    open_tracing('1')\n"
        "except Exception as failure:\n"
        "    print(failure)"
    )
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "cannot send traces to the collector of OTEL_EXPORTER_OTLP_ENDPOINT: OpenTelemetry is not"
        " installed: pip install 'wasmkiln[server,trace]'\n"
    )
