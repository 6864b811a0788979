"""What Helm makes of the chart, and what the schemas of Kubernetes say of it.

Both run in a process of their own, ``helm_inside.py``, which takes a second to load. The release is
called "kiln", its namespace "prod".
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "wasmkiln"
_INSIDE = Path(__file__).with_name("helm_inside.py")


class Rendered:
    """What Helm makes of the chart with some values."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.error: str = answer["error"]
        """Why Helm refuses the values; empty if it does not."""
        self.lint: list[str] = answer["lint"]
        """Findings of `helm lint --strict`, apart from mere information."""
        self.invalid: list[str] = answer["invalid"]
        """Manifests that the schemas of Kubernetes refuse, and why."""
        self.notes: str = answer["notes"]
        self.manifests: list[dict[str, Any]] = answer["manifests"]

    def one(self, kind: str, name: str = "kiln-wasmkiln") -> dict[str, Any]:
        """Return the manifest of a kind and a name."""
        [found] = [each for each in self.manifests if _is(each, kind, name)]
        return found

    def has(self, kind: str, name: str = "kiln-wasmkiln") -> bool:
        """Return whether there is a manifest of a kind and a name."""
        return any(_is(each, kind, name) for each in self.manifests)

    @property
    def pod(self) -> dict[str, Any]:
        """The template of the daemon's pods."""
        return dict(self.one("StatefulSet")["spec"]["template"])

    @property
    def container(self) -> dict[str, Any]:
        """The daemon's container."""
        [container] = self.pod["spec"]["containers"]
        return dict(container)


def _is(manifest: Mapping[str, Any], kind: str, name: str) -> bool:
    return bool(manifest["kind"] == kind and manifest["metadata"]["name"] == name)


def render(values: Mapping[str, Any] | None = None, chart: Path = CHART) -> Rendered:
    """Lint and render the chart with ``values``, and validate what comes out."""
    return Rendered(_run(json.dumps({"chart": str(chart), "values": values or {}})))


def render_file(name: str) -> Rendered:
    """The same with a file of the chart's folder ci/."""
    return render_text((CHART / "ci" / f"{name}-values.yaml").read_text())


def render_text(text: str) -> Rendered:
    """The same with values as YAML."""
    return Rendered(_run(json.dumps({"chart": str(CHART), "text": text})))


@cache
def _run(question: str) -> Any:
    inside = _inside()
    assert inside.stdin
    assert inside.stdout
    print(question, file=inside.stdin, flush=True)
    return json.loads(inside.stdout.readline())


@cache
def _inside() -> subprocess.Popen[str]:
    """The process that answers all questions; it ends with this one, which closes its input."""
    words = [sys.executable, str(_INSIDE)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
