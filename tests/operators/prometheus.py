"""A real Prometheus that scrapes daemons and evaluates the rules of this repository."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.e2e.processes import eventually
from tests.e2e.programs import ROOT

RULES = ROOT / "deploy" / "prometheus-alerts.yml"
_PATIENCE_S = 120.0


def at_once(rules: str) -> str:
    """Return rules whose alerts do not wait before they fire; nothing else is changed."""
    return re.sub(r"^( +for:) .+$", r"\1 0s", rules, flags=re.MULTILINE)


@dataclass(frozen=True)
class Target:
    """A daemon to scrape."""

    instance: str
    address: str
    ca_file: Path | None = None
    """Its CA's certificate, if it speaks TLS."""


class Prometheus:
    """A Prometheus that scrapes each second; it ends with the context."""

    def __init__(
        self, program: Path, folder: Path, targets: Sequence[Target], rules: str = ""
    ) -> None:
        """Start it, and wait until it has scraped every target."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rules.yml").write_text(rules or "groups: []\n")
        scrapes = [_scrape(target) for target in targets]
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": scrapes,
        }
        # YAML holds JSON.
        (folder / "prometheus.yml").write_text(json.dumps(configuration))
        self._log = folder / "log"
        words = [str(program), f"--config.file={folder / 'prometheus.yml'}"]
        words += [f"--storage.tsdb.path={folder / 'data'}", "--web.listen-address=127.0.0.1:0"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._url = ""
        eventually(self._listens, "Prometheus does not listen", _PATIENCE_S)
        eventually(
            lambda: len(self.values("up == 1")) == len(targets),
            f"Prometheus does not scrape every target: {self._log.read_text()[-2000:]}",
            _PATIENCE_S,
        )

    def values(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Return what a query finds now: labels and value."""
        found = self._get("query", {"query": query})["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def some(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Return what a query finds, once it finds something.

        It finds nothing for a while if a busy machine did not answer a scrape within its second.
        """
        eventually(lambda: self.values(query), f"nothing is found by {query}", _PATIENCE_S)
        return self.values(query) or self.some(query)

    def fired(self) -> dict[str, list[dict[str, str]]]:
        """Return the alerts that have fired so far, by name, each with its labels."""
        fired: dict[str, list[dict[str, str]]] = {}
        for labels, _ in self.values('count_over_time(ALERTS{alertstate="firing"}[1h])'):
            fired.setdefault(labels["alertname"], []).append(labels)
        return fired

    def wait_for(self, alert: str, **labels: str) -> None:
        """Wait until an alert with these labels has fired; an empty one must not be there."""
        eventually(
            lambda: any(
                all(each.get(label, "") == value for label, value in labels.items())
                for each in self.fired().get(alert, [])
            ),
            f"{alert} with {labels} did not fire",
            _PATIENCE_S,
        )

    def wait_for_scrapes(self, count: int = 2) -> None:
        """Wait until every target that answers was scraped so many times more."""
        query = 'count_over_time(up{job="wasmkiln"}[1h])'
        before = {labels["instance"]: value for labels, value in self.values(query)}
        eventually(
            lambda: all(
                value >= before.get(labels["instance"], 0) + count
                for labels, value in self.values(query)
            ),
            "Prometheus does not scrape",
            _PATIENCE_S,
        )

    def _get(self, what: str, arguments: Mapping[str, str]) -> Any:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)["data"]

    def _listens(self) -> bool:
        said = self._log.read_text()
        assert self._process.poll() is None, said[-2000:]
        if found := re.search(r'msg="Listening on" address=(\S+)', said):
            self._url = f"http://{found[1]}"
        return bool(self._url) and "ready to receive" in said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def _scrape(target: Target) -> dict[str, Any]:
    tls = {"scheme": "https", "tls_config": {"ca_file": str(target.ca_file)}}
    return {
        "job_name": f"wasmkiln-{target.instance}",
        **(tls if target.ca_file else {}),
        "static_configs": [
            {
                "targets": [target.address],
                "labels": {"instance": target.instance, "job": "wasmkiln"},
            }
        ],
    }
