"""Traces of calls, from a client's span to the collector."""

from __future__ import annotations

import json
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from wasmkiln import Client

from tests.authority import Authority
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.over_tls import TlsSite, ask
from tests.e2e.processes import eventually
from tests.e2e.programs import installed_engines
from tests.e2e.wasm import adder
from tests.servers.otlp_receiver import OtlpReceiver, tls_of

TOKEN = "hunter2"
COMPILE = "wasmkiln.v1.ModuleService/Compile"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> ssl.SSLContext:
    return tls_of(authority.server())


@pytest.fixture(scope="module")
def collector(tls: ssl.SSLContext) -> Iterator[OtlpReceiver]:
    one = OtlpReceiver(TOKEN, tls)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def traced(
    collector: OtlpReceiver, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    installed_engines()
    state = fresh_state(tmp_path_factory.mktemp("traced") / "state", engines=ONE_ENGINE)
    with Daemon(state, environ=variables(collector, authority)) as daemon:
        yield daemon


def variables(collector: OtlpReceiver, authority: Authority) -> dict[str, str]:
    """Return the environment of a daemon that knows this CA, and another for other programs."""
    return {
        "REQUESTS_CA_BUNDLE": "/nowhere",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://127.0.0.1:{collector.port}",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {TOKEN}",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority.ca_file),
    }


@contextmanager
def span_of_a_caller() -> Iterator[tuple[str, str]]:
    """Work inside a span, as a service does; yield the trace's id and the span's."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("service")
    with tracer.start_as_current_span("request") as span:
        context = span.get_span_context()
        yield trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def compiled(daemon: Daemon, number: int) -> tuple[str, str]:
    with daemon.client() as client, span_of_a_caller() as ids:
        client.compile(adder(number))
    return ids


def test_a_compile_is_a_tree_of_spans_below_the_callers(
    traced: Daemon, collector: OtlpReceiver
) -> None:
    trace_id, caller = compiled(traced, 1)
    # The client asks by digest first, and then with the module.
    missed, made = sorted(collector.of(trace_id, COMPILE, 2), key=lambda span: span.began_ns)
    assert missed.parent == made.parent == caller
    assert missed.about["wasmkiln.reason"] == "MODULE_NOT_LOADED"
    assert missed.about["rpc.grpc.status_code"] == 5
    assert made.about["rpc.grpc.status_code"] == 0
    assert made.about["wasmkiln.origin"] == "compiled"
    assert made.about["wasmkiln.engine"] == ONE_ENGINE[0]
    assert made.about["wasmkiln.bytes"] > 0
    # A module that is missing is the caller's matter, and the daemon did what it should.
    assert not missed.failed
    assert not made.failed
    # The last to come: both tiers are written after the call. Redis gets the module too.
    collector.of(trace_id, "store redis", 2)
    collector.of(trace_id, "store host_store")
    below = [span for span in collector.spans if span.parent == made.id]
    assert {span.name for span in below} == {
        *("lookup memory", "lookup host_store", "lookup redis", "queue", "lease", "compile"),
        *("store memory", "store host_store", "store redis"),
    }
    [job] = [span for span in below if span.name == "compile"]
    assert job.about == {
        "wasmkiln.engine": ONE_ENGINE[0],
        "wasmkiln.outcome": "ok",
        "wasmkiln.module_bytes": len(adder(1)),
        "wasmkiln.artifact_bytes": made.about["wasmkiln.bytes"],
    }
    assert made.began_ns <= job.began_ns < job.ended_ns <= made.ended_ns
    assert collector.resource["service.name"] == "wasmkilnd"


def test_a_hit_in_memory_is_two_spans_and_in_the_log(
    traced: Daemon, collector: OtlpReceiver
) -> None:
    compiled(traced, 2)
    trace_id, caller = compiled(traced, 2)
    [call] = collector.of(trace_id, COMPILE)
    assert call.parent == caller
    assert call.about["wasmkiln.origin"] == "memory"
    [lookup] = [span for span in collector.spans if span.parent == call.id]
    assert lookup.name == "lookup memory"
    assert lookup.about["wasmkiln.outcome"] == "hit"
    lines: list[dict[str, Any]] = [json.loads(line) for line in traced.log_lines]
    [logged] = [line for line in lines if line.get("trace_id") == trace_id]
    assert logged["event"] == "call"
    assert logged["module"]


def test_no_digest_or_token_is_sent(traced: Daemon, collector: OtlpReceiver) -> None:
    with traced.client() as client, span_of_a_caller() as (trace_id, _):
        digest = client.compile(adder(4)).header.module_sha256
    collector.of(trace_id, "store redis", 2)
    said = "".join(f"{span.name} {span.about}" for span in collector.spans)
    for secret in (digest[:16], TOKEN, str(traced.state_dir)):
        assert secret not in said


def test_a_server_with_a_certificate_of_another_ca_gets_neither_spans_nor_token(
    collector: OtlpReceiver, authority: Authority, tmp_path: Path
) -> None:
    """Of two daemons that know different CAs, the collector hears from one."""
    sent = {}
    for name, ca in (("its own", authority), ("another", Authority(tmp_path / "ca"))):
        state = fresh_state(tmp_path / name, engines=ONE_ENGINE)
        flags = ("--redis-url", "none", "--workers", "1")
        with Daemon(state, flags, variables(collector, ca)) as daemon:
            sent[name], _ = compiled(daemon, 6)
            if ca is not authority:
                daemon.wait_for_log("cannot send traces")
                assert TOKEN not in daemon.log
    # What was left was sent as each daemon ended.
    collector.of(sent["its own"], COMPILE, 2)
    assert sent["another"] not in {span.trace_id for span in collector.spans}


def test_a_daemon_of_tls_1_3_reaches_a_collector_of_tls_1_2(tmp_path: Path) -> None:
    """What its callers may speak binds nobody whom it calls."""
    site = TlsSite(tmp_path / "site")
    pair = site.authority.server("collector")
    collector = OtlpReceiver(TOKEN, tls_of(pair, ssl.TLSVersion.TLSv1_2))
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    flags = site.flags("--tls-min-version", "1.3", client_certificates=False)
    environ = variables(collector, site.authority)
    with (
        Daemon(state, flags, environ) as daemon,
        site.channel(daemon.address) as channel,
    ):
        ask(channel)
        name = "wasmkiln.v1.ModuleService/GetCapabilities"
        eventually(lambda: name in {span.name for span in collector.spans}, "no span came")
    assert "cannot send traces" not in daemon.log
    collector.stop()


def test_a_collector_that_is_gone_costs_no_call_and_one_line(
    traced: Daemon, collector: OtlpReceiver, tls: ssl.SSLContext
) -> None:
    collector.stop()
    compiled(traced, 5)
    line = json.loads(traced.wait_for_log("cannot send traces"))
    assert line["level"] == "warning"
    assert f"127.0.0.1:{collector.port}" in line["endpoint"]
    assert TOKEN not in traced.log
    again = OtlpReceiver(TOKEN, tls, collector.port)
    assert again.port == collector.port
    with traced.client() as client:
        trace_id = _until_taken(client, traced)
    again.of(trace_id, "wasmkiln.v1.ModuleService/Stats")
    # What waits when the daemon ends is sent: nobody waits for the next batch.
    with traced.client() as client, span_of_a_caller() as (last, _):
        client.stats()
    traced.process.send_signal(signal.SIGTERM)
    again.of(last, "wasmkiln.v1.ModuleService/Stats")
    assert traced.stop() == 0
    assert traced.log.count("cannot send traces") == 1
    assert "Traceback" not in traced.log
    again.stop()


def _until_taken(client: Client, daemon: Daemon) -> str:
    """Call until the collector takes traces again; return the trace of a last call."""
    while "the collector takes traces again" not in daemon.log:
        with span_of_a_caller():
            client.stats()
    with span_of_a_caller() as (trace_id, _):
        client.stats()
    return trace_id
