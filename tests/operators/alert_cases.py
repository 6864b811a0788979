"""For each alert what Prometheus sees before and while it fires, for promtool."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

ENGINE = '{engine="wasmtime-50.0.1"}'
TIERS = ("redis", "host_store")
BEFORE_MINUTES = 20
"""How long everything is well."""


@dataclass(frozen=True)
class Case:
    """What makes an alert fire, as promtool writes series: a value for each minute."""

    alert: str
    series: Mapping[str, tuple[str, str]]
    """Name and labels, each with the value while all is well, and from then on."""
    for_minutes: int = 0
    """How long the condition has to last."""
    ends: bool = False
    """Whether it stops firing by itself, an hour after one event."""


def counter(name: str, labels: str, events: int) -> Mapping[str, tuple[str, str]]:
    """Return a counter on which ``events`` come at once."""
    return {name + labels: ("0", str(events))}


COMPILES = '{engine="wasmtime-50.0.1",outcome="%s"}'
OF_HOST_STORE = '{outcome="error",tier="host_store"}'
CASES = [
    Case("WasmkilnDown", {'up{job="wasmkiln"}': ("1", "0")}, 2),
    Case("WasmkilnNotReady", {"wasmkiln_ready": ("1", "0")}, 2),
    Case("WasmkilnWorkersMissing", {"wasmkiln_workers" + ENGINE: ("2", "0")}, 2),
    Case("WasmkilnAuditLost", counter("wasmkiln_audit_lost_total", "", 1), ends=True),
    Case(
        "WasmkilnRestartsOften",
        {'process_start_time_seconds{job="wasmkiln"}': ("1000", "1100 1200 1300 1300")},
        ends=True,
    ),
    Case(
        "WasmkilnRestartsOften",
        counter("wasmkiln_workers_replaced_total", ENGINE, 6),
        ends=True,
    ),
    Case(
        "WasmkilnEngineNotServed",
        {
            'wasmkiln_engine_state{engine="wasmtime-50.0.1",state="served"}': ("1", "0"),
            'wasmkiln_engine_state{engine="wasmtime-50.0.1",state="unserved"}': ("0", "1"),
        },
        5,
    ),
    Case("WasmkilnNotConfined", {"wasmkiln_isolation_confined" + ENGINE: ("1", "0")}, 1),
    Case("WasmkilnOverloaded", {'wasmkiln_refused_total{limit="queue"}': ("0", "1+1")}, 5),
    Case(
        "WasmkilnOverloaded",
        {
            f'wasmkiln_queue_wait_seconds_bucket{{engine="wasmtime-50.0.1",le="{le}"}}': (
                "0",
                "0" if le in ("1.0", "5.0") else "1+1",
            )
            for le in ("1.0", "5.0", "10.0", "+Inf")
        },
        5,
    ),
    *(
        Case(
            "WasmkilnCallsFail",
            counter("wasmkiln_compiles_total", COMPILES % outcome, 6),
            ends=True,
        )
        for outcome in ("compiler_crashed", "compile_timeout", "compile_memory_limit")
    ),
    Case(
        "WasmkilnCallsFail",
        counter(
            "wasmkiln_rpcs_total",
            '{code="INTERNAL",method="/wasmkiln.v1.ModuleService/Compile"}',
            6,
        ),
        ends=True,
    ),
    *(
        Case(
            "WasmkilnTierDown",
            {
                f"wasmkiln_{tier}_up": ("1", "0"),
                f'wasmkiln_tier_configured{{tier="{tier}"}}': ("1", "1"),
            },
            5,
        )
        for tier in TIERS
    ),
    *(
        Case("WasmkilnTierFails", counter(name, labels, 1), 5, ends=True)
        for name, labels in (
            ("wasmkiln_redis_dropped_writes_total", ""),
            ("wasmkiln_host_store_dropped_writes_total", ""),
            ("wasmkiln_tier_stores_total", OF_HOST_STORE),
            (
                "wasmkiln_tier_lookups_total",
                '{outcome="error",tier="host_store",what="artifact"}',
            ),
        )
    ),
    Case(
        "WasmkilnStoredValuesRejected",
        counter("wasmkiln_values_rejected_total", '{cause="mismatch",tier="redis"}', 1),
        ends=True,
    ),
    Case(
        "WasmkilnReloadFailed",
        {'wasmkiln_last_reload_successful{what="settings"}': ("1", "0")},
        1,
    ),
    Case(
        "WasmkilnCertificateExpires",
        {'wasmkiln_tls_not_after_seconds{file="cert"}': (str(30 * 86400), str(3 * 86400))},
        10,
    ),
]
"""One for each part of an alert's expression."""
ALERTS = {case.alert for case in CASES}
SILENT = {
    "what an eviction leaves": 'wasmkiln_values_rejected_total{cause="incomplete",tier="redis"}',
    "what a revocation refuses": 'wasmkiln_values_rejected_total{cause="revoked",tier="redis"}',
}
"""Events that wake nobody."""


def names_of(series: str) -> tuple[str, dict[str, str]]:
    """Return the name and the labels of a series."""
    name, _, labels = series.partition("{")
    return name, dict(re.findall(r'(\w+)="([^"]*)"', labels))


def promtool_tests(rules: str) -> str:
    """Return the file that promtool tests ``rules`` by, which are a file's path."""
    tests = [_test(case) for case in CASES]
    tests += [
        {
            "name": what,
            "interval": "1m",
            "input_series": [_series(series, "0", "1")],
            "promql_expr_test": [_expects("", minute, 0) for minute in (22, 30, 60)],
        }
        for what, series in SILENT.items()
    ]
    tests += [
        {
            "name": f"{tier} is switched off",
            "interval": "1m",
            "input_series": [
                _series(f"wasmkiln_{tier}_up", "0", "0"),
                _series(f'wasmkiln_tier_configured{{tier="{tier}"}}', "0", "0"),
            ],
            "promql_expr_test": [_expects("", minute, 0) for minute in (22, 60)],
        }
        for tier in TIERS
    ]
    # YAML holds JSON.
    return json.dumps({"rule_files": [rules], "evaluation_interval": "1m", "tests": tests})


def _test(case: Case) -> Mapping[str, object]:
    begins = BEFORE_MINUTES + 1
    expected = [_expects(case.alert, BEFORE_MINUTES, 0)]
    if case.for_minutes:
        expected.append(_expects(case.alert, begins + case.for_minutes - 1, 0))
    expected.append(_expects(case.alert, begins + case.for_minutes + 3, 1))
    if case.ends:
        expected.append(_expects(case.alert, begins + 59, 0))
    return {
        "name": f"{case.alert}: {next(iter(case.series))}",
        "interval": "1m",
        "input_series": [_series(name, *values) for name, values in case.series.items()],
        "promql_expr_test": expected,
    }


def _series(series: str, before: str, after: str) -> Mapping[str, str]:
    name, labels = names_of(series)
    labels = {"instance": "127.0.0.1:9464", "job": "wasmkiln", **labels}
    pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
    *first, last = after.split()
    values = [f"{before}x{BEFORE_MINUTES}", *first, f"{last}x60"]
    return {"series": f"{name}{{{pairs}}}", "values": " ".join(values)}


def _expects(alert: str, minute: int, firing: int) -> Mapping[str, object]:
    about = f'alertname="{alert}",' if alert else ""
    return {
        "expr": f'count(ALERTS{{{about}alertstate="firing"}})',
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": "{}", "value": firing}] if firing else [],
    }
