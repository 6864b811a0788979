"""For each alert what Prometheus sees before and while it fires, for promtool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

ENGINE = 'engine="wasmtime-50.0.1"'
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


def down(alert: str, series: str, for_minutes: int) -> Case:
    """Return the case of a gauge that falls from 1 to 0."""
    return Case(alert, {series: ("1", "0")}, for_minutes)


def events(alert: str, series: str, count: int, for_minutes: int = 0) -> Case:
    """Return the case of a counter on which so many events come at once."""
    return Case(alert, {series: ("0", str(count))}, for_minutes, ends=True)


def waits(le: str) -> tuple[str, str]:
    """Return the bucket of waits in the queue that are all above 5 seconds."""
    return "0", "0" if le in ("1.0", "5.0") else "1+1"


_WAIT = f"wasmkiln_queue_wait_seconds_bucket{{{ENGINE},le="
_STATE = f"wasmkiln_engine_state{{{ENGINE},state="
_COMPILES = f"wasmkiln_compiles_total{{{ENGINE},outcome="
_OF_STORE = 'outcome="error",tier="host_store"'
_TIERS = ("redis", "host_store", "object_store")
CASES = [
    down("WasmkilnDown", "up{", 2),
    down("WasmkilnNotReady", "wasmkiln_ready{", 2),
    down("WasmkilnWorkersMissing", f"wasmkiln_workers{{{ENGINE}", 2),
    events("WasmkilnAuditLost", "wasmkiln_audit_lost_total{", 1),
    Case(
        "WasmkilnRestartsOften",
        {"process_start_time_seconds{": ("1000", "1100 1200 1300 1300")},
        ends=True,
    ),
    events("WasmkilnRestartsOften", f"wasmkiln_workers_replaced_total{{{ENGINE}", 6),
    Case(
        "WasmkilnEngineNotServed",
        {f'{_STATE}"served"': ("1", "0"), f'{_STATE}"unserved"': ("0", "1")},
        5,
    ),
    Case("WasmkilnEngineVulnerable", {f"wasmkiln_engine_advisories{{{ENGINE}": ("0", "2")}, 5),
    down("WasmkilnNotConfined", f"wasmkiln_isolation_confined{{{ENGINE}", 1),
    Case("WasmkilnOverloaded", {'wasmkiln_refused_total{limit="queue"': ("0", "1+1")}, 5),
    Case(
        "WasmkilnOverloaded",
        {f'{_WAIT}"{le}"': waits(le) for le in ("1.0", "5.0", "10.0", "+Inf")},
        5,
    ),
    *(
        events("WasmkilnCallsFail", f'{_COMPILES}"{outcome}"', 6)
        for outcome in ("compiler_crashed", "compile_timeout", "compile_memory_limit")
    ),
    events("WasmkilnCallsFail", 'wasmkiln_rpcs_total{code="INTERNAL",method="/a/Compile"', 6),
    *(
        Case(
            "WasmkilnTierDown",
            {
                f"wasmkiln_{tier}_up{{": ("1", "0"),
                f'wasmkiln_tier_configured{{tier="{tier}"': ("1", "1"),
            },
            5,
        )
        for tier in _TIERS
    ),
    *(
        events("WasmkilnTierFails", series, 1, 5)
        for series in (
            "wasmkiln_redis_dropped_writes_total{",
            "wasmkiln_host_store_dropped_writes_total{",
            "wasmkiln_object_store_dropped_writes_total{",
            f"wasmkiln_tier_stores_total{{{_OF_STORE}",
            f'wasmkiln_tier_lookups_total{{{_OF_STORE},what="artifact"',
        )
    ),
    events(
        "WasmkilnStoredValuesRejected",
        'wasmkiln_values_rejected_total{cause="mismatch",tier="redis"',
        1,
    ),
    down("WasmkilnReloadFailed", 'wasmkiln_last_reload_successful{what="settings"', 1),
    down("WasmkilnReloadFailed", "wasmkiln_jwt_keys_fetched{", 15),
    Case(
        "WasmkilnCertificateExpires",
        {'wasmkiln_tls_not_after_seconds{file="cert"': (str(30 * 86400), str(3 * 86400))},
        10,
    ),
]
"""One for each part of an alert's expression."""
ALERTS = {case.alert for case in CASES}
SILENT: Mapping[str, Mapping[str, tuple[str, str]]] = {
    **{
        f"what wakes nobody: {cause}": {
            f'wasmkiln_values_rejected_total{{cause="{cause}",tier="redis"': ("0", "1")
        }
        for cause in ("incomplete", "revoked")
    },
    **{
        f"{tier} is switched off": {
            f"wasmkiln_{tier}_up{{": ("0", "0"),
            f'wasmkiln_tier_configured{{tier="{tier}"': ("0", "0"),
        }
        for tier in _TIERS
    },
}


def promtool_tests(rules: str) -> str:
    """Return the file that promtool tests ``rules`` by, which are a file's path."""
    tests = [_test(case) for case in CASES]
    for what, series in SILENT.items():
        tests.append(_named(what, series, [("", minute, 0) for minute in (22, 30, 60)]))
    # YAML holds JSON.
    return json.dumps({"rule_files": [rules], "evaluation_interval": "1m", "tests": tests})


def _test(case: Case) -> Mapping[str, object]:
    begins = BEFORE_MINUTES + 1
    expected = [(case.alert, BEFORE_MINUTES, 0), (case.alert, begins + case.for_minutes + 3, 1)]
    if case.for_minutes:
        expected.append((case.alert, begins + case.for_minutes - 1, 0))
    if case.ends:
        expected.append((case.alert, begins + 59, 0))
    return _named(f"{case.alert}: {next(iter(case.series))}", case.series, expected)


def _named(
    name: str,
    series: Mapping[str, tuple[str, str]],
    expected: list[tuple[str, int, int]],
) -> Mapping[str, object]:
    return {
        "name": name,
        "interval": "1m",
        "input_series": [_series(each, *values) for each, values in series.items()],
        "promql_expr_test": [_expects(*each) for each in expected],
    }


def _series(series: str, before: str, after: str) -> Mapping[str, str]:
    comma = "" if series.endswith("{") else ","
    *first, last = after.split()
    values = [f"{before}x{BEFORE_MINUTES}", *first, f"{last}x60"]
    instance = f'{comma}instance="127.0.0.1:9464",job="wasmkiln"'
    return {"series": f"{series}{instance}}}", "values": " ".join(values)}


def _expects(alert: str, minute: int, firing: int) -> Mapping[str, object]:
    about = f'alertname="{alert}",' if alert else ""
    return {
        "expr": f'count(ALERTS{{{about}alertstate="firing"}})',
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": "{}", "value": firing}] if firing else [],
    }
